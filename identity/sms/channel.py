"""Phone numbers as a channel: codes and short links, to the countries that the operator serves.

Every message is admitted by the defence first. What it counted is given back only where no provider
has taken the message, through no fault of the caller: one that was refused for its number, or that
may be under way, stays counted.
"""

from functools import partial

from identity.accounts.caller import Caller
from identity.config import Config
from identity.errors import LimitExceeded, SmsNotSent, SmsUnclear
from identity.limits.service import Limiter, Subject
from identity.messaging.brands import Brands
from identity.messaging.channel import Invitation, Permits, Verification
from identity.mxid import UserId
from identity.sms.defence import Defence
from identity.sms.destination import CallingCodes
from identity.sms.message import check_texts, invitation_text, message_host, verification_text
from identity.sms.sender import TextSender
from identity.threepid import ThreePid


class SmsChannel:
    """Text messages."""

    short_links = True

    def __init__(
        self,
        sender: TextSender,
        defence: Defence,
        brands: Brands,
        limiter: Limiter,
        config: Config,
    ) -> None:
        """Raises: SetupError for a template whose text does not fit into one message."""
        self._sender = sender
        self._defence = defence
        self._brands = brands
        self._limiter = limiter
        self._calling_codes = CallingCodes.from_config(config)
        self._server_name = str(config.server.name)
        self._host = message_host(config.server.public_url)
        check_texts(brands, config)

    def check_served(self, threepid: ThreePid) -> None:
        self._calling_codes.check(threepid)

    def check_ready(self) -> None:
        self._sender.check_ready()

    def admit_verification(self, caller: Caller, threepid: ThreePid) -> Permits:
        admission = self._defence.admit(caller, threepid)
        return Permits(
            give_back=partial(self._defence.withdraw, admission),
            sent=partial(self._defence.sent, admission),
        )

    def admit_invitation(self, caller: Caller, threepid: ThreePid, *subjects: Subject) -> Permits:
        self._limiter.spend(*subjects)
        try:
            admission = self._defence.admit(caller, threepid)
        except Exception:
            self._limiter.refund(*subjects)
            raise

        def give_back() -> None:
            self._defence.withdraw(admission)
            self._limiter.refund(*subjects)

        # Nobody is expected to answer it, as one answers a code.
        return Permits(give_back=give_back, sent=lambda: None)

    def send_verification(self, message: Verification, permits: Permits) -> None:
        text = verification_text(
            self._brands,
            message.threepid,
            code=message.token,
            server_name=self._server_name,
            host=self._host,
            requested_by=message.requested_by,
            brand=message.brand,
        )
        self._send(message.threepid, text, permits)

    def send_invitation(self, message: Invitation, permits: Permits) -> None:
        text = invitation_text(
            self._brands,
            message.request,
            link=message.short_link,
            server_name=self._server_name,
        )
        self._send(message.request.threepid, text, permits)

    def token_refused(self) -> None:
        self._defence.failed_code()

    def token_proved(self, threepid: ThreePid, owner: UserId | None) -> None:
        self._defence.converted(threepid, owner)

    def _send(self, number: ThreePid, text: str, permits: Permits) -> None:
        try:
            self._sender.send(number, text)
        except SmsUnclear:
            raise
        except (SmsNotSent, LimitExceeded):
            permits.give_back()
            raise
        permits.sent()
