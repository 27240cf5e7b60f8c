"""What this server asks of homeservers.

Each call is bounded: a quarter of the process's threads may wait for homeservers at once,
all steps of a call share one time-out, and a server that keeps timing out is left alone
for a while. Another destination is tried only while nothing was sent.

Source: Matrix server-server API, GET /_matrix/federation/v1/openid/userinfo,
GET /_matrix/key/v2/server, POST /_matrix/federation/v1/3pid/onbind.
"""

import socket
import threading
from collections.abc import Callable
from random import Random
from secrets import SystemRandom
from typing import Final
from urllib.parse import quote

import structlog

from identity import strict_json
from identity.breaker import Breaker
from identity.clock import Clock
from identity.config import Federation
from identity.errors import (
    HomeserverRefusedToken,
    HomeserversBusy,
    HomeserverUnreachable,
    InvalidParameter,
    NotJson,
)
from identity.federation.discovery import Discovery
from identity.federation.resolver import Resolver
from identity.federation.transport import (
    CallError,
    Connect,
    ConnectError,
    Deadline,
    Destination,
    Response,
    Transport,
)
from identity.mxid import ServerName, UserId

MAX_USERINFO_BYTES: Final = 5 * 1024
MAX_KEYS_BYTES: Final = 50 * 1024
# A notification is leased for 30 seconds, in which there may be two calls.
MAX_ONBIND_S: Final = 10.0

_ONBIND: Final = "/_matrix/federation/v1/3pid/onbind"

Ask = Callable[[Destination, Deadline], Response]

log = structlog.get_logger(__name__)


class HomeserverClient:
    """Calls homeservers. One per process; thread-safe."""

    def __init__(
        self,
        settings: Federation,
        threads: int,
        clock: Clock,
        resolver: Resolver,
        *,
        connect: Connect = socket.create_connection,
        random: Random | None = None,
    ) -> None:
        """`threads`: how many requests this process works on at once.

        Raises: SetupError when `ca_file` cannot be used.
        """
        self._timeout_s = settings.timeout.total_seconds()
        self._transport = Transport(settings, resolver, connect)
        self._discovery = Discovery(self._transport.get, resolver, clock, random or SystemRandom())
        self._breaker = Breaker(clock)
        self._free_places = threading.BoundedSemaphore(max(1, threads // 4))

    def check_ready(self, server: ServerName) -> None:
        """To be asked before anything is stored for a call: costs nothing.

        Raises: HomeserverUnreachable, HomeserversBusy while `server` would not be called.
        """
        if self._breaker.is_open(str(server).lower()):
            raise HomeserverUnreachable
        if not self._free_places.acquire(blocking=False):
            raise HomeserversBusy
        self._free_places.release()

    def get_openid_subject(self, server_name: ServerName, openid_token: str) -> UserId:
        """The user to whom `server_name` gave this OpenID token.

        Raises: HomeserverRefusedToken when the homeserver does not know the token, or names a
        user who is not its own; HomeserverUnreachable when it gives no usable answer;
        HomeserversBusy at once when too many calls are under way.
        """
        response = self._get(
            server_name,
            f"/_matrix/federation/v1/openid/userinfo?access_token={quote(openid_token, safe='')}",
            MAX_USERINFO_BYTES,
        )
        if 400 <= response.status < 500:
            raise HomeserverRefusedToken
        if response.status != 200:
            raise HomeserverUnreachable
        user_id = _parse_subject(response.body)
        # Server names are compared as they were written: upper and lower case differ.
        if str(user_id.server) != str(server_name):
            raise HomeserverRefusedToken
        return user_id

    def get_server_keys(self, server: ServerName) -> bytes:
        """What `server` publishes as its keys, unchecked; at most `MAX_KEYS_BYTES`.

        Raises: HomeserverUnreachable, HomeserversBusy.
        """
        response = self._get(server, "/_matrix/key/v2/server", MAX_KEYS_BYTES)
        if response.status != 200:
            raise HomeserverUnreachable
        return response.body

    def send_onbind(self, server: ServerName, body: bytes, method: str) -> int:
        """Tell `server` of a binding: `body` is JSON, `method` POST or PUT. Returns the status.

        Sent once at most: an error can mean that it arrived. Takes MAX_ONBIND_S at most.
        Raises: HomeserverUnreachable, HomeserversBusy.
        """
        return self._call(
            server,
            lambda destination, deadline: self._transport.send(
                method, destination, _ONBIND, body, deadline
            ),
            min(self._timeout_s, MAX_ONBIND_S),
        ).status

    def _get(self, server: ServerName, target: str, max_body_bytes: int) -> Response:
        """Raises: HomeserverUnreachable, HomeserversBusy."""
        return self._call(
            server,
            lambda destination, deadline: self._transport.get(
                destination, target, max_body_bytes, deadline
            ),
            self._timeout_s,
        )

    def _call(self, server: ServerName, ask: Ask, timeout_s: float) -> Response:
        """Raises: HomeserverUnreachable, HomeserversBusy."""
        name = str(server).lower()
        if self._breaker.is_open(name):
            raise HomeserverUnreachable
        if not self._free_places.acquire(blocking=False):
            raise HomeserversBusy
        try:
            response = self._try_each(server, ask, timeout_s)
        except CallError as error:
            self._breaker.record(name, timed_out=error.timed_out)
            log.info("homeserver_call_failed", server=name, reason=error.reason)
            raise HomeserverUnreachable from error
        finally:
            self._free_places.release()
        self._breaker.record(name, timed_out=False)
        return response

    def _try_each(self, server: ServerName, ask: Ask, timeout_s: float) -> Response:
        """The first answer. Raises: CallError, that of the last destination tried."""
        deadline = Deadline.after(timeout_s)
        failure = ConnectError("service not offered")
        for destination in self._discovery.find(server, deadline):
            try:
                return ask(destination, deadline)
            except ConnectError as error:
                failure = error
        raise failure


def _parse_subject(body: bytes) -> UserId:
    """Raises: HomeserverUnreachable when there is no `sub`, HomeserverRefusedToken when it is no MXID."""
    try:
        userinfo = strict_json.decode(body)
        subject = userinfo["sub"]
    except (NotJson, KeyError, TypeError):
        raise HomeserverUnreachable from None
    if not isinstance(subject, str):
        raise HomeserverRefusedToken
    try:
        return UserId.parse(subject)
    except InvalidParameter:
        raise HomeserverRefusedToken from None
