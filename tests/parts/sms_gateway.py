"""A gateway as `[sms.http]` describes it, and no kinder.

with FakeGateway() as gateway:
    ... make_server(gateway.settings()) ...
    assert gateway.texts[0].code == "123456"
"""

import json
import re
from typing import Any

from parts.homeserver import Reply, Request
from parts.provider import FakeProvider, Text

PATH = "/send"
AUTHORIZATION = "Bearer gateway-secret"


class FakeGateway(FakeProvider):
    def __init__(self, **tls: Any) -> None:
        super().__init__(self._take_text, **tls)

    def settings(self) -> dict[str, str]:
        """For `make_server`, or with IDENTITY_ in front for a process."""
        return {
            "SMS__PROVIDER": "http",
            "SMS__FROM": "Matrix",
            "SMS__ALLOWED_CALLING_CODES": '["*"]',
            "SMS__HTTP__URL": f"{self.url}{PATH}",
            "SMS__HTTP__HEADERS__AUTHORIZATION": AUTHORIZATION,
        }

    def _take_text(self, request: Request) -> Reply:
        if (request.method, request.target) != ("POST", PATH):
            return Reply(404)
        if request.headers["Authorization"] != AUTHORIZATION:
            return Reply(401)
        if request.headers["Content-Type"] != "application/json":
            return Reply(415)
        message = json.loads(request.body)
        if set(message) != {"to", "from", "body"} or not re.fullmatch(
            r"\+[1-9][0-9]{0,14}", message["to"]
        ):
            return Reply(422)
        self.texts.append(Text(message["to"], message["from"], message["body"]))
        return Reply(202, b"")
