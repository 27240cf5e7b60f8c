"""An SMTP server to send to: aiosmtpd on loopback, in a thread, with failure switches.

with MailServer(tls="starttls") as server:
    ... send to localhost:<server.port>, trusting server.ca_file ...
    server.wait_for_mails(1)
    assert server.mails[0].rcpt_tos == ["alice@example.org"]
"""

import asyncio
import functools
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTPUTF8
from typing import Any, Literal, Self

import trustme
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword
from parts.homeserver import authority, ca_file


@dataclass(frozen=True)
class Mail:
    """What the server took over: the envelope and the bytes as they came."""

    mail_from: str
    rcpt_tos: list[str]
    raw: bytes

    @property
    def message(self) -> EmailMessage:
        return message_from_bytes(self.raw, policy=SMTPUTF8)

    @property
    def text(self) -> str:
        return self.message.get_body(("plain",)).get_content()

    @property
    def html(self) -> str:
        return self.message.get_body(("html",)).get_content()


class MailServer:
    """`names` are those of the certificate. `login` is needed if given, and then STARTTLS is too.

    A command for `hang_at` and `drop_at` is "EHLO", "STARTTLS", "AUTH", "MAIL", "RCPT" or "DATA";
    "CONNECT" means instead of the greeting.
    """

    def __init__(
        self,
        *names: str,
        tls: Literal["none", "starttls", "tls"] = "none",
        expired: bool = False,
        trusted: bool = True,
        login: tuple[str, str] | None = None,
        smtputf8: bool = True,
    ) -> None:
        self.mails: list[Mail] = []
        self.commands: list[str] = []  # the verbs, of all connections
        self.connections = 0
        self.hang_at: str | None = None
        self.drop_at: str | None = None
        self.drip_s: float | None = None  # the pause before each byte of each reply
        self.rcpt_reply: str | None = None  # "550 no such user" instead of the usual one
        self.data_reply: str | None = None  # after the content
        self.ca_file = ca_file()

        self._tls = tls
        self._login = login
        self._smtputf8 = smtputf8
        issuer = authority() if trusted else trustme.CA()
        not_after = datetime.now(UTC) - timedelta(days=1) if expired else None
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate = issuer.issue_cert(*(names or ("localhost", "127.0.0.1")), not_after=not_after)
        certificate.configure_cert(self._context)

        self._changed = threading.Condition()
        self._started = threading.Event()
        self._open: set[_Conversation] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(5)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 5) -> None:
        """Until `condition` holds; it is tried after each command, mail and connection."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout_s)

    def wait_for_mails(self, count: int, timeout_s: float = 5) -> list[Mail]:
        self.wait_for(lambda: len(self.mails) >= count, timeout_s)
        return list(self.mails)

    def wait_until_idle(self, timeout_s: float = 5) -> None:
        """Until every connection has ended."""
        self.wait_for(lambda: not self._open, timeout_s)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        listener = await self._loop.create_server(
            lambda: _Conversation(self, self._loop),
            "127.0.0.1",
            0,
            ssl=self._context if self._tls == "tls" else None,
        )
        self.port: int = listener.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopping.wait()
        listener.close()
        for conversation in list(self._open):
            conversation.cut()
        await listener.wait_closed()
        await self._idle.wait()

    @property
    def smtp_options(self) -> dict[str, Any]:
        return {
            "enable_SMTPUTF8": self._smtputf8,
            "tls_context": self._context if self._tls == "starttls" else None,
            "require_starttls": self._tls == "starttls",
            "auth_required": self._login is not None,
            "authenticator": self._authenticate,
        }

    def _authenticate(self, _server: Any, _session: Any, _envelope: Any, mechanism: str, data: Any):
        given = isinstance(data, LoginPassword) and (data.login.decode(), data.password.decode())
        return AuthResult(success=given == self._login, handled=False)

    def note(self, change: Callable[[], Any]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()

    def joined(self, conversation: "_Conversation") -> None:
        self.connections += 1
        self._open.add(conversation)
        self._idle.clear()

    def left(self, conversation: "_Conversation") -> None:
        self._open.discard(conversation)
        if not self._open:
            self._idle.set()

    async def handle_RCPT(  # noqa: N802 - aiosmtpd looks for this name
        self, _server: Any, _session: Any, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if self.rcpt_reply:
            return self.rcpt_reply
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Envelope) -> str:  # noqa: N802 - likewise
        if self.data_reply:
            return self.data_reply
        mail = Mail(envelope.mail_from, list(envelope.rcpt_tos), envelope.content)
        self.note(lambda: self.mails.append(mail))
        return "250 OK"


class _Conversation(SMTP):
    def __init__(self, server: MailServer, loop: asyncio.AbstractEventLoop) -> None:
        self._switches = server
        super().__init__(server, hostname="mail.test", loop=loop, **server.smtp_options)
        self._smtp_methods = {
            verb: functools.partial(self._answer, verb, method)
            for verb, method in self._smtp_methods.items()
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._switches.note(lambda: self._switches.joined(self))

    def eof_received(self) -> bool | None:
        # asyncio would keep a half-closed connection for as long as there is something to say.
        troubled = self._switches.hang_at or self._switches.drip_s is not None
        return False if troubled else super().eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._switches.note(lambda: self._switches.left(self))

    def cut(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    async def push(self, status: str | bytes) -> None:
        if self._switches.drip_s is None:
            await super().push(status)
            return
        line = status if isinstance(status, bytes) else status.encode()
        for byte in line + b"\r\n":
            await asyncio.sleep(self._switches.drip_s)
            self._writer.write(bytes([byte]))
            await self._writer.drain()

    async def _handle_client(self) -> None:
        await self._fail("CONNECT")
        await super()._handle_client()

    async def _answer(self, verb: str, method: Callable[[str | None], Any], argument: str | None):
        self._switches.note(lambda: self._switches.commands.append(verb))
        await self._fail(verb)
        await method(argument)

    async def _fail(self, stage: str) -> None:
        if self._switches.hang_at == stage:
            await asyncio.Event().wait()
        if self._switches.drop_at == stage:
            self.cut()
            await asyncio.Event().wait()  # until the lost connection cancels this task
