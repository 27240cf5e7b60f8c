"""Twilio, through its own library, over our own bounded transport.

The library knows paths, form fields and the shape of errors; it is loaded only where Twilio is
configured. Sockets are ours, because the library's time-outs hold for one read, not for a call.

Source: https://www.twilio.com/docs/messaging/api/message-resource and the pages of
https://www.twilio.com/docs/api/errors.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

import urllib3
from twilio.base.exceptions import TwilioRestException, TwilioServiceException
from twilio.http import HttpClient
from twilio.http.response import Response
from twilio.rest import Client

from identity.config import Twilio
from identity.errors import DestinationRejected, IdentityError, InvalidPhoneNumber
from identity.federation.transport import Deadline
from identity.sms.destination import Originators
from identity.sms.outcome import NotAccepted, ProviderError, Unclear, parse_retry_after
from identity.sms.transport import Transport
from identity.threepid import ThreePid

# The number itself cannot get a text message.
_INVALID: Final = frozenset(
    {
        14101,  # the "To" attribute is no number that gets messages
        21211,  # invalid "To"
        21214,  # "To" cannot be reached
        21217,  # does not appear to be valid
        21265,  # a short code
        21266,  # the same as "From"
        21421,  # invalid phone number
        21614,  # not a mobile number
        21635,  # a landline
        30005,  # unknown
        30006,  # a landline, or an unreachable carrier
    }
)
# Nothing is sent there, for a reason that lies with the destination.
_REJECTED: Final = frozenset(
    {
        14111,  # trial account: not among the verified numbers
        21202,  # a premium number
        21215,  # no permission for that region (voice)
        21408,  # no permission for that region
        21608,  # trial account: not among the verified numbers
        21610,  # the recipient has asked for no more messages
        21612,  # cannot be reached from this sender
        30003,  # the handset cannot be reached
        30004,  # blocked
        30007,  # filtered by the carrier
        30450,  # held to be SMS pumping
        572005,  # trial account: verification is not complete
    }
)
# Too many messages, of the account or of the sender.
_TOO_MANY: Final = frozenset({14107, 20429, 21611, 30001, 30022, 30023, 60728, 63017, 63038})


class TwilioProvider:
    """Sends as one account. Safe to share between threads."""

    name: Final = "twilio"

    def __init__(self, settings: Twilio, originators: Originators, transport: Transport) -> None:
        self._settings = settings
        self._originators = originators
        self._transport = transport

    def send(self, number: ThreePid, text: str, deadline: Deadline) -> None:
        """Raises: NotAccepted; Unclear; InvalidPhoneNumber; DestinationRejected."""
        sender = self._sender_of(number)
        http = _Http(self._transport, deadline)
        try:
            message = self._client(http).messages.create(
                to=f"+{number.address}", body=text, **sender
            )
        except ProviderError:
            raise
        except (TwilioRestException, TwilioServiceException) as error:
            # Its text names the number.
            raise failure_of(http.status, error.code, http.retry_after_ms) from None
        except Exception:  # noqa: BLE001 - what the library raises on a strange answer is not said
            raise Unclear("malformed answer") from None
        # What is known to fail is sometimes said at once.
        if message.error_code:
            raise failure_of(http.status, message.error_code, http.retry_after_ms)
        if not message.sid:
            raise Unclear("malformed answer")

    def _sender_of(self, number: ThreePid) -> dict[str, str]:
        """A sender for that calling code, else the messaging service, else the one for all."""
        service = self._settings.messaging_service_sid
        if service and not self._originators.find_own(number):
            return {"messaging_service_sid": service}
        originator = self._originators.find(number)
        if not originator:
            raise NotAccepted("no originator")
        return {"from_": originator}

    def _client(self, http: "_Http") -> Client:
        """One for each message, because it carries the deadline; it opens nothing by itself."""
        client = Client(
            self._settings.account_sid,
            self._settings.auth_token.get_secret_value(),
            http_client=http,
        )
        # Not from the environment: the configuration alone says where messages go.
        client.edge = client.region = None
        if self._settings.api_base_url:
            client.api.base_url = self._settings.api_base_url
        return client


def failure_of(status: int, code: object, retry_ms: int) -> ProviderError | IdentityError:
    """What an error of Twilio's means. `code`: what its answer says, whatever that is."""
    number = code if isinstance(code, int) else 0
    if number in _INVALID:
        return InvalidPhoneNumber()
    if number in _REJECTED:
        return DestinationRejected()
    reason = str(number or status)
    if number in _TOO_MANY or status == 429:
        return NotAccepted(reason, retry_after_ms=retry_ms)
    return NotAccepted(reason)


class _Http(HttpClient):  # type: ignore[misc] # the library has no types
    """The transport as the library calls it, for one request."""

    def __init__(self, transport: Transport, deadline: Deadline) -> None:
        super().__init__(logging.getLogger(__name__), is_async=False)
        self._transport = transport
        self._deadline = deadline
        self.status = 0
        self.retry_after_ms = 0

    def request(
        self,
        method: str,
        uri: str,
        params: Mapping[str, object] | None = None,
        data: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        **_: Any,
    ) -> Response:
        """Raises: NotAccepted; Unclear."""
        if method != "POST" or params or auth is None:
            raise AssertionError("a message is one POST with a form and a password")
        answer = self._transport.post(
            uri,
            {**(headers or {}), **urllib3.make_headers(basic_auth=":".join(auth))},
            urlencode(data or {}).encode(),
            self._deadline,
            reads_body=True,
        )
        self.status = answer.status
        self.retry_after_ms = parse_retry_after(answer.headers["Retry-After"])
        return Response(answer.status, answer.body.decode("utf-8", "replace"), answer.headers)
