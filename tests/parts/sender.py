"""Senders that keep the mails and the texts they are given, or refuse them."""

from email.message import EmailMessage
from threading import Lock

from identity.errors import EmailNotSent, IdentityError, SmsNotSent
from identity.threepid import ThreePid


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


class FakeTextSender:
    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []  # digits, text
        self.failure: IdentityError | None = None
        self.busy = False  # refuses before anything is stored
        self.before_send = lambda: None
        self._lock = Lock()

    def check_ready(self) -> None:
        if self.busy:
            raise SmsNotSent

    def send(self, number: ThreePid, text: str) -> None:
        self.before_send()
        if self.failure is not None:
            raise self.failure
        with self._lock:
            self.texts.append((number.address, text))
