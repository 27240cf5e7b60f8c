"""Who sends a composed mail: an SMTP server, or a folder of files in development."""

from email.message import EmailMessage
from typing import TYPE_CHECKING, Protocol

from identity.clock import Clock
from identity.messaging.outbox import FileOutbox
from identity.messaging.smtp import SmtpSender

if TYPE_CHECKING:
    from identity.config import Config


class Sender(Protocol):
    """Sends mail while the caller waits; nothing is queued (decision 10)."""

    def check_ready(self) -> None:
        """To be asked before anything is stored for a mail: costs nothing, and spares the
        database what would be sent nowhere. Raises: EmailNotSent while none can be sent.
        """

    def send(self, message: EmailMessage, recipient: str) -> None:
        """Hand the mail over for one recipient, a canonical e-mail address.

        When this returns, the mail is accepted. It takes at most `email.timeout`.
        Raises: EmailNotSent for every failure.
        """


def sender_from_config(config: "Config", clock: Clock) -> Sender:
    """The configured sender. Raises: SetupError when a file that it names cannot be used."""
    if config.email_backend == "smtp":
        return SmtpSender(config, clock)
    return FileOutbox(config.outbox_path, clock)
