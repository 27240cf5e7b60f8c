"""Channels: how people are reached, one for each medium.

Validation sessions and invitations go the same way for every medium. What differs is here:
which destinations are served, what a message costs in permits, what it says, who carries it.

For one message, in this order: `check_served`, `check_ready`, `admit_…`; the caller stores what it
prepared; `send_…`, which settles the permits. A caller that never comes to send gives them back.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeAlias
from urllib.parse import urlencode

from identity.accounts.caller import Caller
from identity.config import Config
from identity.invites.invite import InviteRequest
from identity.limits.service import Limiter, Subject
from identity.limits.subjects import ip_subjects
from identity.messaging.domains import DomainPolicy
from identity.messaging.email import Composer
from identity.messaging.invitation import invitation_mail
from identity.messaging.sender import Sender
from identity.messaging.verification import verification_mail
from identity.mxid import UserId
from identity.threepid import Medium, ThreePid


@dataclass(frozen=True, slots=True)
class Verification:
    """What a message that proves an address is made of.

    requested_by: the MXID of the account that asks, None where the request named none.
    """

    threepid: ThreePid
    sid: str
    client_secret: str = field(repr=False)
    token: str = field(repr=False)
    requested_by: str | None
    brand: str | None


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a message that invites is made of. Both links carry the private half of its key.

    link: into the web client. short_link: to our page about it, where the other is found, and
    the one of `refuse_link`, where the recipient can ask for no more invitations.
    """

    request: InviteRequest
    token: str = field(repr=False)
    link: str = field(repr=False)
    short_link: str = field(repr=False)
    refuse_link: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Permits:
    """What was spent for one message; one of the two is called, once. Neither fails."""

    give_back: Callable[[], None]
    sent: Callable[[], None]


class Channel(Protocol):
    """One medium. Threads may share it."""

    @property
    def short_links(self) -> bool:
        """Whether an invitation carries the short link, so that our page has to say the rest."""

    def check_served(self, threepid: ThreePid) -> None:
        """Raises: InvalidEmail, DestinationRejected for what the operator does not serve."""

    def check_ready(self) -> None:
        """To be asked before anything is spent or stored: costs nothing.

        Raises: EmailNotSent, SmsNotSent while no message can be sent.
        """

    def admit_verification(self, caller: Caller, threepid: ThreePid) -> Permits:
        """Raises: LimitExceeded, DestinationRejected, StorageUnavailable; nothing is spent then."""

    def admit_invitation(self, caller: Caller, threepid: ThreePid, *subjects: Subject) -> Permits:
        """`subjects`: what is to be spent for it besides. Raises: as `admit_verification`."""

    def send_verification(self, message: Verification, permits: Permits) -> None:
        """When this returns, the message is accepted. It takes some seconds at most.

        Raises: EmailNotSent, SmsNotSent, DestinationRejected, InvalidPhoneNumber, LimitExceeded.
        """

    def send_invitation(self, message: Invitation, permits: Permits) -> None:
        """Likewise."""

    def token_refused(self) -> None:
        """A token was submitted, and it was wrong."""

    def token_proved(self, threepid: ThreePid, owner: UserId | None) -> None:
        """A token was right: the message was read. Told once for each session.

        `owner`: the account that had it sent; None where it was nobody known.
        """


# A medium that is missing is not served at all.
Channels: TypeAlias = Mapping[Medium, Channel]


class EmailChannel:
    """E-mail: mails with links, to the domains that the operator serves."""

    short_links = False

    def __init__(
        self, sender: Sender, composer: Composer, limiter: Limiter, config: Config
    ) -> None:
        self._sender = sender
        self._composer = composer
        self._limiter = limiter
        self._domains = DomainPolicy(config.email.allowed_domains, config.email.denied_domains)
        page = "confirm" if config.validation.confirm_page else "submitToken"
        self._link = f"{config.server.public_url}/_matrix/identity/v2/validate/email/{page}"

    def check_served(self, threepid: ThreePid) -> None:
        self._domains.check(_domain(threepid))

    def check_ready(self) -> None:
        self._sender.check_ready()

    def admit_verification(self, caller: Caller, threepid: ThreePid) -> Permits:
        return self._spend(
            threepid,
            ("email_recipient", threepid.address),
            *([] if caller.user_id is None else [("email_account", str(caller.user_id))]),
            *ip_subjects("email_ip", caller.ip),
        )

    def admit_invitation(self, caller: Caller, threepid: ThreePid, *subjects: Subject) -> Permits:
        del caller  # who invites is among the subjects
        return self._spend(threepid, *subjects)

    def send_verification(self, message: Verification, permits: Permits) -> None:
        query = {
            "sid": message.sid,
            "client_secret": message.client_secret,
            "token": message.token,
        }
        mail = verification_mail(
            self._composer,
            message.threepid,
            token=message.token,
            link=f"{self._link}?{urlencode(query)}",
            requested_by=message.requested_by,
            brand=message.brand,
        )
        self._sender.send(mail, message.threepid.address)
        permits.sent()

    def send_invitation(self, message: Invitation, permits: Permits) -> None:
        mail = invitation_mail(
            self._composer,
            message.request,
            token=message.token,
            link=message.link,
            refuse_link=message.refuse_link,
        )
        self._sender.send(mail, message.request.threepid.address)
        permits.sent()

    def token_refused(self) -> None:
        """A token has 192 bits: nobody guesses one."""

    def token_proved(self, threepid: ThreePid, owner: UserId | None) -> None:
        """No mail is refused because others were not read."""

    def _spend(self, threepid: ThreePid, *subjects: Subject) -> Permits:
        spent = (*subjects, ("email_domain", _domain(threepid)), ("email_global", ""))
        self._limiter.spend(*spent)
        return Permits(give_back=partial(self._limiter.refund, *spent), sent=lambda: None)


def _domain(threepid: ThreePid) -> str:
    return threepid.address.rpartition("@")[2]
