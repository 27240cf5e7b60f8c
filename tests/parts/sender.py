"""A sender that keeps the mails it is given, or refuses them."""

from email.message import EmailMessage
from threading import Lock

from identity.errors import EmailNotSent


class FakeSender:
    def __init__(self) -> None:
        self.mails: list[tuple[str, EmailMessage]] = []
        self.fails = False
        self.busy = False  # refuses before anything is stored
        self.before_send = lambda: None
        self._lock = Lock()

    def check_ready(self) -> None:
        if self.busy:
            raise EmailNotSent

    def send(self, message: EmailMessage, recipient: str) -> None:
        self.before_send()
        if self.fails:
            raise EmailNotSent
        with self._lock:
            self.mails.append((recipient, message))
