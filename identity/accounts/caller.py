"""Who asks."""

from dataclasses import dataclass

from identity.mxid import UserId


@dataclass(frozen=True, slots=True)
class Caller:
    """An account, or nobody known (`user_id` None); and the IP address that it comes from."""

    user_id: UserId | None
    ip: str
