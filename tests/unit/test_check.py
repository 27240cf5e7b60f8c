"""`identity check`: each thing that is configured is tried, against small servers on loopback."""

import os
import socket
import sqlite3
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from parts.homeserver import FakeHomeserver, Reply, ca_file
from parts.mailserver import MailServer

from identity.check import Line, files, network, run_check
from identity.check.certificates import probe_authorities, probe_pair
from identity.check.report import ok, run_probes
from identity.clock import DAY_MS
from identity.config import parse
from identity.keys.keyfile import (
    generate_storage_keys,
    write_signing_keys,
    write_storage_keys,
)
from identity.signing import SigningKey

NOW_MS = int(datetime(2030, 1, 1, tzinfo=UTC).timestamp() * 1_000)
CANARY = "canary-5b1f"


class StandingClock:
    def now_ms(self) -> int:
        return NOW_MS


def said(lines) -> list[str]:
    return [str(line) for line in lines]


def tree_of(folder: Path) -> dict[str, int]:
    """Everything below a folder, with its time of change."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def closed_port():
    """A port that is bound, so that nobody else gets it, and that refuses."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def trusting(monkeypatch):
    """Makes the tests' own authority one of those that this machine trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file()))


@pytest.fixture
def website(trusting):
    with FakeHomeserver() as running:
        yield running


# --- the run --------------------------------------------------------------------------


def test_line_is_written_with_its_level_in_front():
    assert [str(Line(level, "x")) for level in ("ok", "warn", "FAIL")] == [
        "ok   x",
        "warn x",
        "FAIL x",
    ]


def test_run_of_probes_that_hang_or_break_still_tells_what_the_others_found():
    release = threading.Event()

    def hangs():
        release.wait(30)
        return [ok("too late")]

    def breaks():
        yield ok("before")
        raise RuntimeError(CANARY)

    probes = [("one", hangs), ("two", lambda: [ok("fine")]), ("three", breaks), ("four", hangs)]
    began = time.monotonic()
    lines = run_probes(probes, deadline_s=0.2)
    took_s = time.monotonic() - began
    release.set()
    assert said(lines) == [
        "FAIL one: no answer within 0.2 s",
        "ok   fine",
        "FAIL three: RuntimeError",
        "FAIL four: no answer within 0.2 s",
    ]
    assert took_s < 5


def test_check_of_a_wrong_configuration_tells_all_faults_and_tries_nothing(tmp_path):
    path = tmp_path / "identity.conf"
    path.write_text('[server]\nworkers = -1\npublic_url = "x"\n')
    lines, sound = run_check(path, {"IDENTITY_NONSENSE": "1"})
    assert not sound
    assert [line.level for line in lines] == ["FAIL"] * 3
    assert [line.text.partition(":")[0] for line in lines] == [
        "IDENTITY_NONSENSE",
        "[server] public_url",
        "[server] workers",
    ]


def test_check_of_a_new_development_server_is_sound_and_changes_nothing(tmp_path, closed_port):
    path = tmp_path / "identity.conf"
    path.write_text(f'[server]\npublic_url = "http://localhost:{closed_port}"\n')
    before = tree_of(tmp_path)
    lines, sound = run_check(path, {}, StandingClock())
    data = tmp_path / "data"
    versions = f"http://localhost:{closed_port}/_matrix/identity/versions"
    assert said(lines) == [
        f"ok   configuration: {path}",
        f"ok   [server] data_dir: {data} will be created",
        f"ok   [keys] signing_keys: {data}/signing.keys will be created",
        f"ok   [keys] storage_keys: {data}/storage.keys will be created",
        f"ok   [database] url: {data}/identity.db will be created",
        f"ok   [email] backend: file: {data}/outbox will be created",
        "ok   [email] templates: the built-in ones",
        f"ok   [sms] provider: file: {data}/outbox will be created",
        f"warn [server] public_url: {versions}: Connection refused (is the server running?)",
    ]
    assert sound
    assert tree_of(tmp_path) == before


def test_check_where_everything_is_out_of_order_tells_it_all(tmp_path, closed_port):
    (tmp_path / "data").write_text("a file")
    (tmp_path / "terms.yaml").write_text("docs: 3")
    path = tmp_path / "identity.conf"
    path.write_text(f"""
[server]
public_url = "http://127.0.0.1:{closed_port}"
[database]
url = "postgresql://u:{CANARY}@127.0.0.1:{closed_port}/db"
read_url = "postgresql://u:{CANARY}@127.0.0.1:{closed_port}/db"
[email]
smtp_host = "127.0.0.1"
smtp_port = {closed_port}
templates = "nowhere"
[sms]
provider = ["http", "twilio", "file"]
from = "Matrix"
[sms.http]
url = "http://127.0.0.1:{closed_port}/"
[sms.twilio]
account_sid = "AC1"
auth_token = "{CANARY}"
api_base_url = "http://127.0.0.1:{closed_port}"
[terms]
file = "terms.yaml"
[federation]
ca_file = "nowhere.pem"
[replication]
certificate = "nowhere.crt"
private_key = "nowhere.key"
[rate_limits]
storage = "redis://:{CANARY}@127.0.0.1:{closed_port}"
""")
    path.chmod(0o644)
    lines, sound = run_check(path, {})
    text = "\n".join(said(lines))
    assert not sound
    assert CANARY not in text
    for at in (
        "warn [server] public_url: homeservers that call",
        "warn [sms] allowed_calling_codes:",
        f"warn {path}: holds database.url and can be read by others",
        f"FAIL [server] data_dir: {tmp_path}/data is not a folder",
        "FAIL [database] url: ",
        "FAIL [database] read_url: ",
        "FAIL [rate_limits] storage: Connection refused",
        f"FAIL [email] smtp_host: 127.0.0.1:{closed_port}: Connection refused",
        "FAIL [email] templates: ",
        f"FAIL [sms.http] url: 127.0.0.1:{closed_port}: Connection refused",
        f"FAIL [sms.twilio] api_base_url: 127.0.0.1:{closed_port}: Connection refused",
        f"FAIL [sms] provider: file: {tmp_path}/data is not a folder",
        "FAIL [terms] file: ",
        f"FAIL [replication] certificate: {tmp_path}/nowhere.crt cannot be read: No such file",
        f"FAIL [replication] private_key: {tmp_path}/nowhere.key cannot be read: No such file",
        f"FAIL [federation] ca_file: {tmp_path}/nowhere.pem cannot be read: No such file",
        f"warn [server] public_url: http://127.0.0.1:{closed_port}/_matrix/identity/versions: Conn",
    ):
        assert f"\n{at}" in text


# --- files ----------------------------------------------------------------------------


def test_folder_that_exists_is_named(tmp_path):
    assert said(files.probe_folder("[server] data_dir", tmp_path)) == [
        f"ok   [server] data_dir: {tmp_path}"
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_cannot_be_written_to_fails(tmp_path):
    tmp_path.chmod(0o500)
    for folder in (tmp_path, tmp_path / "data"):
        assert said(files.probe_folder("[server] data_dir", folder)) == [
            f"FAIL [server] data_dir: {tmp_path} cannot be written to by this user"
        ]


def write_keys(data: Path) -> None:
    data.mkdir()
    key = SigningKey.from_seed("ed25519:0", bytes(32))
    write_signing_keys(data / "signing.keys", {key.key_id: key})
    write_storage_keys(data / "storage.keys", generate_storage_keys())


def probe_keys(tmp_path, *, database_exists):
    config = parse({}, {}, tmp_path)
    return [line.level for line in files.probe_keys(config, database_exists=database_exists)]


def test_keys_that_only_their_owner_reads_are_fine(tmp_path):
    write_keys(tmp_path / "data")
    assert probe_keys(tmp_path, database_exists=True) == ["ok", "ok"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_keys_that_others_read_fail(tmp_path, mode):
    write_keys(tmp_path / "data")
    (tmp_path / "data" / "signing.keys").chmod(mode)
    assert probe_keys(tmp_path, database_exists=True) == ["FAIL", "ok"]


@pytest.mark.parametrize(
    ("database_exists", "level"), [(False, "ok"), (True, "FAIL"), (None, "warn")]
)
def test_keys_that_are_missing_fail_where_there_is_a_database(tmp_path, database_exists, level):
    assert probe_keys(tmp_path, database_exists=database_exists) == [level, level]


def test_keys_that_are_no_keys_fail(tmp_path):
    write_keys(tmp_path / "data")
    (tmp_path / "data" / "storage.keys").write_text("hello\n")
    assert probe_keys(tmp_path, database_exists=False) == ["ok", "FAIL"]


def test_configuration_with_a_secret_that_everyone_reads_is_warned_of(tmp_path):
    path, token = tmp_path / "identity.conf", tmp_path / "token"
    token.write_text("t")
    path.write_text(
        '[email]\nsmtp_username = "u"\nsmtp_password = "p"\n'
        '[sms.twilio]\nauth_token_file = "token"\n'
    )
    for file in (path, token):
        file.chmod(0o640)
    assert said(files.probe_secret_files(path, {})) == []
    for file in (path, token):
        file.chmod(0o644)
    all_read = "can be read by others; run: chmod o-r"
    assert said(files.probe_secret_files(path, {})) == [
        f"warn {path}: holds email.smtp_password and {all_read} {path}",
        f"warn {token}: holds sms.twilio.auth_token_file and {all_read} {token}",
    ]
    path.write_text('[database]\nurl = "postgresql://host/db"\n')
    assert said(files.probe_secret_files(path, {"IDENTITY_EMAIL__SMTP_PASSWORD": "p"})) == []


def test_terms_that_can_be_read_are_counted(tmp_path):
    (tmp_path / "terms.yaml").write_text(
        'docs: {privacy: {version: "1", langs: {en: {name: P, url: "https://a.example/p"}}}}'
    )
    config = parse({"terms": {"file": "terms.yaml"}}, {}, tmp_path)
    assert said(files.probe_terms(config)) == ["ok   [terms] file: 1 policies"]


# --- certificates ---------------------------------------------------------------------


class Issued:
    """A certificate for id.example.org and its key, in files."""

    def __init__(self, folder: Path, name: str, days: float, authority: trustme.CA) -> None:
        now = datetime.fromtimestamp(NOW_MS / 1_000, UTC)
        issued = authority.issue_cert(
            "id.example.org",
            not_before=now - timedelta(days=100) + min(timedelta(0), timedelta(days=days)),
            not_after=now + timedelta(days=days, minutes=1),
        )
        self.certificate, self.key = folder / f"{name}.crt", folder / f"{name}.key"
        issued.private_key_pem.write_to_path(self.key)
        self.certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def probe_issued(certificate, key, name="id.example.org", now_ms=NOW_MS):
    return [
        line.replace(f"[replication] certificate: {certificate}: ", "")
        for line in said(probe_pair(certificate, key, name, now_ms))
    ]


@pytest.mark.parametrize(
    ("days", "line"),
    [
        (90, "ok   valid for 90 more days"),
        (30, "ok   valid for 30 more days"),
        (29, "warn valid for 29 more days"),
        (-1, "FAIL has expired on Dec 31 00:01:00 2029 GMT"),
    ],
)
def test_certificate_is_judged_by_the_days_it_has_left(tmp_path, authority, days, line):
    issued = Issued(tmp_path, "a", days, authority)
    assert probe_issued(issued.certificate, issued.key) == [line]


def test_certificate_of_tomorrow_fails(tmp_path, authority):
    issued = Issued(tmp_path, "a", 90, authority)
    (line,) = probe_issued(issued.certificate, issued.key, now_ms=NOW_MS - 101 * DAY_MS)
    assert line == "FAIL is not valid before Sep 23 00:00:00 2029 GMT"


def test_certificate_for_another_name_is_warned_of(tmp_path, authority):
    issued = Issued(tmp_path, "a", 90, authority)
    lines = probe_issued(issued.certificate, issued.key, "other.example.org")
    assert lines[1].startswith("warn is not for other.example.org")


def test_certificate_that_is_not_that_of_the_key_fails(tmp_path, authority):
    one, other = (Issued(tmp_path, name, 90, authority) for name in "ab")
    assert probe_issued(one.certificate, other.key) == ["FAIL does not belong to the private_key"]


@pytest.mark.parametrize("content", ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
@pytest.mark.parametrize("damaged", ["certificate", "key"])
def test_certificate_or_key_that_is_none_fails(tmp_path, authority, content, damaged):
    issued = Issued(tmp_path, "a", 90, authority)
    getattr(issued, damaged).write_text(content)
    (line,) = probe_issued(issued.certificate, issued.key)
    assert line.startswith("FAIL is not usable PEM")


def test_certificates_of_authorities_are_judged_by_their_days(tmp_path, authority):
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    (line,) = said(probe_authorities("[federation] ca_file", path, NOW_MS))
    assert line.startswith(f"ok   [federation] ca_file: {path}: valid for ")
    (line,) = said(probe_authorities("[federation] ca_file", path, NOW_MS + 400_000 * DAY_MS))
    assert line.startswith(f"FAIL [federation] ca_file: {path}: has expired on ")
    issued = Issued(tmp_path, "a", 90, authority)
    (line,) = said(probe_authorities("[federation] ca_file", issued.certificate, NOW_MS))
    assert line.startswith("warn ")
    path.write_text("hello")
    (line,) = said(probe_authorities("[federation] ca_file", path, NOW_MS))
    assert line.startswith(f"FAIL [federation] ca_file: {path}: is not usable PEM")


# --- database -------------------------------------------------------------------------


def test_sqlite_file_is_read_and_not_changed(tmp_path):
    file = tmp_path / "a?b%20#.db"
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    # Once with the log of writes of a running server, once without.
    assert Path(f"{file}-wal").exists()
    assert said(network.probe_sqlite(file)) == [f"ok   [database] url: {file}"]
    connection.close()
    before = tree_of(tmp_path)
    assert said(network.probe_sqlite(file)) == [f"ok   [database] url: {file}"]
    assert tree_of(tmp_path) == before


def test_sqlite_file_that_is_none_fails(tmp_path):
    file = tmp_path / "x.db"
    file.write_text("hello " * 1_000)
    (line,) = said(network.probe_sqlite(file))
    assert line == f"FAIL [database] url: {file}: file is not a database"


def test_sqlite_file_of_a_configuration_is_the_one_that_the_server_opens():
    config = parse({}, {}, Path("/srv/100%25 a?b"))
    assert network.find_sqlite_file(config) == Path("/srv/100%25 a?b/data/identity.db")
    postgresql = parse({"database": {"url": "postgresql://h/d"}}, {}, Path("/srv"))
    assert network.find_sqlite_file(postgresql) is None


def test_postgresql_that_is_something_else_fails_without_the_password():
    def answer(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer:
            peer.recv(1_024)
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        url = f"postgresql://u:{CANARY}@127.0.0.1:{listener.getsockname()[1]}/db"
        (line,) = network.probe_postgresql("url", url)
        thread.join()
    assert line.level == "FAIL"
    assert "\n" not in line.text
    assert CANARY not in line.text


# --- Redis ----------------------------------------------------------------------------


@pytest.fixture
def redis_url():
    """Says what Redis says to HELLO and PING, once."""

    def serve(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer, peer.makefile("rb") as lines:
            while header := lines.readline():
                words = [lines.read(int(lines.readline()[1:]) + 2) for _ in range(int(header[1:]))]
                answers = {b"HELLO": b"%1\r\n$5\r\nproto\r\n:3\r\n", b"PING": b"+PONG\r\n"}
                peer.sendall(answers.get(words[0].strip(), b"-ERR unknown command\r\n"))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_redis_that_answers_is_fine(redis_url):
    assert said(network.probe_redis(redis_url)) == ["ok   [rate_limits] storage: Redis answers"]


# --- SMTP -----------------------------------------------------------------------------


def probe_smtp(server: MailServer, **email) -> str:
    settings = {"smtp_host": "localhost", "smtp_port": server.port}
    config = parse(
        {"email": {**settings, "smtp_ca_file": str(server.ca_file), **email}}, {}, Path("/")
    )
    (line,) = said(network.probe_smtp(config))
    return line.replace(f"[email] smtp_host: localhost:{server.port}: ", "")


@pytest.mark.parametrize(
    ("tls", "how"), [("none", "without TLS"), ("starttls", "with STARTTLS"), ("tls", "with TLS")]
)
def test_smtp_server_that_is_as_configured_gets_no_mail(tls, how):
    with MailServer(tls=tls) as server:
        assert probe_smtp(server, tls=tls) == f"ok   answers {how}"
        server.wait_until_idle()
        assert server.mails == []
        assert server.commands[-2:] == ["NOOP", "QUIT"]
        assert "MAIL" not in server.commands


def test_smtp_server_that_knows_the_password_is_logged_in_to():
    with MailServer(tls="starttls", login=("mailer", CANARY)) as server:
        good = {"smtp_username": "mailer", "smtp_password": CANARY}
        assert probe_smtp(server, **good) == "ok   answers with STARTTLS, logged in"
        bad = {"smtp_username": "mailer", "smtp_password": f"{CANARY}x"}
        assert probe_smtp(server, **bad) == "FAIL user name and password are refused (535)"


@pytest.mark.parametrize("tls", ["starttls", "tls"])
@pytest.mark.parametrize(
    ("names", "switches", "reason"),
    [
        (("other.test",), {}, "Hostname mismatch"),
        (("localhost",), {"expired": True}, "certificate has expired"),
        (("localhost",), {"trusted": False}, "unable to get local issuer certificate"),
    ],
)
def test_smtp_server_that_cannot_prove_its_name_fails(tls, names, switches, reason):
    with MailServer(*names, tls=tls, **switches) as server:
        line = probe_smtp(server, tls=tls)
    assert line.startswith("FAIL its certificate is refused: ")
    assert reason in line


def test_smtp_server_without_starttls_fails():
    with MailServer() as server:
        assert probe_smtp(server) == "FAIL STARTTLS extension not supported by server."


@pytest.mark.parametrize("stage", ["CONNECT", "EHLO", "NOOP"])
def test_smtp_server_that_hangs_up_fails(stage):
    with MailServer() as server:
        server.drop_at = stage
        assert probe_smtp(server, tls="none").startswith("FAIL ")


def test_smtp_server_with_authorities_that_cannot_be_read_is_not_tried(tmp_path):
    with MailServer(tls="starttls") as server:
        line = probe_smtp(server, smtp_ca_file=str(tmp_path / "missing.pem"))
        assert line == "FAIL not tried, because smtp_ca_file cannot be used"
        assert server.connections == 0


# --- SMS ------------------------------------------------------------------------------


def probe_sms(provider, **tables) -> list[str]:
    config = parse({"sms": {"provider": provider, "from": "Matrix", **tables}}, {}, Path("/"))
    return said(network.probe_sms(config))


def test_http_gateway_that_takes_connections_gets_no_request(website):
    url = f"https://localhost:{website.port}/send?key={CANARY}"
    assert probe_sms("http", http={"url": url}) == [
        f"ok   [sms.http] url: localhost:{website.port} takes connections"
    ]
    assert website.requests == []


def test_http_gateway_with_a_certificate_of_its_own_fails(trusting):
    with FakeHomeserver(trusted=False) as stranger:
        (line,) = probe_sms("http", http={"url": f"https://localhost:{stranger.port}/"})
    assert line.startswith(
        f"FAIL [sms.http] url: localhost:{stranger.port}: its certificate is refused: "
    )


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (Reply.json({"status": "active"}), "ok   [sms.twilio] account_sid: the account is active"),
        (
            Reply.json({"status": "suspended"}),
            "FAIL [sms.twilio] account_sid: the account is not active",
        ),
        (
            Reply.json({"code": 20003}, 401),
            "FAIL [sms.twilio] auth_token: account_sid and auth_token are refused (401)",
        ),
        (Reply(500), "FAIL [sms.twilio] api_base_url: localhost:{port} answered 500"),
        (Reply(200, b"[]"), "FAIL [sms.twilio] api_base_url: localhost:{port} answered 200"),
    ],
)
def test_twilio_account_is_read_as_its_owner(website, answer, line):
    website.answers["/2010-04-01/Accounts/AC1.json"] = answer
    twilio = {
        "account_sid": "AC1",
        "auth_token": CANARY,
        "api_base_url": f"https://localhost:{website.port}",
    }
    assert probe_sms("twilio", twilio=twilio) == [line.format(port=website.port)]
    (request,) = website.requests
    assert request.method == "GET"
    assert request.headers["Authorization"].startswith("Basic ")


def test_text_of_a_brand_that_does_not_fit_into_one_message_fails(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "verification.sms.j2").write_text("{{ code }}, you know")
    email = {"templates": str(tmp_path)}
    (line,) = said(files.probe_templates(parse({"email": email}, {}, Path("/"))))
    assert line.startswith("FAIL [email] templates: verification.sms.j2 of the brand other does ")
    # Where there is no SMS, nobody gets it.
    email["smtp_host"] = "localhost"
    (line,) = said(files.probe_templates(parse({"email": email}, {}, Path("/"))))
    assert line.startswith("ok   [email] templates: ")


# --- public URL -----------------------------------------------------------------------


def probe_public_url(url: str) -> str:
    config = parse({"server": {"public_url": url}}, {}, Path("/"))
    (line,) = said(network.probe_public_url(config))
    return line.replace(f"[server] public_url: {url}/_matrix/identity/versions: ", "")


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (Reply.json({"versions": ["v1.2"]}), "ok   answers"),
        (Reply.json({}), "warn answered 200, not as an identity server does"),
        (Reply(200, b"<html>"), "warn answered 200, not as an identity server does"),
        (Reply(200, b"[" * 60_000), "warn answered 200, not as an identity server does"),
        (Reply(404), "warn answered 404, not as an identity server does"),
        (
            Reply(302, headers={"Location": "/elsewhere"}),
            "warn answered 302, not as an identity server does",
        ),
        (Reply(raw=[b"junk\r\n\r\n"]), "warn ProtocolError (is the server running?)"),
    ],
)
def test_public_url_is_asked_for_versions(website, answer, line):
    website.answers["/base/_matrix/identity/versions"] = answer
    assert probe_public_url(f"https://localhost:{website.port}/base") == line
    assert website.paths() == ["/base/_matrix/identity/versions"]


def test_public_url_with_more_than_an_answer_is_not_read_to_the_end(website):
    pieces = (b" " * 65_536 for _ in range(1_000))
    website.answers["/_matrix/identity/versions"] = Reply(body=pieces)
    line = probe_public_url(f"https://localhost:{website.port}")
    assert line == "warn answered 200, not as an identity server does"
    assert website.sent_bytes < 50_000_000


def test_public_url_whose_certificate_is_not_trusted_is_warned_of():
    with FakeHomeserver(trusted=False) as stranger:
        line = probe_public_url(f"https://localhost:{stranger.port}")
    assert line.startswith("warn its certificate is refused: ")


def test_reason_of_a_fault_is_looked_for_in_its_causes():
    def raised(error: Exception, cause: Exception) -> Exception:
        try:
            raise error from cause
        except type(error) as caught:
            return caught

    assert network.why(raised(ValueError(CANARY), TimeoutError())) == "no answer within 5 s"
    assert network.why(raised(ValueError(CANARY), ssl.SSLError())) == "ValueError"
