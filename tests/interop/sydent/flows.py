"""What a server of ours and Sydents tell each other, from end to end.

Each step prints one line; the first that fails ends its flow, and the next flow begins.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from parts.mesh import MeshServer
from parts.processes import identity, wait_until
from parts.sydent import Certificates
from process import Sydent
from unpaddedbase64 import encode_base64

from identity.mxid import UserId
from identity.signing import is_signed_by
from identity.threepid import ThreePid

BACKLOG = 5_000
# Far more than it takes.
SOON_S = 30
BACKLOG_S = 300
TOKEN = "a-token-that-the-sydent-gave-out"


class Stage:
    """The servers, and the score."""

    def __init__(
        self,
        folder: Path,
        certificates: Certificates,
        server: MeshServer,
        sydent: Sydent,
        second: Sydent,
        running: contextlib.ExitStack,
    ) -> None:
        self.folder = folder
        self.certificates = certificates
        self.server = server
        self.sydent = sydent
        self.second = second
        self.running = running
        self.passed = 0
        self.failed = 0
        self._doing = ""

    def run(self, flow: Callable[["Stage"], None]) -> None:
        click.echo(flow.__name__.replace("_", " "))
        self._doing = "before the first step"
        try:
            flow(self)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other flows go on
            self.failed += 1
            click.echo(f"  FAIL  {self._doing}: {type(error).__name__}: {error}")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._doing, began = name, time.monotonic()
        yield
        self.passed += 1
        click.echo(f"  ok    {name} ({time.monotonic() - began:.1f} s)")

    def command(self, server: MeshServer, *arguments: object) -> str:
        """`identity` on the server's machine; what it prints."""
        done = identity(*arguments, folder=server.folder, settings=server.settings)
        expect(done.returncode, 0, done.stderr)
        return done.stdout

    def add_peer(self, server: MeshServer, sydent: Sydent) -> None:
        key = encode_base64(sydent.key.public_key)
        self.command(
            server,
            *("peers", "add", sydent.name, "--protocol", "sydent", "--no-check"),
            *("--url", sydent.url, "--key", f"ed25519:0={key}"),
        )


def expect(actual: object, expected: object, about: object = "") -> None:
    if actual != expected:
        raise AssertionError(f"{actual!r} in place of {expected!r} {about}")


def mxid_at(server: MeshServer, address: str, medium: str = "email") -> str | None:
    return server.inside.services.associations.find_mxid(ThreePid.parse(medium, address))


def status_at(server: MeshServer, peer: str) -> dict[str, object]:
    (row,) = [row for row in server.inside.rows("cursors") if row["peer"] == peer]
    return row


def peers_get_to_know_each_other(stage: Stage) -> None:
    server = stage.server
    with stage.step(
        "the operator adds two Sydents, which are asked at once whether they are there"
    ):
        for sydent in (stage.sydent, stage.second):
            stage.add_peer(server, sydent)
        for sydent in (stage.sydent, stage.second):
            name = sydent.name
            wait_until(lambda name=name: status_at(server, name)["last_success_at_ms"], SOON_S)


def what_is_bound_here_is_found_there(stage: Stage) -> None:
    server, sydent = stage.server, stage.sydent
    address, alice, bob = "alice@example.org", "@alice:hs.test", "@bob:hs.test"
    with stage.step("bind"):
        server.bind(address, alice)
        wait_until(lambda: sydent.found(address) == alice, SOON_S)
    with stage.step("it is given out with our signature"):
        key = server.inside.services.signing_keys.get_active()
        expect(
            is_signed_by(sydent.signed(address), server.name, {key.key_id: key.public_key}), True
        )
    with stage.step("bind to another user"):
        server.bind(address, bob)
        wait_until(lambda: sydent.found(address) == bob, SOON_S)
    with stage.step("unbind"):
        expect(server.unbind(address, bob), True)
        wait_until(lambda: sydent.found(address) is None, SOON_S)
    with stage.step("bind again"):
        server.bind(address, alice)
        wait_until(lambda: sydent.found(address) == alice, SOON_S)
    with stage.step("a phone number, and an address with letters that fold"):
        bound = server.inside.services.associations.bind
        bound(ThreePid.msisdn("447700900123"), UserId.parse(alice))
        bound(ThreePid.email("Jörg.Straße@exämple.org"), UserId.parse(bob))
        wait_until(lambda: sydent.found("447700900123", "msisdn") == alice, SOON_S)
        wait_until(lambda: sydent.found("jörg.strasse@exämple.org") == bob, SOON_S)


def what_is_bound_there_is_found_here(stage: Stage) -> None:
    server, sydent = stage.server, stage.sydent
    address, carol, dora = "carol@example.org", "@carol:hs.test", "@dora:hs.test"
    with stage.step("bind"):
        sydent.bind(address, carol)
        server.wait_for(address, carol)
    with stage.step("bind to another user"):
        sydent.bind(address, dora)
        server.wait_for(address, dora)
    with stage.step("unbind"):
        sydent.unbind(address, dora)
        server.wait_for(address, None)
    with stage.step("bind again"):
        sydent.bind(address, carol)
        server.wait_for(address, carol)
    with stage.step(
        "a number with a plus and an address in capitals are found as people write them"
    ):
        sydent.bind("+447700900456", carol, "msisdn")
        sydent.bind("Fritz.GROß@Example.ORG", dora)
        wait_until(lambda: mxid_at(server, "447700900456", "msisdn") == carol, SOON_S)
        server.wait_for("fritz.gross@example.org", dora)
    with stage.step("nothing was refused"):
        expect(server.inside.rows("quarantine"), [])


def each_may_end_what_the_other_bound(stage: Stage) -> None:
    server, sydent = stage.server, stage.sydent
    with stage.step("a Sydent's binding is unbound here, and it forgets it"):
        sydent.bind("eva@example.org", "@eva:hs.test")
        server.wait_for("eva@example.org", "@eva:hs.test")
        expect(server.unbind("eva@example.org", "@eva:hs.test"), True)
        wait_until(lambda: sydent.found("eva@example.org") is None, SOON_S)
    with stage.step("an address that both have bound goes to who was later, on both"):
        server.bind("frank@example.org", "@first:hs.test")
        wait_until(lambda: sydent.found("frank@example.org") == "@first:hs.test", SOON_S)
        sydent.bind("frank@example.org", "@later:hs.test")
        server.wait_for("frank@example.org", "@later:hs.test")
        expect(sydent.found("frank@example.org"), "@later:hs.test")


def a_new_signing_key_changes_nothing_for_them(stage: Stage) -> None:
    server, sydent = stage.server, stage.sydent
    with stage.step("the key is rotated, and statements still arrive"):
        new = stage.command(server, "keys", "rotate").split()[0]
        active = server.inside.services.signing_keys.get_active
        wait_until(lambda: active().key_id == new, SOON_S)
        server.bind("gina@example.org", "@gina:hs.test")
        wait_until(lambda: sydent.found("gina@example.org") == "@gina:hs.test", SOON_S)
        expect(
            sorted(sydent.signed("gina@example.org")["signatures"][server.name]), ["ed25519:0", new]
        )


def a_sydent_is_away_and_comes_back(stage: Stage) -> None:
    server, sydent = stage.server, stage.sydent
    with stage.step("while one Sydent is away the other is told at once"):
        sydent.kill()
        server.bind("hans@example.org", "@hans:hs.test")
        wait_until(lambda: stage.second.found("hans@example.org") == "@hans:hs.test", SOON_S)
        wait_until(lambda: status_at(server, sydent.name)["failures"], SOON_S)
    with stage.step("it gets what it has missed"):
        sydent.start()
        wait_until(lambda: sydent.found("hans@example.org") == "@hans:hs.test", SOON_S + 30)


def a_backlog_goes_there(stage: Stage) -> None:
    server, sydent = stage.server, stage.sydent
    bound = {f"ours{number}@example.org": f"@u{number}:hs.test" for number in range(BACKLOG)}
    with stage.step(f"{BACKLOG} are bound here while the Sydent is away"):
        sydent.kill()
        before = sydent.count_of(server.name)
        for start in range(0, BACKLOG, 1_000):
            server.bind_all(dict(list(bound.items())[start : start + 1_000]))
    with stage.step("it gets them all, though our server is killed on the way"):
        sydent.start()
        wait_until(lambda: sydent.count_of(server.name) > before + 500, BACKLOG_S)
        server.kill()
        at_kill = sydent.count_of(server.name) - before
        server.start()
        wait_until(lambda: sydent.count_of(server.name) == before + BACKLOG, BACKLOG_S)
        click.echo(f"        killed after {at_kill}")
    with stage.step("they are the right ones"):
        for number in range(0, BACKLOG, 97):
            address = f"ours{number}@example.org"
            expect(sydent.found(address), bound[address], address)


def a_backlog_comes_from_there(stage: Stage) -> None:
    server, sydent = stage.server, stage.sydent
    now_ms = int(time.time() * 1_000)
    with stage.step(f"{BACKLOG} are bound there while our server is away"):
        server.kill()
        sydent.kill()
        with sydent.rows() as rows:
            rows.executemany(
                "INSERT INTO local_threepid_associations "
                "(medium, address, mxid, ts, notBefore, notAfter) VALUES ('email', ?, ?, ?, ?, ?)",
                [
                    (
                        f"theirs{number}@example.org",
                        f"@u{number}:hs.test",
                        *(now_ms, now_ms, now_ms + 3_153_600_000_000),
                    )
                    for number in range(BACKLOG)
                ],
            )
        sydent.start()
    with stage.step("we get them all, though our server is killed on the way"):
        server.start()

        def held() -> int:
            return sum(row["origin"] == sydent.name for row in server.inside.rows("statements"))

        wait_until(lambda: held() > 500, BACKLOG_S)
        server.kill()
        at_kill = held()
        server.start()
        last_id = sydent.last_id()
        wait_until(lambda: sydent.sent_to(server.name) == last_id, BACKLOG_S)
        click.echo(f"        killed after {at_kill}")
    with stage.step("they are the right ones"):
        for number in range(BACKLOG):
            address = f"theirs{number}@example.org"
            expect(mxid_at(server, address), f"@u{number}:hs.test", address)
        expect(server.inside.rows("quarantine"), [])
        alarms = {row["kind"] for row in server.inside.rows("alarms")}
        expect(alarms, set())


def a_sydent_is_taken_over(stage: Stage) -> None:
    """The second Sydent and our server are its former peers."""
    server, sydent, second = stage.server, stage.sydent, stage.second
    sydent.bind("ida@example.org", "@ida:hs.test")
    sydent.bind("+447700900789", "@ida:hs.test", "msisdn")
    sydent.bind("jan@example.org", "@jan:hs.test")
    server.wait_for("jan@example.org", "@jan:hs.test")
    wait_until(lambda: sydent.sent_to(second.name) == sydent.last_id(), BACKLOG_S)
    sydent.kill()
    with sydent.rows() as rows:
        rows.execute("INSERT INTO accounts (user_id, created_ts) VALUES ('@ida:hs.test', 1)")
        rows.execute("INSERT INTO tokens (token, user_id) VALUES (?, '@ida:hs.test')", [TOKEN])
        pepper = rows.execute("SELECT lookup_pepper FROM hashing_metadata").fetchone()
    certificate, key = sydent.certificate
    new = MeshServer(
        stage.folder / "taken-over",
        sydent.name,
        {
            "REPLICATION__LISTEN": sydent.url.removeprefix("https://"),
            "REPLICATION__CERTIFICATE": str(certificate),
            "REPLICATION__PRIVATE_KEY": str(key),
            "REPLICATION__CA_FILE": str(stage.certificates.ca_file),
        },
    )
    stage.running.callback(new.close)
    untouched = sydent.database.read_bytes()
    with stage.step("a dry run says what would be taken over, and changes nothing"):
        told = stage.command(new, "import-sydent", sydent.config, "--dry-run")
        expect("nothing was changed" in told, True)
        expect((new.folder / "data").exists(), False)
    with stage.step("the import says the same, and leaves the Sydent's files alone"):
        done = stage.command(new, "import-sydent", sydent.config)
        expect(told.removesuffix("nothing was changed\n"), done)
        expect(sydent.database.read_bytes() == untouched, True)
        for line in done.splitlines():
            click.echo(f"        {line[:100]}")
    with stage.step("it is refused a second time"):
        again = identity("import-sydent", sydent.config, folder=new.folder, settings=new.settings)
        expect((again.returncode, "is in use" in again.stderr), (1, True))
    with stage.step("what was bound is found, by the old pepper, with the old token"):
        new.start()
        details = new.get("/hash_details", token=TOKEN).json()
        expect(details["lookup_pepper"], pepper[0])
        for address, mxid in (
            ("ida@example.org", "@ida:hs.test"),
            ("jan@example.org", "@jan:hs.test"),
            ("hans@example.org", "@hans:hs.test"),
            ("theirs17@example.org", "@u17:hs.test"),
            ("ours17@example.org", "@u17:hs.test"),
            ("frank@example.org", "@later:hs.test"),
        ):
            expect(new.found(address), mxid, address)
        expect(mxid_at(new, "447700900789", "msisdn"), "@ida:hs.test")
    with stage.step("what was unbound is not"):
        expect(new.found("eva@example.org"), None)
    with stage.step("its former peers get what is bound now"):
        new.bind("kurt@example.org", "@kurt:hs.test")
        server.wait_for("kurt@example.org", "@kurt:hs.test")
        wait_until(lambda: second.found("kurt@example.org") == "@kurt:hs.test", SOON_S)
    with stage.step("what the Sydent had bound can be ended at its former peers"):
        expect(new.unbind("jan@example.org", "@jan:hs.test"), True)
        server.wait_for("jan@example.org", None)
        wait_until(lambda: second.found("jan@example.org") is None, SOON_S)
    with stage.step("and it gets what they bind"):
        second.bind("lisa@example.org", "@lisa:hs.test")
        new.wait_for("lisa@example.org", "@lisa:hs.test")
        server.bind("mona@example.org", "@mona:hs.test")
        new.wait_for("mona@example.org", "@mona:hs.test")
    with stage.step("nothing was refused on either side"):
        for one in (new, server):
            expect(json.dumps([row["reason"] for row in one.inside.rows("quarantine")]), "[]")
            expect({row["kind"] for row in one.inside.rows("alarms")}, set())
    shutil.rmtree(sydent.folder)


FLOWS: list[Callable[[Stage], None]] = [
    peers_get_to_know_each_other,
    what_is_bound_here_is_found_there,
    what_is_bound_there_is_found_here,
    each_may_end_what_the_other_bound,
    a_new_signing_key_changes_nothing_for_them,
    a_sydent_is_away_and_comes_back,
    a_backlog_goes_there,
    a_backlog_comes_from_there,
    a_sydent_is_taken_over,
]
