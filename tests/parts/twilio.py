"""Twilio's Messages resource, as its OpenAPI description has it: what departs from that is refused.

with FakeTwilio() as twilio:
    ... make_server(twilio.settings()) ...
    twilio.fail(21211)
    assert twilio.texts == []

Source: operation CreateMessage of twilio_api_v2010 (github.com/twilio/twilio-oai), and
https://www.twilio.com/docs/api/errors for what a wrong request is told.
"""

import base64
import re
from typing import Any
from urllib.parse import parse_qs

from parts.homeserver import Reply, Request
from parts.provider import FakeProvider, Text

ACCOUNT_SID = "AC" + "0123456789abcdef" * 2
SERVICE_SID = "MG" + "0123456789abcdef" * 2
AUTH_TOKEN = "twilio-secret"
FROM = "+15005550006"

# The properties of CreateMessageRequest.
_FIELDS = {
    "To",
    "StatusCallback",
    "ApplicationSid",
    "MaxPrice",
    "ProvideFeedback",
    "Attempt",
    "ValidityPeriod",
    "ForceDelivery",
    "ContentRetention",
    "AddressRetention",
    "SmartEncoded",
    "PersistentAction",
    "TrafficType",
    "ShortenUrls",
    "ScheduleType",
    "SendAt",
    "SendAsMms",
    "ContentVariables",
    "RiskCheck",
    "From",
    "FallbackFrom",
    "MessagingServiceSid",
    "Body",
    "MediaUrl",
    "ContentSid",
    "MessageIntent",
}
_E164 = re.compile(r"\+[1-9][0-9]{1,14}")
_SENDER_ID = re.compile(r"[A-Za-z0-9 &+_-]{1,11}")
_SERVICE = re.compile(r"MG[0-9a-fA-F]{32}")

# The status that comes with an error, where it is not 400.
_STATUSES = {14107: 429, 20003: 401, 20404: 404, 20429: 429, 21408: 403, 20500: 500, 20503: 503}


class FakeTwilio(FakeProvider):
    def __init__(self, **tls: Any) -> None:
        super().__init__(self._take_text, **tls)

    def settings(self) -> dict[str, str]:
        """For `make_server`, or with IDENTITY_ in front for a process."""
        return {
            "SMS__PROVIDER": "twilio",
            "SMS__FROM": FROM,
            "SMS__ALLOWED_CALLING_CODES": '["*"]',
            "SMS__TWILIO__ACCOUNT_SID": ACCOUNT_SID,
            "SMS__TWILIO__AUTH_TOKEN": AUTH_TOKEN,
            "SMS__TWILIO__API_BASE_URL": self.url,
        }

    def fail(self, code: int, **headers: str) -> None:
        """Every message is answered with this error from now on."""
        self.answer = error(code, **headers)

    def fail_later(self, code: int) -> None:
        """Every message is taken, and said at once to have failed."""
        self.answer = Reply.json({**_message({}), "status": "failed", "error_code": code}, 201)

    def _take_text(self, request: Request) -> Reply:  # noqa: PLR0911 - one for each fault
        if request.method != "POST":
            return Reply.json({"code": 20004, "message": "Method not allowed", "status": 405}, 405)
        if request.target != f"/2010-04-01/Accounts/{ACCOUNT_SID}/Messages.json":
            return error(20404)
        basic = base64.b64encode(f"{ACCOUNT_SID}:{AUTH_TOKEN}".encode()).decode()
        if request.headers["Authorization"] != f"Basic {basic}":
            return error(20003)
        if request.headers["Content-Type"] != "application/x-www-form-urlencoded":
            return error(20001)
        parsed = parse_qs(request.body.decode("ascii"), strict_parsing=True, keep_blank_values=True)
        if not set(parsed) <= _FIELDS or any(len(values) > 1 for values in parsed.values()):
            return error(20001)
        form = {name: values[0] for name, values in parsed.items()}
        if fault := _find_fault(form):
            return error(fault)
        sender = form.get("From") or form["MessagingServiceSid"]
        self.texts.append(Text(form["To"], sender, form["Body"]))
        return Reply.json(_message(form), 201)


def error(code: int, **headers: str) -> Reply:
    """As Twilio answers. Its words may name the number."""
    status = _STATUSES.get(code, 400)
    more_info = f"https://www.twilio.com/docs/errors/{code}"
    message = "About +447700900001: no."
    body = {"code": code, "message": message, "more_info": more_info, "status": status}
    return Reply.json(body, status, **headers)


def _find_fault(form: dict[str, str]) -> int | None:  # noqa: PLR0911 - likewise
    if not form.get("To"):
        return 21604
    if not _E164.fullmatch(form["To"]):
        return 21211
    if not form.get("Body"):
        return 21602
    if len(form["Body"]) > 1_600:
        return 21617
    service, sender = form.get("MessagingServiceSid"), form.get("From")
    if service is not None and not _SERVICE.fullmatch(service):
        return 21701
    if service is None and not sender:
        return 21603
    if sender is not None and not (_E164.fullmatch(sender) or _SENDER_ID.fullmatch(sender)):
        return 21212
    return None


def _message(form: dict[str, str]) -> dict[str, Any]:
    """The Message resource of the answer, every property of it."""
    sid = "SM" + "f" * 32
    uri = f"/2010-04-01/Accounts/{ACCOUNT_SID}/Messages/{sid}.json"
    return {
        "body": form.get("Body"),
        "num_segments": "1",
        "direction": "outbound-api",
        "from": form.get("From"),
        "to": form.get("To"),
        "date_updated": "Thu, 24 Aug 2023 05:01:45 +0000",
        "price": None,
        "error_message": None,
        "uri": uri,
        "account_sid": ACCOUNT_SID,
        "num_media": "0",
        "status": "queued",
        "messaging_service_sid": form.get("MessagingServiceSid"),
        "sid": sid,
        "date_sent": None,
        "date_created": "Thu, 24 Aug 2023 05:01:45 +0000",
        "error_code": None,
        "price_unit": None,
        "api_version": "2010-04-01",
        "subresource_uris": {"media": uri.replace(".json", "/Media.json")},
    }
