"""An outbox for development: messages become files instead of being sent."""

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


class Folder:
    """Where each message becomes a file `<time>-<n><suffix>`, mode 0600.

    A file appears whole or not at all. Several processes may share the folder.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self._clock = clock

    def write(self, content: bytes, suffix: str) -> Path:
        """The new file. `suffix`: with its dot. Raises: OSError."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        now = datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC)
        time = f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03}Z"
        path, draft = self._reserve(time, suffix)
        try:
            draft.write_bytes(content)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        return draft.replace(path)

    def _reserve(self, time: str, suffix: str) -> tuple[Path, Path]:
        """The first name that is free, and the empty draft that keeps it for us."""
        for number in itertools.count():
            path = self.path / f"{time}-{number}{suffix}"
            draft = path.with_suffix(".tmp")
            with suppress(FileExistsError):
                os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                if not path.exists():
                    return path, draft
                draft.unlink()
        raise AssertionError("there is always a higher number")


class FileOutbox:
    """Writes each mail as `<time>-<n>.eml` and names the file in the log."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = Folder(folder, clock)

    def check_ready(self) -> None:
        """A folder always is."""

    def send(self, message: EmailMessage, recipient: str) -> None:
        """Write the mail; `recipient` stands in its To header. Raises: EmailNotSent."""
        del recipient
        try:
            path = self._folder.write(_readable(message), ".eml")
        except OSError as error:
            folder = str(self._folder.path)
            log.warning("email_not_sent", reason=type(error).__name__, folder=folder)
            raise EmailNotSent from None
        log.info("email_written", path=str(path))


def _readable(message: EmailMessage) -> bytes:
    """The mail as 8-bit text: no SMTP server is in the way, but a person, who copies the link."""
    copy = deepcopy(message)
    for part in copy.walk():
        if part.get_content_maintype() == "text" and isinstance(part, EmailMessage):
            part.set_content(part.get_content(), subtype=part.get_content_subtype(), cte="8bit")
    return copy.as_bytes()
