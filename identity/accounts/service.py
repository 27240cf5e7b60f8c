"""Use cases of accounts: register with an OpenID token, authenticate, log out.

Source: Matrix Identity Service API, "Authentication".
"""

import secrets
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Final

from identity.accounts import store
from identity.clock import HOUR_MS, Clock
from identity.database import PURGE_ROWS, Database, Transaction
from identity.errors import (
    HomeserverNotAllowed,
    StorageUnavailable,
    Unauthorized,
    UnknownAccessToken,
)
from identity.federation.homeserver import HomeserverClient
from identity.limits.service import Limiter
from identity.limits.subjects import ip_subjects
from identity.mxid import ServerName, UserId
from identity.sealing import StorageKeys

_TOKEN_BYTES: Final = 32
_MAX_TOKENS: Final = 50
_TOUCH_AFTER_MS: Final = HOUR_MS


class Accounts:
    """The people who use this server, known by their MXIDs."""

    def __init__(
        self,
        database: Database,
        homeservers: HomeserverClient,
        limiter: Limiter,
        clock: Clock,
        allowed_homeservers: Iterable[ServerName],
    ) -> None:
        self._database = database
        self._homeservers = homeservers
        self._limiter = limiter
        self._clock = clock
        self._allowed = frozenset(str(name).lower() for name in allowed_homeservers)

    def register(self, matrix_server_name: str, openid_token: str, ip: str) -> str:
        """Exchange an OpenID token for an access token of ours.

        Raises: InvalidParameter, HomeserverNotAllowed, LimitExceeded, HomeserverRefusedToken,
        HomeserverUnreachable, HomeserversBusy.
        """
        server = ServerName.parse(matrix_server_name)
        if self._allowed and str(server).lower() not in self._allowed:
            raise HomeserverNotAllowed
        self._homeservers.check_ready(server)
        self._limiter.spend(
            *ip_subjects("register_ip", ip),
            ("register_homeserver", server.host),
            ("userinfo_host", server.host),
        )
        user_id = self._homeservers.get_openid_subject(server, openid_token)
        return self.issue_token(user_id)

    def issue_token(self, user_id: UserId) -> str:
        """A new access token: 43 characters, URL-safe unpadded base64 of 256 random bits."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        now_ms = self._clock.now_ms()

        def work(tx: Transaction) -> None:
            if store.ensure_account(tx, str(user_id), now_ms):
                store.ensure_homeserver(tx, user_id.server.host, now_ms)
            # Before the insert: a clock that was set back must not make the new one the oldest.
            store.keep_newest_tokens(tx, str(user_id), _MAX_TOKENS - 1)
            store.insert_token(tx, self._hash(token), str(user_id), now_ms)

        self._database.write(work)
        return token

    def authenticate(self, token: str | None) -> UserId:
        """Whose token it is. Raises: Unauthorized when there is none, UnknownAccessToken."""
        if token is None:
            raise Unauthorized
        token_hash = self._hash(token)
        found = store.find_token(self._database, token_hash)
        if found is None:
            raise UnknownAccessToken
        user_id, used_at_ms = found
        now_ms = self._clock.now_ms()
        if now_ms - used_at_ms > _TOUCH_AFTER_MS:
            # A database that takes no writes still answers lookups.
            with suppress(StorageUnavailable):
                self._database.write(lambda tx: store.touch_token(tx, token_hash, now_ms))
        return UserId.parse(user_id)

    def log_out(self, token: str | None) -> None:
        """This token, and only this one, is dead. Raises: Unauthorized, UnknownAccessToken."""
        if token is None:
            raise Unauthorized
        token_hash = self._hash(token)
        if not self._database.write(lambda tx: store.delete_token(tx, token_hash)):
            raise UnknownAccessToken

    def purge(self, unused: timedelta) -> int:
        """Delete tokens that nobody has used for so long, at most PURGE_ROWS; returns how many."""
        used_before_ms = self._clock.now_ms() - unused // timedelta(milliseconds=1)
        return self._database.write(
            lambda tx: store.delete_unused_tokens(
                tx, used_before_ms=used_before_ms, limit=PURGE_ROWS
            )
        )

    def _hash(self, token: str) -> bytes:
        return hash_token(self._database.keys, token)


def hash_token(keys: StorageKeys, token: str) -> bytes:
    """32 bytes, in place of which nothing of an access token is stored."""
    return keys.keyed_hash("access token", token)
