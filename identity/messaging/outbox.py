"""An outbox for development: mails become files instead of being sent."""

import itertools
import os
from contextlib import suppress
from copy import deepcopy
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path

import structlog

from identity.clock import Clock
from identity.errors import EmailNotSent

log = structlog.get_logger(__name__)


class FileOutbox:
    """Writes each mail as `<time>-<n>.eml`, mode 0600, and names the file in the log.

    A file appears whole or not at all. Several processes may share the folder.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock

    def check_ready(self) -> None:
        """A folder always is."""

    def send(self, message: EmailMessage, recipient: str) -> None:
        """Write the mail; `recipient` stands in its To header. Raises: EmailNotSent."""
        del recipient
        try:
            path = self._write(_readable(message))
        except OSError as error:
            log.warning("email_not_sent", reason=type(error).__name__, folder=str(self._folder))
            raise EmailNotSent from None
        log.info("email_written", path=str(path))

    def _write(self, content: bytes) -> Path:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        now = datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC)
        path, draft = self._reserve(f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03}Z")
        try:
            draft.write_bytes(content)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        return draft.replace(path)

    def _reserve(self, time: str) -> tuple[Path, Path]:
        """The first name that is free, and the empty draft that keeps it for us."""
        for number in itertools.count():
            path = self._folder / f"{time}-{number}.eml"
            draft = path.with_suffix(".tmp")
            with suppress(FileExistsError):
                os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                if not path.exists():
                    return path, draft
                draft.unlink()
        raise AssertionError("there is always a higher number")


def _readable(message: EmailMessage) -> bytes:
    """The mail as 8-bit text: no SMTP server is in the way, but a person, who copies the link."""
    copy = deepcopy(message)
    for part in copy.walk():
        if part.get_content_maintype() == "text" and isinstance(part, EmailMessage):
            part.set_content(part.get_content(), subtype=part.get_content_subtype(), cte="8bit")
    return copy.as_bytes()
