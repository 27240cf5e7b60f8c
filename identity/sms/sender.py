"""Who carries a text message: the configured providers, tried in their order.

- The next provider is tried only where the one before has accepted nothing. One that says that a
  number is invalid, or that nothing may go there, settles it for all. Where a request was sent and
  no answer came, the message may be under way: no other provider is asked, because it would be
  paid for twice and counted once.
- Three time-outs in a row spare a provider for 10 s; the next one in the list is used meanwhile.
- A message takes at most 10 s with one provider, and 15 s in all. At most a quarter of a process's
  threads wait for providers at once; beyond that the answer is immediate.
- Logs name provider and reason, never number or text.

Source: decision 10; security.md, experiment E23.
"""

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from identity.breaker import Breaker
from identity.clock import Clock
from identity.errors import (
    DestinationRejected,
    InvalidPhoneNumber,
    LimitExceeded,
    SmsNotSent,
    SmsUnclear,
)
from identity.federation.transport import Deadline
from identity.sms.destination import Originators
from identity.sms.gateway import Gateway
from identity.sms.outbox import TextOutbox
from identity.sms.outcome import NotAccepted, Unclear
from identity.sms.transport import Transport
from identity.threepid import ThreePid

if TYPE_CHECKING:
    from identity.config import Config

# People wait for this. A provider that has not answered in ten seconds rarely does at all.
PROVIDER_TIMEOUT_S: Final = 10.0
TIMEOUT_S: Final = 15.0

log = structlog.get_logger(__name__)


class TextSender(Protocol):
    """Sends text messages while the caller waits; nothing is queued (decision 10)."""

    def check_ready(self) -> None:
        """To be asked before anything is stored for a message: costs nothing, and spares the
        database what would be sent nowhere. Raises: SmsNotSent while none can be sent.
        """

    def send(self, number: ThreePid, text: str) -> None:
        """Hand the message over for one number; `text` as `identity.sms.message` makes it.

        When this returns, the message is accepted. It takes at most 15 s. Raises: SmsNotSent, and
        of these SmsUnclear where it may have been accepted; InvalidPhoneNumber and
        DestinationRejected as a provider says; LimitExceeded where one has had too many messages,
        and no other accepts this one.
        """


class Provider(Protocol):
    """One of those that carry messages. Threads share it."""

    @property
    def name(self) -> str:
        """As in the configuration."""

    def send(self, number: ThreePid, text: str, deadline: Deadline) -> None:
        """When this returns, the message is accepted.

        Raises: NotAccepted; Unclear; InvalidPhoneNumber; DestinationRejected.
        """


class Providers:
    """Tries each in turn. Safe to share between threads."""

    def __init__(
        self,
        providers: Sequence[Provider],
        threads: int,
        clock: Clock,
        *,
        provider_timeout_s: float = PROVIDER_TIMEOUT_S,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`threads`: how many requests this process works on at once."""
        self._provider_timeout_s = provider_timeout_s
        self._timeout_s = timeout_s
        self._providers = providers
        self._places = threading.BoundedSemaphore(max(1, threads // 4))
        self._breaker = Breaker(clock)

    def check_ready(self) -> None:
        """Raises: SmsNotSent."""
        if all(self._breaker.is_open(provider.name) for provider in self._providers):
            raise _not_sent("breaker_open")
        if not self._places.acquire(blocking=False):
            raise _not_sent("busy")
        self._places.release()

    def send(self, number: ThreePid, text: str) -> None:
        """Raises: SmsNotSent, InvalidPhoneNumber, DestinationRejected, LimitExceeded."""
        if not self._places.acquire(blocking=False):
            raise _not_sent("busy")
        try:
            self._try_each(number, text)
        finally:
            self._places.release()

    def _try_each(self, number: ThreePid, text: str) -> None:
        ends_at_s = time.monotonic() + self._timeout_s
        waits_ms: list[int] = []
        for provider in self._providers:
            if self._breaker.is_open(provider.name):
                log.warning("sms_not_accepted", provider=provider.name, reason="breaker_open")
                continue
            now_s = time.monotonic()
            if now_s >= ends_at_s:
                break
            deadline = Deadline(min(ends_at_s, now_s + self._provider_timeout_s))
            failure = self._attempt(provider, number, text, deadline)
            if failure is None:
                return
            if failure.retry_after_ms is not None:
                waits_ms.append(failure.retry_after_ms)
        if waits_ms:
            raise LimitExceeded(min(waits_ms))
        raise SmsNotSent

    def _attempt(
        self, provider: Provider, number: ThreePid, text: str, deadline: Deadline
    ) -> NotAccepted | None:
        """Why another may be tried; None when the message is accepted. Raises: as `send`."""
        try:
            provider.send(number, text, deadline)
        except NotAccepted as failure:
            self._breaker.record(provider.name, timed_out=failure.timed_out)
            log.warning("sms_not_accepted", provider=provider.name, reason=failure.reason)
            return failure
        except Unclear as failure:
            self._breaker.record(provider.name, timed_out=failure.timed_out)
            log.warning("sms_unclear", provider=provider.name, reason=failure.reason)
            raise SmsUnclear from None
        except (InvalidPhoneNumber, DestinationRejected) as refusal:
            self._breaker.record(provider.name, timed_out=False)
            log.info("sms_refused", provider=provider.name, reason=type(refusal).__name__)
            raise
        self._breaker.record(provider.name, timed_out=False)
        return None


def sender_from_config(config: "Config", clock: Clock) -> TextSender | None:
    """The configured providers in their order; None where there is no SMS."""
    if not config.sms_providers:
        return None
    providers = [_provider(name, config, clock) for name in config.sms_providers]
    return Providers(providers, config.server.threads, clock)


def _provider(name: str, config: "Config", clock: Clock) -> Provider:
    originators = Originators.from_config(config)
    if name == "file":
        return TextOutbox(config.outbox_path, originators, clock)
    if name == "http":
        return Gateway(config.sms.http, originators, Transport())
    # Twilio's library takes 12 MB and a tenth of a second, which others need not spend.
    from identity.sms.twilio import TwilioProvider  # noqa: PLC0415

    return TwilioProvider(config.sms.twilio, originators, Transport())


def _not_sent(reason: str) -> SmsNotSent:
    log.warning("sms_not_sent", reason=reason)
    return SmsNotSent()
