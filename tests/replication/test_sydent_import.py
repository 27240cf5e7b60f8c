"""`import-sydent`: what becomes of a Sydent's configuration and database.

The database is made here with the tables that Sydent 2.6.1 makes, as far as they are read.
"""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts.clock import FakeClock
from parts.server import Server
from parts.sydent import AT_MS, CENTURY_MS, Sydent
from unpaddedbase64 import encode_base64

from identity.app import create_sydent_app
from identity.config import load
from identity.errors import SetupError
from identity.mxid import UserId
from identity.replication.chain import EMPTY_HEAD, leaf_of, next_head
from identity.replication.sydent.store import own_winners
from identity.replication.sydent.wire import PATH
from identity.signing import SigningKey, is_signed_by
from identity.sydent_import.service import Report, SydentImport
from identity.sydent_import.source import SydentConfig
from identity.threepid import ThreePid

NAME = "sydent.test"
NOW_MS = 1_800_000_000_000
ONE_DATABASE = pytest.mark.parametrize("database_kind", ["sqlite"])

TABLES = """
CREATE TABLE local_threepid_associations (id integer primary key autoincrement, medium varchar(16)
    not null, address varchar(256) not null, mxid varchar(256), ts integer, notBefore bigint,
    notAfter bigint, lookup_hash varchar(256));
CREATE UNIQUE INDEX local_medium_address ON local_threepid_associations (medium, address);
CREATE TABLE global_threepid_associations (id integer primary key autoincrement, medium varchar(16)
    not null, address varchar(256) not null, mxid varchar(256) not null, ts integer not null,
    notBefore bigint not null, notAfter integer not null, originServer varchar(255) not null,
    originId integer not null, sgAssoc text not null, lookup_hash varchar(256));
CREATE UNIQUE INDEX global_origin ON global_threepid_associations (originServer, originId);
CREATE TABLE accounts (user_id text primary key, created_ts bigint not null, consent_version text);
CREATE TABLE tokens (token text primary key, user_id text not null);
CREATE TABLE accepted_terms_urls (user_id text not null, url text not null);
CREATE TABLE invite_tokens (id integer primary key, medium varchar(16) not null, address
    varchar(256) not null, room_id varchar(256) not null, sender varchar(256) not null, token
    varchar(256) not null, received_ts bigint, sent_ts bigint);
CREATE TABLE ephemeral_public_keys (id integer primary key, public_key varchar(256) not null,
    verify_count bigint default 0, persistence_ts bigint);
CREATE TABLE peers (id integer primary key, name varchar(255) not null, port integer default null,
    lastSentVersion integer, lastPokeSucceededAt integer, active integer not null default 0);
CREATE TABLE peer_pubkeys (id integer primary key, peername varchar(255) not null, alg varchar(16)
    not null, key text not null);
CREATE TABLE hashing_metadata (id integer primary key, lookup_pepper varchar(256));
PRAGMA user_version = 5;
"""


class Files:
    """A Sydent that is not there any more: its configuration and its database."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.sydent = Sydent(NAME)
        self.database = folder / "sydent.db"
        self.config = folder / "sydent.conf"
        self.write_config()
        self._rows = sqlite3.connect(self.database, isolation_level=None)
        self._rows.executescript(TABLES)
        self.put("hashing_metadata", lookup_pepper="muC41")

    def write_config(self, **changed: str) -> None:
        values = {
            "name": NAME,
            "key": f"ed25519 0 {encode_base64(self.sydent.key.seed)}",
            "database": str(self.database),
            "more": "",
        } | changed
        self.config.write_text(
            "[general]\nserver.name = {name}\n[db]\ndb.file = {database}\n"
            "[email]\nemail.subject = %(not_a_reference)s\n"
            "[crypto]\ned25519.signingkey = {key}\n{more}\n".format(**values)
        )

    def put(self, table: str, **row) -> int:
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        statement = f"INSERT INTO {table} ({names}) VALUES ({marks})"
        return self._rows.execute(statement, list(row.values())).lastrowid

    def run(self, statement: str) -> None:
        self._rows.execute(statement)

    def bound(self, address, mxid, ts=AT_MS, medium="email", *, text=None, origin=None):
        """As a Sydent keeps a binding of its own; its id. `text`: what is signed, if another."""
        times = {"ts": ts, "notBefore": ts, "notAfter": ts + CENTURY_MS}
        row = {"medium": medium, "address": address, "mxid": mxid, **times}
        origin_id = self.put("local_threepid_associations", **row)
        signed = json.dumps(text or self.sydent.bound(address, mxid, ts, medium))
        self.put(
            "global_threepid_associations",
            **row,
            originServer=NAME,
            originId=origin_id,
            sgAssoc=signed,
        )
        return origin_id

    def unbound(self, address, ts=AT_MS, medium="email") -> int:
        return self.put("local_threepid_associations", medium=medium, address=address, ts=ts)

    def foreign(self, signed, origin, origin_id, **changed) -> int:
        row = {
            "medium": signed["medium"],
            "address": signed["address"],
            "mxid": signed["mxid"],
            "ts": signed["ts"],
            "notBefore": signed["not_before"] or 0,
            "notAfter": signed["not_after"] or 0,
            "originServer": origin,
            "originId": origin_id,
            "sgAssoc": json.dumps(signed),
        }
        return self.put("global_threepid_associations", **row | changed)

    def peer(self, sydent, *, last_sent=None, active=1, port=None, key=None) -> None:
        self.put("peers", name=sydent.name, port=port, lastSentVersion=last_sent, active=active)
        text = encode_base64(sydent.key.public_key) if key is None else key
        self.put("peer_pubkeys", peername=sydent.name, alg="ed25519", key=text)


class Bar:
    def __init__(self) -> None:
        self.wanted = self.done = 0

    def total(self, total: int) -> None:
        self.wanted = total

    def advance(self, steps: int) -> None:
        self.done += steps


class Target:
    """A server of ours that takes the Sydent's place."""

    def __init__(self, folder: Path, url: str, files: Files) -> None:
        settings = {
            "IDENTITY_SERVER__NAME": NAME,
            "IDENTITY_SERVER__PUBLIC_URL": f"https://{NAME}",
            "IDENTITY_SERVER__DATA_DIR": str(folder),
            "IDENTITY_DATABASE__URL": url,
            "IDENTITY_LEGACY_API__OPEN": "true",
        }
        self.folder = folder
        self.config = load(None, settings)
        self.clock = FakeClock(NOW_MS)
        self.files = files
        self.bar = Bar()
        self._server: Server | None = None

    def take_over(self, path: Path | None = None, *, dry_run: bool = False) -> Report:
        importing = SydentImport(self.config, self.clock)
        return importing.run(path or self.files.config, self.bar, dry_run=dry_run)

    @property
    def server(self) -> Server:
        if self._server is None:
            self._server = Server(self.config, self.clock)
        return self._server

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def mxid_of(self, address: str, medium: str = "email") -> str | None:
        return self.server.services.associations.find_mxid(ThreePid.parse(medium, address))

    def own(self) -> dict[int, str | None]:
        """Id to text of our own statements."""
        rows = self.server.rows("statements")
        return {row["origin_id"]: row["signed"] for row in rows if row["origin"] == NAME}


@pytest.fixture
def files(tmp_path) -> Files:
    return Files(tmp_path / "sydent")


@pytest.fixture
def target(request, tmp_path, database_kind, files) -> Iterator[Target]:
    if database_kind == "sqlite":
        url, drop = "", lambda: None
    else:
        postgres = request.getfixturevalue("postgres")
        url = postgres.create(migrated=False)
        drop = lambda: postgres.drop(url)  # noqa: E731
    target = Target(tmp_path / "data", url, files)
    yield target
    target.close()
    drop()


# --- associations -----------------------------------------------------------------------------


def test_binding_keeps_its_id_its_text_and_is_found_by_the_old_pepper(files, target):
    files.bound("gone@example.test", "@gone:hs.test")
    files.run("DELETE FROM local_threepid_associations")
    origin_id = files.bound("a@example.test", "@a:hs.test")
    report = target.take_over()
    assert origin_id == 2
    signed = files.sydent.bound("a@example.test", "@a:hs.test")
    assert {number: json.loads(text) for number, text in target.own().items()} == {2: signed}
    assert target.server.services.lookups.hash_details()[0] == "muC41"
    assert target.server.found("a@example.test") == "@a:hs.test"
    assert report.taken["own associations"] == 1
    assert (report.repaired, report.left_out) == ({}, {})
    assert target.bar.done == target.bar.wanted == 1


def test_ids_go_on_behind_the_highest_that_was_ever_given(files, target):
    files.bound("a@example.test", "@a:hs.test")
    files.put("local_threepid_associations", id=40, medium="email", address="x", mxid="@x:y", ts=1)
    files.run("DELETE FROM local_threepid_associations WHERE id = 40")
    target.take_over()
    target.server.bind_directly("b@example.test", "@b:hs.test")
    assert sorted(target.own()) == [1, 41]


def test_revocation_is_signed_with_the_sydents_key_id_and_time(files, target):
    files.bound("a@example.test", "@a:hs.test", AT_MS)
    files.run("DELETE FROM local_threepid_associations")
    files.run("DELETE FROM global_threepid_associations")
    origin_id = files.unbound("a@example.test", AT_MS + 5)
    report = target.take_over()
    signed = json.loads(target.own()[origin_id])
    assert signed == files.sydent.unbound("a@example.test", AT_MS + 5)
    assert target.mxid_of("a@example.test") is None
    assert report.taken["own revocations"] == 1


def test_chain_is_that_of_the_statements_in_the_order_of_their_ids(files, target):
    for number in range(5):
        files.bound(f"a{number}@example.test", "@a:hs.test")
    files.unbound("b@example.test")
    files.bound("+447700900123", "@a:hs.test", medium="msisdn")
    target.take_over()
    head = EMPTY_HEAD
    for origin_id, signed in sorted(target.own().items()):
        head = next_head(head, origin_id, leaf_of(signed))
    (origin,) = target.server.rows("origins")
    assert (origin["last_id"], origin["head"]) == (8, head)


@pytest.mark.parametrize(
    ("medium", "address", "canonical"),
    [
        ("msisdn", "+447700900123", "447700900123"),
        ("email", "Ann@Example.test", "ann@example.test"),
    ],
)
def test_address_is_made_canonical_under_a_new_id(files, target, medium, address, canonical):
    old_id = files.bound(address, "@a:hs.test", AT_MS, medium)
    last_id = files.bound("b@example.test", "@b:hs.test")
    report = target.take_over()
    assert sorted(target.own()) == [last_id, last_id + 1]
    signed = json.loads(target.own()[last_id + 1])
    assert signed == files.sydent.bound(canonical, "@a:hs.test", AT_MS, medium)
    assert target.server.found(canonical, medium) == "@a:hs.test"
    key = ("local_threepid_associations", "address made canonical")
    assert report.repaired == {key: [old_id]}
    assert not any(address in line for line in report.lines())


@ONE_DATABASE
def test_two_spellings_of_one_address_belong_to_who_was_last(files, target):
    files.bound("a@example.test", "@first:hs.test", AT_MS)
    files.bound("A@example.test", "@later:hs.test", AT_MS + 1)
    files.bound("B@example.test", "@first:hs.test", AT_MS)
    files.bound("b@example.test", "@later:hs.test", AT_MS + 1)
    target.take_over()
    assert target.mxid_of("a@example.test") == "@later:hs.test"
    assert target.mxid_of("b@example.test") == "@later:hs.test"


@ONE_DATABASE
def test_what_holds_more_than_six_keys_is_signed_anew_under_its_id(files, target):
    more = files.sydent.bound("a@example.test", "@a:hs.test", invites=[{"token": "x"}])
    origin_id = files.bound("a@example.test", "@a:hs.test", text=more)
    report = target.take_over()
    signed = files.sydent.bound("a@example.test", "@a:hs.test")
    assert json.loads(target.own()[origin_id]) == signed
    assert list(report.repaired.values()) == [[origin_id]]


@ONE_DATABASE
@pytest.mark.parametrize("broken", ["signature", "text", "other"])
def test_what_is_not_well_signed_is_signed_anew_from_its_row(files, target, broken):
    text = {
        "signature": Sydent(NAME).bound("a@example.test", "@a:hs.test"),
        "text": "no object",
        "other": files.sydent.bound("a@example.test", "@other:hs.test"),
    }[broken]
    origin_id = files.bound("a@example.test", "@a:hs.test", text=text)
    target.take_over()
    signed = files.sydent.bound("a@example.test", "@a:hs.test")
    assert json.loads(target.own()[origin_id]) == signed


def test_what_a_peer_has_revoked_does_not_come_back(files, target):
    files.bound("a@example.test", "@a:hs.test")
    files.run("DELETE FROM global_threepid_associations")
    report = target.take_over()
    assert target.own() == {}
    assert target.mxid_of("a@example.test") is None
    assert report.left_out == {("local_threepid_associations", "revoked by a peer"): [1]}


@ONE_DATABASE
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"address": "no address"}, "address not valid"),
        ({"address": b"\xff"}, "address not valid"),
        ({"medium": "pigeon"}, "address not valid"),
        ({"mxid": "nobody"}, "Matrix ID not valid"),
        ({"ts": None}, "time not valid"),
        ({"ts": "yesterday"}, "time not valid"),
        ({"ts": -1}, "time not valid"),
    ],
)
def test_row_of_no_use_is_left_out_and_reported(files, target, row, reason):
    files.bound("b@example.test", "@b:hs.test")
    origin_id = files.bound("a@example.test", "@a:hs.test")
    ((name, value),) = row.items()
    files._rows.execute(
        f"UPDATE local_threepid_associations SET {name} = ? WHERE id = ?", (value, origin_id)
    )
    report = target.take_over()
    assert report.left_out == {("local_threepid_associations", reason): [origin_id]}
    assert target.mxid_of("b@example.test") == "@b:hs.test"


# --- of others ----------------------------------------------------------------------------------


def test_associations_of_peers_keep_origin_id_and_text(files, target):
    other = Sydent("other.test")
    files.peer(other)
    signed = other.bound("+447700900123", "@a:hs.test", medium="msisdn", invites=[])
    files.foreign(signed, "other.test", 77)
    report = target.take_over()
    (row,) = target.server.rows("statements")
    assert (row["origin"], row["origin_id"], json.loads(row["signed"])) == (
        "other.test",
        77,
        signed,
    )
    assert target.server.found("447700900123", "msisdn") == "@a:hs.test"
    assert report.taken["associations of others"] == 1
    assert target.server.services.associations.rebuild() == 1
    assert target.server.found("447700900123", "msisdn") == "@a:hs.test"


@ONE_DATABASE
def test_newest_of_several_origins_counts(files, target):
    for number, name in enumerate(("one.test", "two.test")):
        other = Sydent(name)
        files.peer(other)
        signed = other.bound("a@example.test", f"@{name}:hs.test", AT_MS + number)
        files.foreign(signed, name, 1)
    files.bound("a@example.test", "@ours:hs.test", AT_MS - 1)
    target.take_over()
    assert target.mxid_of("a@example.test") == "@two.test:hs.test"


@ONE_DATABASE
def test_associations_of_a_server_that_is_no_peer_are_taken_and_told_of(files, target):
    stranger = Sydent("stranger.test")
    files.foreign(stranger.bound("a@example.test", "@a:hs.test"), "stranger.test", 1)
    report = target.take_over()
    assert target.mxid_of("a@example.test") == "@a:hs.test"
    assert any("1 associations are of servers that are no peers" in line for line in report.lines())


@ONE_DATABASE
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sgAssoc": "{"}, "no association"),
        ({"sgAssoc": "{}"}, "no association"),
        ({"sgAssoc": "badly signed"}, "signature not good"),
        ({"sgAssoc": "ahead"}, "dated ahead"),
        ({"originServer": "no server name"}, "origin is no server name"),
        ({"originId": -4}, "no id"),
    ],
)
def test_row_of_another_that_is_of_no_use_is_left_out(files, target, change, reason):
    other = Sydent("other.test")
    files.peer(other)
    if change.get("sgAssoc") == "badly signed":
        change = {"sgAssoc": json.dumps(Sydent("other.test").bound("a@b.test", "@a:hs.test"))}
    elif change.get("sgAssoc") == "ahead":
        ahead = other.bound("a@b.test", "@a:hs.test", NOW_MS + 3_600_000)
        change = {"sgAssoc": json.dumps(ahead)}
    row = files.foreign(other.bound("a@example.test", "@a:hs.test"), "other.test", 1, **change)
    report = target.take_over()
    assert report.left_out == {("global_threepid_associations", reason): [row]}
    assert target.server.rows("statements") == []


# --- accounts, terms, invitations ---------------------------------------------------------------


def test_tokens_and_accepted_terms_go_on_serving(files, target):
    files.put("accounts", user_id="@a:hs.test", created_ts=17)
    files.put("tokens", token="tokenOne", user_id="@a:hs.test")
    files.put("tokens", token="tokenTwo", user_id="@a:hs.test")
    files.put("accepted_terms_urls", user_id="@a:hs.test", url="https://example.test/terms")
    report = target.take_over()
    accounts = target.server.services.accounts
    assert str(accounts.authenticate("tokenOne")) == "@a:hs.test"
    assert str(accounts.authenticate("tokenTwo")) == "@a:hs.test"
    (terms,) = target.server.rows("accepted_terms")
    assert (terms["user_id"], terms["url"]) == ("@a:hs.test", "https://example.test/terms")
    assert target.server.rows("accounts")[0]["created_at_ms"] == 17
    assert report.taken["access tokens"] == 2
    # A token is not to be read from the database.
    assert not any("tokenOne" in str(row) for row in target.server.rows("access_tokens"))


@ONE_DATABASE
def test_tokens_and_terms_without_an_account_are_left_out(files, target):
    files.put("tokens", token="lost", user_id="@nobody:hs.test")
    files.put("accepted_terms_urls", user_id="@nobody:hs.test", url="https://example.test")
    files.put("accounts", user_id="no user id", created_ts=1)
    report = target.take_over()
    assert report.left_out == {
        ("accounts", "Matrix ID not valid"): [1],
        ("tokens", "no such account"): [1],
        ("accepted_terms_urls", "no such account"): [1],
    }


def invite(files, address="a@example.test", *, sent_s=None, at_s=1_700_000_000, key=True):
    """An invitation that waits; its token and its ephemeral key."""
    ephemeral = SigningKey.generate("ed25519:0")
    token = f"token of {address}"
    files.put(
        "invite_tokens",
        medium="email",
        address=address,
        room_id="!room:hs.test",
        sender="@inviter:hs.test",
        token=token,
        received_ts=at_s,
        sent_ts=sent_s,
    )
    if key:
        public_key = encode_base64(ephemeral.public_key)
        files.put("ephemeral_public_keys", public_key=public_key, persistence_ts=at_s)
    return token, ephemeral


def test_invitation_can_be_signed_for_by_the_link_in_its_old_mail(files, target):
    token, ephemeral = invite(files)
    target.take_over()
    answer = target.server.client.post(
        "/_matrix/identity/api/v1/sign-ed25519",
        json={
            "mxid": "@a:hs.test",
            "token": token,
            "private_key": encode_base64(ephemeral.seed, urlsafe=True),
        },
    )
    assert answer.status_code == 200, answer.json
    assert is_signed_by(answer.json, NAME, {"ed25519:0": ephemeral.public_key})
    valid = target.server.client.get(
        "/_matrix/identity/api/v1/pubkey/ephemeral/isvalid",
        query_string={"public_key": encode_base64(ephemeral.public_key)},
    )
    assert valid.json == {"valid": True}


def test_invitation_is_delivered_when_its_address_is_bound(files, target):
    invite(files, "A@example.test")
    target.take_over()
    target.server.bind_directly("a@example.test", "@a:hs.test")
    (delivery,) = target.server.rows("deliveries")
    assert (delivery["mxid"], delivery["invite"] is not None) == ("@a:hs.test", True)


def test_invitation_for_an_address_that_a_peer_has_bound_is_delivered_now(files, target):
    other = Sydent("other.test")
    files.peer(other)
    files.foreign(other.bound("a@example.test", "@a:hs.test"), "other.test", 1)
    invite(files)
    files.bound("b@example.test", "@b:hs.test")
    report = target.take_over()
    (delivery,) = target.server.rows("deliveries")
    assert (delivery["mxid"], delivery["invite"] is not None) == ("@a:hs.test", True)
    assert report.taken["invitations to be delivered"] == 1


@ONE_DATABASE
def test_invitation_that_was_delivered_is_not_delivered_again(files, target):
    invite(files, sent_s=1_700_000_001)
    files.bound("a@example.test", "@a:hs.test")
    target.take_over()
    target.server.bind_directly("a@example.test", "@b:hs.test")
    assert [row["invite"] for row in target.server.rows("deliveries")] == [None]


@ONE_DATABASE
def test_invitations_live_on_for_as_long_as_new_ones(files, target):
    invite(files, at_s=1_000)
    target.take_over()
    (stored,) = target.server.rows("invites")
    assert stored["created_at_ms"] == 1_000_000
    lifetime_ms = 90 * 86_400_000
    assert stored["expires_at_ms"] == NOW_MS + lifetime_ms
    assert target.server.services.invites.purge() == 0


@ONE_DATABASE
def test_invitation_without_its_key_is_taken_and_told_of(files, target):
    invite(files, key=False)
    report = target.take_over()
    assert len(target.server.rows("invites")) == 1
    assert any("1 invitations have no key" in line for line in report.lines())


@ONE_DATABASE
def test_ephemeral_key_without_an_invitation_stays_valid(files, target):
    key = encode_base64(SigningKey.generate("ed25519:0").public_key)
    files.put("ephemeral_public_keys", id=9, public_key=key, persistence_ts=5)
    target.take_over()
    assert target.server.services.invites.is_valid_key(key)


# --- pepper, key, peers -------------------------------------------------------------------------


def test_signing_key_is_the_sydents_and_is_published(files, target):
    target.take_over()
    published = target.server.services.signing_keys.public_keys()
    assert published == {"ed25519:0": encode_base64(files.sydent.key.public_key)}
    assert target.config.signing_keys_path.stat().st_mode & 0o777 == 0o600


@ONE_DATABASE
@pytest.mark.parametrize("pepper", [None, "", "x" * 65, "two words"])
def test_pepper_that_cannot_be_used_is_replaced(files, target, pepper):
    files.run("DELETE FROM hashing_metadata")
    files.put("hashing_metadata", lookup_pepper=pepper)
    files.bound("a@example.test", "@a:hs.test")
    report = target.take_over()
    assert target.server.services.lookups.hash_details()[0] != pepper
    assert target.server.found("a@example.test") == "@a:hs.test"
    assert "the pepper cannot be used here; there is a new one" in list(report.lines())


def test_peers_go_on_where_they_were(files, target):
    sent, new, hexadecimal = Sydent("sent.test"), Sydent("new.test"), Sydent("hex.test")
    files.write_config(more="[peer.sent.test]\nbase_replication_url = https://10.0.0.1:4434/\n")
    files.peer(sent, last_sent=2)
    files.peer(new, port=4434)
    files.peer(hexadecimal, key=hexadecimal.key.public_key.hex())
    for number in range(3):
        files.bound(f"a{number}@example.test", "@a:hs.test")
    report = target.take_over()
    peers = {peer.name: peer for peer in target.server.services.peers.all()}
    assert {name: peer.url for name, peer in peers.items()} == {
        "sent.test": "https://10.0.0.1:4434",
        "new.test": "https://new.test:4434",
        "hex.test": "https://hex.test:1001",
    }
    for sydent in (sent, new, hexadecimal):
        assert peers[sydent.name].keys == {"ed25519:0": sydent.key.public_key}
    cursors = {row["peer"]: row["acknowledged_id"] for row in target.server.rows("cursors")}
    assert cursors == {"sent.test": 2, "new.test": 0, "hex.test": 0}
    assert report.taken["peers"] == 3
    following = target.server.database.read(lambda tx: own_winners(tx, NAME, 2, 3, 100))
    assert [origin_id for origin_id, _ in following] == [3]


def test_former_peer_goes_on_pushing(files, target):
    other = Sydent("other.test")
    files.peer(other)
    files.foreign(other.bound("a@example.test", "@a:hs.test"), "other.test", 5)
    target.take_over()

    class Connection:
        def getpeercert(self):
            return {"subject": ((("commonName", "other.test"),),)}

    client = create_sydent_app(target.server.services).test_client()
    pushed = {
        "5": other.bound("a@example.test", "@changed:hs.test", AT_MS + 1),
        "6": other.bound("b@example.test", "@b:hs.test"),
        "7": other.unbound("a@example.test", AT_MS + 2),
    }
    answer = client.post(
        PATH, json={"sgAssocs": pushed}, environ_overrides={"gunicorn.socket": Connection()}
    )
    assert answer.json == {"success": True}
    assert target.mxid_of("a@example.test") is None
    assert target.mxid_of("b@example.test") == "@b:hs.test"


@ONE_DATABASE
@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        ({"active": 0}, "not active"),
        ({"key": "no key"}, "no key"),
    ],
)
def test_peer_of_no_use_is_left_out(files, target, peer, reason):
    files.peer(Sydent("other.test"), **peer)
    report = target.take_over()
    assert report.left_out == {("peers", reason): [1]}
    assert target.server.rows("peers") == []


# --- what is refused ----------------------------------------------------------------------------


def test_database_that_is_in_use_is_refused(files, target):
    files.bound("a@example.test", "@a:hs.test")
    target.take_over()
    before = target.server.rows("statements")
    with pytest.raises(SetupError, match="in use"):
        target.take_over()
    with pytest.raises(SetupError, match="in use"):
        target.take_over(dry_run=True)
    assert target.server.rows("statements") == before


@ONE_DATABASE
@pytest.mark.parametrize("dry_run", [True, False])
def test_server_of_another_name_is_refused_and_nothing_is_made(files, target, dry_run):
    files.write_config(name="other.test")
    with pytest.raises(SetupError, match=r"The Sydent is other\.test"):
        target.take_over(dry_run=dry_run)
    assert not target.folder.exists()


@ONE_DATABASE
def test_server_that_has_keys_of_its_own_is_refused(files, target):
    assert target.server.rows("statements") == []  # makes them
    target.close()
    target._server = None
    with pytest.raises(SetupError, match="holds another signing key"):
        target.take_over()


@ONE_DATABASE
def test_import_that_died_before_it_wrote_anything_is_run_again(files, target):
    files.bound("a@example.test", "@a:hs.test")
    files.run("ALTER TABLE tokens RENAME TO hidden")
    with pytest.raises(SetupError):
        target.take_over()
    files.run("ALTER TABLE hidden RENAME TO tokens")
    target.take_over()
    assert target.mxid_of("a@example.test") == "@a:hs.test"


def test_dry_run_says_the_same_and_changes_nothing(files, target):
    files.bound("+447700900123", "@a:hs.test", medium="msisdn")
    files.bound("a@example.test", "@a:hs.test")
    invite(files)
    before = files.database.read_bytes()
    dry = target.take_over(dry_run=True)
    assert not target.folder.exists()
    assert list(dry.lines()) == list(target.take_over().lines())
    assert files.database.read_bytes() == before


@ONE_DATABASE
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"key": ""}, "signingkey"),
        ({"key": "ed25519 0 short"}, "signingkey"),
        ({"name": ""}, r"server\.name"),
        ({"database": ""}, r"db\.file"),
        ({"database": "nowhere.db"}, "does not exist"),
        ({"more": "no section]"}, "no sydent.conf"),
    ],
)
def test_configuration_of_no_use_is_told_in_a_line(files, target, changed, told):
    files.write_config(**changed)
    with pytest.raises(SetupError, match=told) as caught:
        target.take_over()
    assert "\n" not in str(caught.value)
    assert encode_base64(files.sydent.key.seed) not in str(caught.value)


@ONE_DATABASE
def test_database_of_something_else_is_told_in_a_line(files, target, tmp_path):
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as rows:
        rows.execute("CREATE TABLE something (id integer)")
    files.write_config(database=str(other))
    with pytest.raises(SetupError, match="is no database of a Sydent"):
        target.take_over()
    other.write_text("no database at all, but long enough to be looked at" * 10)
    with pytest.raises(SetupError, match="cannot be read"):
        target.take_over()


@ONE_DATABASE
def test_older_schema_is_told_in_a_line(files, target):
    files.run("PRAGMA user_version = 3")
    with pytest.raises(SetupError, match=r"start Sydent 2\.6 with it once"):
        target.take_over()


@ONE_DATABASE
def test_database_may_be_named_in_place_of_the_configuration_beside_it(files, target):
    files.bound("a@example.test", "@a:hs.test")
    target.take_over(files.database)
    assert target.mxid_of("a@example.test") == "@a:hs.test"


def test_relative_path_is_relative_to_the_configuration(files):
    files.write_config(database="sydent.db")
    assert SydentConfig.find(files.config).database == files.database


def test_imported_binding_can_be_unbound(files, target):
    files.bound("a@example.test", "@a:hs.test")
    target.take_over()
    unbind = target.server.services.associations.unbind
    assert unbind(ThreePid.email("a@example.test"), UserId.parse("@a:hs.test"))
    assert target.server.found("a@example.test") is None
    assert target.server.rows("lookup_index") == []
