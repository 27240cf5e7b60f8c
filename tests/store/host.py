"""One process of a server, as far as the database goes: several of them share one database."""

import time
from datetime import timedelta

import sqlalchemy as sa

from identity.associations.service import Associations
from identity.keys.service import SigningKeys
from identity.lookup.hashing import SHA256, encode_hash, lookup_hash
from identity.lookup.service import Lookups, Peppers
from identity.mxid import UserId
from identity.opening import open_database
from identity.tables import metadata
from identity.threepid import ThreePid

GRACE = timedelta(hours=1)


def email(address):
    return ThreePid.email(address)


def user(name):
    return UserId.parse(f"@{name}:hs.test")


def wait_until_blocked(database):
    """Until a connection to the database, which is PostgreSQL, waits for a lock."""
    query = sa.text(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    deadline = time.monotonic() + 10
    while not database.read(lambda tx: tx.execute(query).scalar_one()):
        assert time.monotonic() < deadline, "nothing waits"


class Host:
    """`signing_keys`: in place of the real ones, for a test that must stop a bind half-way."""

    def __init__(self, config, clock, signing_keys=SigningKeys):
        self.config = config
        self.name = str(config.server.name)
        self.database = open_database(config, clock, migrate=False).database
        self.signing_keys = signing_keys(self.database, config.signing_keys_path, clock)
        self.associations = Associations(self.database, self.signing_keys, self.name, clock)
        self.lookups = Lookups(self.database, clock, (SHA256,), 10_000)
        self.peppers = Peppers(self.database, clock, GRACE)

    def bind(self, address, name):
        return self.associations.bind(email(address), user(name))

    def unbind(self, address, name):
        return self.associations.unbind(email(address), user(name))

    def rotate(self):
        self.peppers.finish(self.peppers.begin())

    def rows(self, table, *order):
        """What is stored, unsealed, in the order of the primary key."""
        table = metadata.tables[table]
        query = sa.select(table).order_by(*(order or table.primary_key.columns))
        return self.database.read(lambda tx: [dict(row._mapping) for row in tx.execute(query)])

    def ready_peppers(self):
        return [row["pepper"] for row in self.rows("peppers") if row["ready_at_ms"] is not None]

    def found(self, address, pepper=None):
        """Who is found by a client that hashes exactly this, by the current pepper or another."""
        pepper = pepper or self.lookups.hash_details()[0]
        asked = encode_hash(lookup_hash(address, "email", pepper))
        generation = self.lookups.check(SHA256, pepper, [asked])
        return self.lookups.find(SHA256, generation, [asked]).get(asked)

    def found_by_all(self, address):
        """The same by every pepper that is answered."""
        return {self.found(address, pepper) for pepper in self.ready_peppers()}

    def close(self):
        self.database.close()
