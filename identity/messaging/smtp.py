"""Sending mail by SMTP, in bounded time, to a server that has proved who it is.

- Certificates and host names are always verified; where STARTTLS is configured and not
  offered, nothing is sent.
- `email.timeout` bounds the whole conversation, name resolution included, however slowly the
  server answers. Each conversation runs in a thread of its own, so that the caller can leave
  it; one that was left does not send any more.
- At most a quarter of a process's threads wait for mail at once. Three time-outs in a row stop
  all sending for 10 s. Both answer at once.
- Logs name the reason, never the address.

Source: decision 10; security.md, threat 23 and experiment E23; RFC 3207; RFC 5321.
"""

import smtplib
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from email.message import EmailMessage
from typing import TYPE_CHECKING

import structlog

from identity.breaker import Breaker
from identity.clock import Clock
from identity.errors import EmailNotSent, SetupError
from identity.messaging.email import envelope_address, mail_host

if TYPE_CHECKING:
    from pathlib import Path

    from identity.config import Config

log = structlog.get_logger(__name__)

# Connects to a host and port within a time-out in seconds.
Connect = Callable[[tuple[str, int], float], socket.socket]


class SmtpSender:
    """Sends through the configured server. Safe to share between threads."""

    def __init__(
        self, config: "Config", clock: Clock, connect: Connect = socket.create_connection
    ) -> None:
        """Raises: SetupError when smtp_ca_file cannot be used."""
        self._connect = connect
        self._config = config.email
        self._timeout_s = config.email.timeout.total_seconds()
        self._own_host = mail_host(config.server.public_url)
        self._tls = _tls_context(config.email.smtp_ca_file)
        self._slots = threading.BoundedSemaphore(max(1, config.server.threads // 4))
        self._breaker = Breaker(clock)

    def check_ready(self) -> None:
        """Raises: EmailNotSent."""
        if self._breaker.is_open(self._config.smtp_host):
            raise _not_sent("breaker_open")
        if not self._slots.acquire(blocking=False):
            raise _not_sent("busy")
        self._slots.release()

    def send(self, message: EmailMessage, recipient: str) -> None:
        """Hand the mail over to the server. Raises: EmailNotSent."""
        address = envelope_address(recipient)
        if self._breaker.is_open(self._config.smtp_host):
            raise _not_sent("breaker_open")
        if not self._slots.acquire(blocking=False):
            raise _not_sent("busy")
        # It is given a name because it would look up its own, which can hang.
        smtp = smtplib.SMTP(local_hostname=self._own_host)
        outcome: Future[None] = Future()
        conversation = threading.Thread(
            target=self._converse, args=(smtp, message, address, outcome), daemon=True
        )
        try:
            conversation.start()
        except RuntimeError:
            self._slots.release()
            raise _not_sent("no_thread") from None
        try:
            outcome.result(self._timeout_s)
        except TimeoutError:
            outcome.cancel()
            _hang_up(smtp)
            self._breaker.record(self._config.smtp_host, timed_out=True)
            raise _not_sent("time_out") from None
        except (OSError, ValueError) as error:  # what sockets, ssl, smtplib and codecs raise
            self._breaker.record(self._config.smtp_host, timed_out=False)
            raise _not_sent(type(error).__name__, _find_code(error)) from None
        self._breaker.record(self._config.smtp_host, timed_out=False)

    def _converse(
        self, smtp: smtplib.SMTP, message: EmailMessage, address: str, outcome: Future[None]
    ) -> None:
        failure: Exception | None = None
        try:
            self._open_session(smtp, outcome)
            smtp.send_message(message, message["From"].addresses[0].addr_spec, [address])
            # The server has the mail. Its farewell is not awaited: it might never end.
            with suppress(OSError):
                smtp.putcmd("QUIT")
        except Exception as error:  # noqa: BLE001 - it is raised again in the thread that waits
            failure = error
        smtp.close()
        # The place is free before the caller goes on, and perhaps sends the next mail.
        self._slots.release()
        with suppress(InvalidStateError):  # the caller has left
            if failure is None:
                outcome.set_result(None)
            else:
                outcome.set_exception(failure)

    def _open_session(self, smtp: smtplib.SMTP, outcome: Future[None]) -> None:
        """Connect, encrypt, log in.

        A caller who has left hangs up, which ends whatever is done with the socket it finds, so
        that a mail reported as not sent is not sent. A new socket needs a look of its own.
        """
        host = self._config.smtp_host
        # The caller's patience decides; the socket's own only ends what cannot be hung up.
        timeout_s = self._timeout_s + 1
        smtp.sock = self._connect((host, self._config.smtp_port), timeout_s)
        if self._config.tls == "tls":
            smtp.sock = self._tls.wrap_socket(smtp.sock, server_hostname=host)
        _stop_if_left(outcome)
        code, reply = smtp.getreply()
        if code != 220:
            raise smtplib.SMTPConnectError(code, reply)
        if self._config.tls == "starttls":
            # The name that starttls() checks the certificate for; only the constructor sets it.
            smtp._host = host  # type: ignore[attr-defined]  # noqa: SLF001 - there is no other way
            smtp.starttls(context=self._tls)
            _stop_if_left(outcome)
        if self._config.smtp_username:
            password = self._config.smtp_password.get_secret_value()
            smtp.login(self._config.smtp_username, password)


def _tls_context(ca_file: "Path | None") -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:  # an SSLError is one
            raise SetupError(f"[email] smtp_ca_file: {ca_file} cannot be used: {error}") from None
    return context


def _stop_if_left(outcome: Future[None]) -> None:
    if outcome.cancelled():
        raise TimeoutError


def _hang_up(smtp: smtplib.SMTP) -> None:
    """Wake the thread that waits for the server.

    SSLSocket.shutdown() would first forget its TLS state, and the other thread could then send
    in the clear; socket's own does not.
    """
    connection = smtp.sock
    if connection is not None:
        with suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _not_sent(reason: str, smtp_code: int | None = None) -> EmailNotSent:
    log.warning("email_not_sent", reason=reason, smtp_code=smtp_code)
    return EmailNotSent()


def _find_code(error: Exception) -> int | None:
    if isinstance(error, smtplib.SMTPResponseException):
        return error.smtp_code
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return next((code for code, _ in error.recipients.values()), None)
    return None
