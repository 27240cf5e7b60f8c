"""Any HTTP gateway: one POST of JSON, and any 2xx means accepted.

    {"to": "+447700900001", "from": "Matrix", "body": "…"}

429 means too many, with Retry-After in seconds where the gateway knows. Every other status means
that nothing was accepted; what the answer says is not read.
"""

import json
from typing import Final

from identity.config import Http
from identity.federation.transport import Deadline
from identity.sms.destination import Originators
from identity.sms.outcome import NotAccepted, parse_retry_after
from identity.sms.transport import Transport
from identity.threepid import ThreePid


class Gateway:
    """Sends through the gateway that `[sms.http]` names. Safe to share between threads."""

    name: Final = "http"

    def __init__(self, settings: Http, originators: Originators, transport: Transport) -> None:
        self._url = settings.url
        self._headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
        self._originators = originators
        self._transport = transport

    def send(self, number: ThreePid, text: str, deadline: Deadline) -> None:
        """Raises: NotAccepted; Unclear."""
        message = {
            "to": f"+{number.address}",
            "from": self._originators.find(number) or "",
            "body": text,
        }
        answer = self._transport.post(
            self._url,
            {"Content-Type": "application/json", "Accept": "application/json", **self._headers},
            json.dumps(message).encode(),
            deadline,
        )
        if answer.status == 429:
            raise NotAccepted(
                "429", retry_after_ms=parse_retry_after(answer.headers["Retry-After"])
            )
        if not 200 <= answer.status < 300:
            raise NotAccepted(str(answer.status))
