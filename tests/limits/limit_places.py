"""Where buckets lie, opened in the same way by tests and by the processes they start."""

from dataclasses import dataclass, field

from identity.database import Database
from identity.limits.store import RedisStorage, SqlStorage
from identity.sealing import StorageKeys

KEYS = StorageKeys(index=b"i" * 32, seals={1: b"s" * 32})


@dataclass
class FakeClock:
    time_ms: int = 1_800_000_000_000

    def now_ms(self):
        return self.time_ms


@dataclass
class Place:
    """`kind`: sqlite, postgresql or redis; each `open` is as another process would do it."""

    kind: str
    url: str
    prefix: str = ""
    databases: list = field(default_factory=list)

    def open(self):
        if self.kind == "redis":
            return RedisStorage(self.url, prefix=self.prefix)
        return SqlStorage(self.database())

    def database(self):
        database = Database(self.url, KEYS, synchronous="NORMAL")
        self.databases.append(database)
        return database

    def close(self):
        for database in self.databases:
            database.close()
