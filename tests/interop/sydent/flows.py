"""What a server of ours and Sydents tell each other, from end to end.

The users are of a homeserver that is nowhere, by an address: looking up a name could take long.
Each step prints one line; the first that fails ends its flow, and the next flow begins.
"""

import contextlib
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

    def make_successor(self) -> MeshServer:
        """A server of ours in the Sydent's place: its name, its certificate, its port."""
        certificate, key = self.sydent.certificate
        new = MeshServer(
            self.folder / "taken-over",
            self.sydent.name,
            {
                "REPLICATION__LISTEN": self.sydent.url.removeprefix("https://"),
                "REPLICATION__CERTIFICATE": str(certificate),
                "REPLICATION__PRIVATE_KEY": str(key),
                "REPLICATION__CA_FILE": str(self.certificates.ca_file),
            },
        )
        self.running.callback(new.close)
        return new


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
    address, alice, bob = "alice@example.org", "@alice:127.0.0.1:9", "@bob:127.0.0.1:9"
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
    address, carol, dora = "carol@example.org", "@carol:127.0.0.1:9", "@dora:127.0.0.1:9"
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
        sydent.bind("eva@example.org", "@eva:127.0.0.1:9")
        server.wait_for("eva@example.org", "@eva:127.0.0.1:9")
        # What it bound last it would state again.
        sydent.bind("erna@example.org", "@erna:127.0.0.1:9")
        expect(server.unbind("eva@example.org", "@eva:127.0.0.1:9"), True)
        wait_until(lambda: sydent.found("eva@example.org") is None, SOON_S)
    with stage.step("an address that both have bound goes to who was later, on both"):
        server.bind("frank@example.org", "@first:127.0.0.1:9")
        wait_until(lambda: sydent.found("frank@example.org") == "@first:127.0.0.1:9", SOON_S)
        sydent.bind("frank@example.org", "@later:127.0.0.1:9")
        server.wait_for("frank@example.org", "@later:127.0.0.1:9")
        expect(sydent.found("frank@example.org"), "@later:127.0.0.1:9")


def a_new_signing_key_changes_nothing_for_them(stage: Stage) -> None:
    server, sydent = stage.server, stage.sydent
    with stage.step("the key is rotated, and statements still arrive"):
        new = stage.command(server, "keys", "rotate").split()[0]
        active = server.inside.services.signing_keys.get_active
        wait_until(lambda: active().key_id == new, SOON_S)
        server.bind("gina@example.org", "@gina:127.0.0.1:9")
        wait_until(lambda: sydent.found("gina@example.org") == "@gina:127.0.0.1:9", SOON_S)
        expect(
            sorted(sydent.signed("gina@example.org")["signatures"][server.name]), ["ed25519:0", new]
        )


def a_sydent_is_away_and_comes_back(stage: Stage) -> None:
    server, sydent = stage.server, stage.sydent
    with stage.step("while one Sydent is away the other is told at once"):
        sydent.kill()
        server.bind("hans@example.org", "@hans:127.0.0.1:9")
        wait_until(lambda: stage.second.found("hans@example.org") == "@hans:127.0.0.1:9", SOON_S)
        wait_until(lambda: status_at(server, sydent.name)["failures"], SOON_S)
    with stage.step("it gets what it has missed"):
        sydent.start()
        wait_until(lambda: sydent.found("hans@example.org") == "@hans:127.0.0.1:9", SOON_S + 30)


def a_backlog_goes_there(stage: Stage) -> None:
    server, sydent = stage.server, stage.sydent
    bound = {f"ours{number}@example.org": f"@u{number}:127.0.0.1:9" for number in range(BACKLOG)}
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
    with stage.step(f"{BACKLOG} are bound there while our server is away"):
        server.kill()
        sydent.kill()
        sydent.fill({f"theirs{n}@example.org": f"@u{n}:127.0.0.1:9" for n in range(BACKLOG)})
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
            expect(mxid_at(server, address), f"@u{number}:127.0.0.1:9", address)
        expect(server.inside.rows("quarantine"), [])
        alarms = {row["kind"] for row in server.inside.rows("alarms")}
        expect(alarms, set())


def a_sydent_is_taken_over(stage: Stage) -> None:
    """The second Sydent and our server are its former peers."""
    sydent, second = stage.sydent, stage.second
    sydent.bind("ida@example.org", "@ida:127.0.0.1:9")
    sydent.bind("+447700900789", "@ida:127.0.0.1:9", "msisdn")
    sydent.bind("olga@example.org", "@olga:127.0.0.1:9")
    sydent.unbind("olga@example.org", "@olga:127.0.0.1:9")
    sydent.bind("jan@example.org", "@jan:127.0.0.1:9")
    stage.server.wait_for("jan@example.org", "@jan:127.0.0.1:9")
    wait_until(lambda: sydent.sent_to(second.name) == sydent.last_id(), BACKLOG_S)
    sydent.kill()
    with sydent.rows() as rows:
        rows.execute("INSERT INTO accounts (user_id, created_ts) VALUES ('@ida:127.0.0.1:9', 1)")
        rows.execute("INSERT INTO tokens (token, user_id) VALUES (?, '@ida:127.0.0.1:9')", [TOKEN])
        pepper = rows.execute("SELECT lookup_pepper FROM hashing_metadata").fetchone()
    new = stage.make_successor()
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
            ("ida@example.org", "@ida:127.0.0.1:9"),
            ("jan@example.org", "@jan:127.0.0.1:9"),
            ("hans@example.org", "@hans:127.0.0.1:9"),
            ("theirs17@example.org", "@u17:127.0.0.1:9"),
            ("ours17@example.org", "@u17:127.0.0.1:9"),
            ("frank@example.org", "@later:127.0.0.1:9"),
        ):
            expect(new.found(address), mxid, address)
        expect(mxid_at(new, "447700900789", "msisdn"), "@ida:127.0.0.1:9")
    with stage.step("what was unbound, there or by a peer, is not"):
        expect(new.found("olga@example.org"), None)
        expect(new.found("eva@example.org"), None)
    its_former_peers_go_on(stage, new)


def its_former_peers_go_on(stage: Stage, new: MeshServer) -> None:
    server, second = stage.server, stage.second
    with stage.step("its former peers get what is bound now"):
        new.bind("kurt@example.org", "@kurt:127.0.0.1:9")
        server.wait_for("kurt@example.org", "@kurt:127.0.0.1:9")
        wait_until(lambda: second.found("kurt@example.org") == "@kurt:127.0.0.1:9", SOON_S)
    with stage.step("what the Sydent had bound can be ended at its former peers"):
        expect(new.unbind("jan@example.org", "@jan:127.0.0.1:9"), True)
        server.wait_for("jan@example.org", None)
        wait_until(lambda: second.found("jan@example.org") is None, SOON_S)
    with stage.step("and it gets what they bind"):
        second.bind("lisa@example.org", "@lisa:127.0.0.1:9")
        new.wait_for("lisa@example.org", "@lisa:127.0.0.1:9")
        server.bind("mona@example.org", "@mona:127.0.0.1:9")
        new.wait_for("mona@example.org", "@mona:127.0.0.1:9")
    with stage.step("nothing was refused on either side"):
        for one in (new, server):
            expect([row["reason"] for row in one.inside.rows("quarantine")], [])
            expect({row["kind"] for row in one.inside.rows("alarms")}, set())


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
