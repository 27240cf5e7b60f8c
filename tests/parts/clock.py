"""A clock that stands still until a test advances it."""


class FakeClock:
    def __init__(self, at_ms: int = 1_800_000_000_000) -> None:
        self.at_ms = at_ms

    def now_ms(self) -> int:
        return self.at_ms

    def advance(self, *, hours: float = 0, minutes: float = 0, seconds: float = 0, ms: int = 0):
        self.at_ms += int(((hours * 60 + minutes) * 60 + seconds) * 1_000) + ms
