"""Use cases of the terms of service.

Acceptance belongs to the user, not to a token, and only ever grows. A new version of a policy
has a new URL, which nobody has accepted yet.
"""

from collections.abc import Iterable
from typing import Any

from identity.clock import Clock
from identity.database import Database
from identity.errors import InvalidParameter, TermsNotSigned
from identity.mxid import UserId
from identity.terms import store
from identity.terms.policy import Policies


class Terms:
    """The policies of this server. They are read once, when the process starts or reloads."""

    def __init__(self, database: Database, policies: Policies, clock: Clock) -> None:
        self._database = database
        self._policies = policies
        self._clock = clock

    def documents(self) -> dict[str, Any]:
        return self._policies.documents

    def accept(self, user_id: UserId, urls: Iterable[str]) -> None:
        """Raises: InvalidParameter for a URL that is none of ours; then nothing is stored."""
        accepted = set(urls)
        if accepted - self._policies.all_urls:
            raise InvalidParameter("user_accepts holds a URL that is not one of the policies'")
        if accepted:
            now_ms = self._clock.now_ms()
            self._database.write(lambda tx: store.accept(tx, str(user_id), accepted, now_ms))

    def require(self, user_id: UserId) -> None:
        """Raises: TermsNotSigned while a current policy is not accepted."""
        if not self._policies.urls:
            return
        accepted = self._database.read(lambda tx: store.accepted_urls(tx, str(user_id)))
        if not self._policies.are_accepted(accepted):
            raise TermsNotSigned
