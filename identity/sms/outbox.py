"""The provider for development: text messages become files beside the mails."""

from pathlib import Path
from typing import Final

import structlog

from identity.clock import Clock
from identity.federation.transport import Deadline
from identity.messaging.outbox import Folder
from identity.sms.destination import Originators
from identity.sms.outcome import NotAccepted
from identity.threepid import ThreePid

log = structlog.get_logger(__name__)


class TextOutbox:
    """Writes each message as `<time>-<n>.txt`: To, From, an empty line, the text."""

    name: Final = "file"

    def __init__(self, folder: Path, originators: Originators, clock: Clock) -> None:
        self._folder = Folder(folder, clock)
        self._originators = originators

    def send(self, number: ThreePid, text: str, deadline: Deadline) -> None:
        """Raises: NotAccepted."""
        del deadline  # a folder answers at once
        head = f"To: +{number.address}\nFrom: {self._originators.find(number) or ''}\n"
        try:
            path = self._folder.write(f"{head}\n{text}\n".encode(), ".txt")
        except OSError as error:
            raise NotAccepted(type(error).__name__) from None
        log.info("sms_written", path=str(path))
