"""Use cases of invitations: store and send one, show and sign one, list and revoke them.

How one goes out: one transaction inserts it prepared, then the message is sent while the caller
waits, then a second transaction makes it live, or deletes it. A prepared invitation is never
fulfilled; should its 3PID be bound in the meantime, the second transaction sees to it.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlencode

from unpaddedbase64 import decode_base64, encode_base64

from identity.accounts.caller import Caller
from identity.associations import store as associations_store
from identity.clock import HOUR_MS, Clock
from identity.config import Config
from identity.database import PURGE_ROWS, Database, Transaction
from identity.errors import (
    Forbidden,
    InvalidParameter,
    InviteUnknown,
    NotTheTokenOwner,
    ThreePidInUse,
)
from identity.invites import store
from identity.invites.invite import (
    WEB_CLIENT,
    BlockList,
    InviteRequest,
    decode_page,
    encode_page,
    find_seed,
    new_token,
    redact,
    short_link,
    sign_url,
    web_client_link,
)
from identity.invites.store import Invite
from identity.keys.service import SigningKeys
from identity.limits.lookup_budget import LookupBudget
from identity.limits.service import Limiter
from identity.limits.subjects import ip_subjects
from identity.messaging.channel import Channel, Channels, Invitation
from identity.mxid import UserId
from identity.onbind import outbox
from identity.signing import SEED_BYTES, SigningKey, encode_public_key, parse_public_key
from identity.threepid import Medium, ThreePid

_EPHEMERAL_KEY_ID: Final = "ed25519:0"
# Where "do not mail me again" leads, or the like in a page.
REFUSE_PATH: Final = "/_matrix/identity/invites/refuse"
# No sender takes longer than this to accept or refuse a message.
_SENDING_MS: Final = HOUR_MS


@dataclass(frozen=True, slots=True)
class StoredInvite:
    """What `store-invite` answers."""

    token: str
    public_key: str
    ephemeral_public_key: str
    display_name: str


@dataclass(frozen=True, slots=True)
class OpenedInvite:
    """What the page behind a short link shows. `link` leads on, into the web client."""

    request: InviteRequest
    link: str
    refuse_link: str


class Invites:
    """Invitations of people who are not on Matrix yet. `media`: by which they are sent."""

    def __init__(
        self,
        database: Database,
        signing_keys: SigningKeys,
        limiter: Limiter,
        budget: LookupBudget,
        channels: Channels,
        config: Config,
        clock: Clock,
    ) -> None:
        self._database = database
        self._signing_keys = signing_keys
        self._limiter = limiter
        self._budget = budget
        self._channels = channels
        self._clock = clock
        self._server_name = str(config.server.name)
        self._public_url = config.server.public_url
        self._lifetime_ms = config.invites.lifetime // timedelta(milliseconds=1)
        self._web_client = config.email.default_web_client
        self._web_clients = frozenset(config.invites.web_clients)
        self._blocked = BlockList(
            frozenset(str(name).lower() for name in config.invites.blocked_homeservers),
            frozenset(config.invites.blocked_rooms),
            config.invites.blocked_keywords,
        )

        self.media = frozenset(
            medium
            for medium in channels
            if medium is not Medium.MSISDN or config.invites.allow_msisdn
        )

    def store(self, caller: Caller, request: InviteRequest) -> StoredInvite:
        """Keep an invitation and send it; the request's medium is one of `media`.

        Raises: NotTheTokenOwner, Forbidden, LimitExceeded, ThreePidInUse, InvalidEmail,
        InvalidPhoneNumber, DestinationRejected, EmailNotSent, SmsNotSent, StorageUnavailable.
        Then nothing is kept.
        """
        if caller.user_id is not None and caller.user_id != request.sender:
            raise NotTheTokenOwner
        self._blocked.check(request)
        blind = self._database.keys.blind_index(request.threepid)
        # Whether an address is bound is an answer like that of a lookup, and paid for alike.
        self._pay_for_answer(caller)
        self._check_unbound(blind)
        channel = self._channels[request.threepid.medium]
        channel.check_served(request.threepid)
        if self._database.read(lambda tx: store.is_mail_refused(tx, blind)):
            raise Forbidden("That address does not want any invitations from this server")
        channel.check_ready()
        permits = channel.admit_invitation(
            caller,
            request.threepid,
            ("invite_sender", str(request.sender)),
            ("invite_recipient", request.threepid.address),
            ("invite_homeserver", request.sender.server.host),
        )
        try:
            invite, ephemeral, public_key = self._prepare(blind, request, channel)
        except Exception:
            permits.give_back()
            raise
        try:
            channel.send_invitation(self._message(request, invite.token, ephemeral.seed), permits)
        except Exception:
            # Whatever it was, a fault of ours too: the caller is told that nothing was sent.
            self._database.write(lambda tx: store.delete_invite(tx, invite.token_hash))
            raise
        self._database.write(lambda tx: self._make_live(tx, invite))
        return StoredInvite(
            token=invite.token,
            public_key=public_key,
            ephemeral_public_key=encode_public_key(ephemeral.public_key),
            display_name=redact(request.threepid),
        )

    def open(self, seed_b64: str) -> OpenedInvite:
        """What a short link leads to, by the private half of the key that it ends in.

        Raises: InviteUnknown for what is none, has expired or was revoked.
        """
        seed = find_seed(seed_b64)
        if seed is None:
            raise InviteUnknown
        public_key = SigningKey.from_seed(_EPHEMERAL_KEY_ID, seed).public_key
        invite = self._database.read(lambda tx: store.find_invite_by_key(tx, public_key))
        if invite is None or invite.page is None or invite.expires_at_ms <= self._clock.now_ms():
            raise InviteUnknown
        sender = UserId.parse(invite.sender)
        request = decode_page(invite.page, invite.recipient(), invite.room_id, sender)
        message = self._message(request, invite.token, seed)
        return OpenedInvite(request, message.link, message.refuse_link)

    def sign(self, mxid: UserId, token: str, private_key: str) -> dict[str, Any]:
        """The third-party invite for one MXID, signed with the invitation's ephemeral key.

        Raises: InviteUnknown; InvalidParameter for a key that is not that invitation's.
        """
        token_hash = self._hash(token)

        def find(tx: Transaction) -> tuple[Invite | None, bytes | None]:
            return store.find_invite(tx, token_hash), store.find_ephemeral_key(tx, token_hash)

        invite, public_key = self._database.read(find)
        if invite is None or invite.revoked_at_ms is not None:
            raise InviteUnknown
        try:
            seed = decode_base64(private_key.replace(" ", "+"))
        except ValueError:
            seed = b""
        if len(seed) != SEED_BYTES:
            raise InvalidParameter("private_key is not valid")
        key = SigningKey.from_seed(_EPHEMERAL_KEY_ID, seed)
        if public_key != key.public_key:
            raise InvalidParameter("private_key does not belong to that token")
        if invite.signed_for != str(mxid):
            self._database.write(lambda tx: store.set_signed_for(tx, token_hash, str(mxid)))
        return key.sign(
            {"mxid": str(mxid), "sender": invite.sender, "token": token}, self._server_name
        )

    def sign_for(
        self, user_id: UserId, mxid: UserId, token: str, private_key: str
    ) -> dict[str, Any]:
        """The same for an account, which may sign for itself only. Raises: NotTheTokenOwner."""
        if user_id != mxid:
            raise NotTheTokenOwner
        return self.sign(mxid, token, private_key)

    def is_valid_key(self, public_key: str) -> bool:
        """Whether it is an ephemeral key that we handed out and that is not revoked."""
        key = parse_public_key(public_key)
        return key is not None and self._database.read(
            lambda tx: store.is_valid_ephemeral_key(tx, key)
        )

    def list(self, sender: UserId | None, limit: int = 1_000) -> list[Invite]:
        """The newest, of one sender or of all."""
        name = None if sender is None else str(sender)
        return self._database.read(lambda tx: store.invites_of(tx, name, limit))

    def revoke(self, token: str, sender: UserId | None) -> None:
        """It is not delivered, and its key is not valid any more. `sender`: only theirs.

        Raises: InviteUnknown.
        """
        token_hash, now_ms = self._hash(token), self._clock.now_ms()

        def work(tx: Transaction) -> None:
            invite = store.find_invite(tx, token_hash)
            if invite is None or (sender is not None and invite.sender != str(sender)):
                raise InviteUnknown
            store.revoke_invite(tx, token_hash, now_ms)

        self._database.write(work)

    def find_recipient(self, token: str, code: str) -> ThreePid:
        """Whom the message with this token and code went to. Raises: InviteUnknown."""
        return self._database.read(lambda tx: self._get_sent(tx, token, code)).recipient()

    def refuse_mail(self, token: str, code: str) -> ThreePid:
        """Whoever has the message of this invitation wants no other; returns their address.

        The token alone shows nothing: everyone in the room can read it. Raises: InviteUnknown.
        """
        now_ms = self._clock.now_ms()

        def work(tx: Transaction) -> ThreePid:
            invite = self._get_sent(tx, token, code)
            store.refuse_mail(tx, invite.threepid, now_ms)
            return invite.recipient()

        return self._database.write(work)

    def purge(self) -> int:
        """Delete what has expired, at most PURGE_ROWS; returns how many."""
        now_ms = self._clock.now_ms()
        return self._database.write(
            lambda tx: store.delete_expired(tx, now_ms, now_ms - _SENDING_MS, PURGE_ROWS)
        )

    def _pay_for_answer(self, caller: Caller) -> None:
        if caller.user_id is not None:
            self._budget.spend(1, ("lookup_account", str(caller.user_id)))
            return
        # Nobody is known: the address they come from stands for an account.
        self._limiter.spend(*ip_subjects("invite_ip", caller.ip))

    def _check_unbound(self, blind: bytes) -> None:
        current = self._database.read(lambda tx: associations_store.find_current(tx, blind))
        if current is not None and current.mxid and current.is_live(self._clock.now_ms()):
            raise ThreePidInUse(current.mxid)

    def _prepare(
        self, blind: bytes, request: InviteRequest, channel: Channel
    ) -> tuple[Invite, SigningKey, str]:
        """The stored invitation, its ephemeral key, and our public key that goes with it."""
        token, now_ms = new_token(), self._clock.now_ms()
        ephemeral = SigningKey.generate(_EPHEMERAL_KEY_ID)
        active = self._database.read(self._signing_keys.active)
        invite = Invite(
            token_hash=self._hash(token),
            token=token,
            threepid=blind,
            medium=request.threepid.medium,
            address=request.threepid.address,
            room_id=request.room_id,
            sender=str(request.sender),
            page=encode_page(request) if channel.short_links else None,
            key_id=active.key_id,
            created_at_ms=now_ms,
            expires_at_ms=now_ms + self._lifetime_ms,
            delivered_at_ms=None,
            revoked_at_ms=None,
            signed_for=None,
        )
        self._database.write(lambda tx: store.prepare_invite(tx, invite, ephemeral.public_key))
        return invite, ephemeral, encode_public_key(active.public_key)

    def _message(self, request: InviteRequest, token: str, seed: bytes) -> Invitation:
        signing = sign_url(self._public_url, token, encode_base64(seed, urlsafe=True))
        web_client = self._choose_web_client(request.texts)
        return Invitation(
            request=request,
            token=token,
            link=web_client_link(web_client, signing, request),
            short_link=short_link(self._public_url, seed),
            refuse_link=self._refuse_link(token),
        )

    def _make_live(self, tx: Transaction, invite: Invite) -> None:
        # Whoever binds holds the lock of an origin from before they look for invitations until
        # they commit. So a bind either is done, and is seen here, or sees a live invitation.
        associations_store.lock_origins(tx)
        store.make_invite_live(tx, invite.token_hash)
        now_ms = self._clock.now_ms()
        current = associations_store.find_current(tx, invite.threepid)
        if current is None or current.mxid is None or not current.is_live(now_ms):
            return
        logged = associations_store.find_logged(tx, current.version)
        if logged is not None:
            signed = logged.signed
            outbox.add(tx, invite.threepid, current.mxid, signed, invite.token_hash, now_ms)

    def _refuse_link(self, token: str) -> str:
        query = urlencode({"token": token, "code": self._refuse_code(token)})
        return f"{self._public_url}{REFUSE_PATH}?{query}"

    def _refuse_code(self, token: str) -> str:
        """What only the recipient is told: 43 URL-safe characters."""
        code = self._database.keys.keyed_hash("refuse mail", token)
        return str(encode_base64(code, urlsafe=True))

    def _get_sent(self, tx: Transaction, token: str, code: str) -> Invite:
        invite = store.find_invite(tx, self._hash(token))
        expected = self._refuse_code(token)
        if invite is None or not hmac.compare_digest(code.encode(), expected.encode()):
            raise InviteUnknown
        return invite

    def _choose_web_client(self, texts: Mapping[str, str]) -> str:
        wanted = texts.get(WEB_CLIENT, "").rstrip("/")
        return wanted if wanted in self._web_clients else self._web_client

    def _hash(self, token: str) -> bytes:
        return self._database.keys.keyed_hash("invite token", token)
