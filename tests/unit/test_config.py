"""The configuration: what is read from where, and what is said about what is wrong."""

import string
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest
import sqlalchemy
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from identity.config import Config, ConfigError, Listen, find_path, find_secret_files, load, parse
from identity.config.fields import FIELDS, is_secret, is_table, variable_name
from identity.config.values import format_duration, parse_duration
from identity.limits.gcra import Rate
from identity.mxid import ServerName

BASE = Path("/etc/identity")
CANARY = "canary-5b1f"


def configured(toml_section: str = "", /, environ=None, **keys) -> Config:
    """The configuration with these keys of one section set, as TOML would give them."""
    tree: dict = {}
    table = tree
    for part in toml_section.split(".") if toml_section else []:
        table = table.setdefault(part, {})
    table.update({"from" if key == "from_" else key: value for key, value in keys.items()})
    return parse(tree, environ or {}, BASE)


def faults_of(*arguments, **keys) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        configured(*arguments, **keys)
    return [str(fault) for fault in caught.value.faults]


# --- where it is read from ------------------------------------------------------------


def test_find_path_with_everything_takes_the_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "identity.conf").write_text("")
    environ = {"IDENTITY_CONFIG": "/named.conf"}
    assert find_path(Path("/option.conf"), environ) == Path("/option.conf")
    assert find_path(None, environ) == Path("/named.conf")
    assert find_path(None, {"IDENTITY_CONFIG": ""}) == Path("identity.conf")
    (tmp_path / "identity.conf").unlink()
    assert find_path(None, {}) is None


def test_load_without_a_file_gives_a_development_server_in_the_current_folder(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = load(None, {"PATH": "/bin", "IDENTITY_CONFIG": "", "IDENTITY_TEST_POSTGRES": "x"})
    data = tmp_path / "data"
    assert config.server.data_dir == data
    assert config.database_url == f"sqlite:///{data}/identity.db"
    assert config.signing_keys_path == data / "signing.keys"
    assert config.storage_keys_path == data / "storage.keys"
    assert config.outbox_path == data / "outbox"
    assert config.email_backend == "file"
    assert config.sms_providers == ("file",)
    assert config.worker_count >= 1
    assert config.warnings() == []
    assert list(tmp_path.iterdir()) == []


def test_load_of_a_file_puts_relative_paths_beside_it(tmp_path, monkeypatch):
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "my.conf").write_text(
        '[server]\ndata_dir = "var"\n[terms]\nfile = "terms.yaml"\n'
        '[database]\nurl = "sqlite:///directory.db"\n[keys]\nsigning_keys = "/run/signing.keys"\n'
    )
    monkeypatch.chdir(tmp_path)
    config = load(Path("etc/my.conf"), {"IDENTITY_EMAIL__TEMPLATES": "brands"})
    assert config.server.data_dir == folder / "var"
    assert config.terms.file == folder / "terms.yaml"
    assert config.email.templates == folder / "brands"
    assert config.database_url == f"sqlite:///{folder}/directory.db"
    assert config.signing_keys_path == Path("/run/signing.keys")


def test_database_url_in_a_folder_with_odd_characters_still_names_the_file():
    config = parse({}, {}, Path("/srv/100%25 a?b#c"))
    path = sqlalchemy.make_url(config.database_url).database
    assert path == "/srv/100%25 a?b#c/data/identity.db"
    relative = parse({"database": {"url": "sqlite:///x.db"}}, {}, Path("/srv/a?b"))
    assert sqlalchemy.make_url(relative.database_url).database == "/srv/a?b/x.db"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[server]\nname = \n", "is not TOML: Invalid value (at line 2, column 8)"),
        (b'[server]\nname = "\xff"\n', "is not UTF-8"),
        (b"x = " + b"[" * 100_000, "is nested too deeply"),
        (b"x = " + b"9" * 5_000, "holds a number that is too long"),
        (b"#" * (2**20 + 1), "is too large"),
    ],
)
def test_load_of_a_file_that_is_no_toml_gives_one_fault(tmp_path, content, said):
    path = tmp_path / "identity.conf"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path, {"IDENTITY_NONSENSE": "1"})
    assert [str(fault) for fault in caught.value.faults] == [f"{path}: {said}"]


def test_load_of_a_missing_file_says_which(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.conf: cannot be read: No such file"):
        load(tmp_path / "nowhere.conf", {})


# --- values ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key", "written", "expected"),
    [
        ("validation", "session_lifetime", "90m", timedelta(minutes=90)),
        ("federation", "timeout", "500ms", timedelta(milliseconds=500)),
        ("lookup", "pepper_rotation", "0", timedelta(0)),
        ("retention", "audit", "30d", timedelta(days=30)),
        ("server", "request_body_limit", "512KiB", 524_288),
        ("server", "request_body_limit", "4096", 4_096),
        ("server", "listen", "[::]:8090", Listen("::", 8090)),
        ("metrics", "listen", "localhost:0", Listen("localhost", 0)),
        ("metrics", "listen", "", None),
        ("server", "name", "id.example.org:8448", ServerName.parse("id.example.org:8448")),
        ("server", "aliases", ["[2001:db8::1]"], (ServerName.parse("[2001:db8::1]"),)),
        ("server", "public_url", "https://example.org/id/", "https://example.org/id"),
        ("email", "smtp_host", "Mail_Relay", "mail_relay"),
        ("email", "smtp_host", "2001:db8::1", "2001:db8::1"),
        ("email", "allowed_domains", ["*.Example.org", "bücher.de"], ("*.example.org", "xn--bcher-kva.de")),
        ("federation", "denied_networks", ["10.0.0.0/8", "::1"], (ip_network("10.0.0.0/8"), ip_network("::1"))),
        ("sms", "provider", "file", ("file",)),
        ("sms", "provider", ["file"], ("file",)),
        ("sms", "provider", "", ()),
        ("sms", "price", 1, 1.0),
        ("sms", "allowed_calling_codes", ["44", "*"], ("44", "*")),
        ("sms", "originators", {"1": "+12125550100", "default": "Matrix"}, {"1": "+12125550100", "default": "Matrix"}),
        ("rate_limits", "limits", {"email_ip": "5/h, 10/d"}, {"email_ip": (Rate(5, 3_600_000), Rate(10, 86_400_000))}),
        ("terms", "file", "", None),
        ("terms", "file", "terms.yaml", BASE / "terms.yaml"),
        ("database", "url", "sqlite:////srv/x.db", "sqlite:////srv/x.db"),
        ("database", "url", "postgresql://u:p%25@h1,h2:5/db?target_session_attrs=read-write", "postgresql://u:p%25@h1,h2:5/db?target_session_attrs=read-write"),
        ("rate_limits", "storage", "rediss://:pw@cache/1", "rediss://:pw@cache/1"),
    ],
)  # fmt: skip
def test_value_as_documented_is_parsed(section, key, written, expected):
    value = getattr(getattr(configured(section, **{key: written}), section), key)
    if is_secret(FIELDS[section, key]):
        value = value.get_secret_value()
    assert value == expected


@pytest.mark.parametrize(
    ("written", "header"),
    [
        ("noreply@localhost", "noreply@localhost"),
        ("Matrix Identity <noreply@example.org>", "Matrix Identity <noreply@example.org>"),
        ('"Example, Inc." <a.b+c@example.org>', '"Example, Inc." <a.b+c@example.org>'),
        ("Bücher <post@bücher.de>", "Bücher <post@xn--bcher-kva.de>"),
    ],
)
def test_sender_that_is_a_mailbox_is_kept(written, header):
    assert str(configured("email", from_=written).email.from_) == header


@pytest.mark.parametrize("text", ["::", "127.0.0.1:80", "[::1]:1", "a.example:65535"])
def test_listen_address_written_and_read_again_is_the_same(text):
    listen = Listen.parse(text) if text != "::" else Listen("::", 0)
    assert Listen.parse(str(listen)) == listen


@given(st.integers(0, 36_500 * 86_400_000))
def test_duration_written_and_read_again_is_the_same(duration_ms):
    duration = timedelta(milliseconds=duration_ms)
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(
    ("section", "key", "written", "said"),
    [
        ("server", "name", "a b", '[server] name: "a b" is not a server name; allowed: a host'),
        ("server", "workers", -1, "[server] workers: -1 is too small; allowed: at least 0"),
        ("server", "workers", True, "[server] workers: true is not a whole number; allowed:"),
        ("server", "workers", "4", '[server] workers: "4" is not a whole number; allowed:'),
        ("server", "threads", 0, "[server] threads: 0 is too small; allowed: at least 1"),
        ("server", "threads", 2**70, "[server] threads: 1180591620717411303424 is too large"),
        ("server", "data_dir", "", '[server] data_dir: "" is empty; allowed: a path'),
        ("server", "data_dir", "a\0b", '[server] data_dir: "a\\x00b" holds a control character'),
        ("server", "listen", "", '[server] listen: "" is not an address to listen on; allowed: host'),
        ("server", "listen", "8090", '[server] listen: "8090" is not an address to listen on'),
        ("server", "listen", "127.0.0.1:70000", "is not an address to listen on"),
        ("server", "listen", "a:1:2", "is not an address to listen on"),
        ("server", "request_body_limit", "1 MB", '"1 MB" is not a size; allowed: a string of'),
        ("server", "request_body_limit", "1B", "1 is too small; allowed: at least 1024"),
        ("server", "public_url", "ftp://a", '"ftp://a" is not an http or https URL; allowed: http'),
        ("server", "public_url", "https://", "is not an http or https URL"),
        ("server", "public_url", "https://a:99999", "is not an http or https URL"),
        ("server", "public_url", "https://u:p@a", "names a user"),
        ("server", "public_url", "https://a/?b=c", "has a query or a fragment"),
        ("server", "public_url", "https://a/#", "has a query or a fragment"),
        ("server", "public_url", 'https://a/"', "is not a URL"),
        ("server", "aliases", "a.example", '[server] aliases: "a.example" is not a list; allowed:'),
        ("server", "aliases", ["ok.example", "a:b"], '[server] aliases[1]: "a:b" is not a server'),
        ("email", "from_", "a@b, c@d", '[email] from: "a@b, c@d" is not one mailbox; allowed:'),
        ("email", "from_", "Me <a@b>\r\nBcc: c@d", "holds a control character"),
        ("email", "from_", "Me <a@b", "is not one mailbox"),
        ("email", "from_", "a@*.b", "is not one mailbox"),
        ("email", "tls", "ssl", '"ssl" is none of the choices; allowed: "none", "starttls" or "tls"'),
        ("email", "smtp_host", "mail:25", "is not a host name"),
        ("email", "timeout", "0", '[email] timeout: "0" is too small; allowed: more than 0 seconds'),
        ("email", "timeout", "10 s", '[email] timeout: "10 s" is not a duration; allowed: a string'),
        ("email", "timeout", 10, "[email] timeout: 10 is not a duration; allowed: a string"),
        ("email", "default_brand", "../x", "is not a brand"),
        ("email", "denied_domains", ["*"], '[email] denied_domains[0]: "*" is not a domain'),
        ("validation", "session_lifetime", "9999999d", "is too long"),
        ("validation", "confirm_page", "no", '"no" is not a boolean; allowed: true or false'),
        ("validation", "next_link_hosts", ["a:1"], "is not a host name"),
        ("lookup", "algorithms", ["md5"], "is none of the choices"),
        ("federation", "denied_networks", ["10.0.0.1/8"], "is not a network; allowed: CIDR"),
        ("sms", "price", float("nan"), "[sms] price: nan is not a number"),
        ("sms", "provider", "sns", '[sms] provider[0]: "sns" is none of the choices; allowed:'),
        ("sms", "from_", "much too long a name", "cannot be a sender"),
        ("sms", "originators", {"x": "A"}, '[sms.originators] x: "x" is not a calling code'),
        ("sms", "originators", 3, "[sms] originators: 3 is not a table; allowed: a table"),
        ("sms", "denied_calling_codes", ["+44"], "is not a calling code"),
        ("sms", "http", 3, "[sms.http]: the value is not a section; allowed: keys with values"),
        ("sms.http", "url", "https://a/#b", "has a fragment"),
        ("sms.http", "headers", {"A b": "x"}, "[sms.http.headers] A b: the value is not the name"),
        ("sms.http", "headers", {"A": "x\r\nB: y"}, "[sms.http.headers] A: the value cannot be sent"),
        ("invites", "blocked_keywords", [" "], "is empty; allowed: at least one character"),
        ("invites", "blocked_rooms", ["room"], "is not a room"),
        ("rate_limits", "limits", {"email_ip": "5/x"}, '[rate_limits.limits] email_ip: "5/x" is not'),
        ("rate_limits", "limits", {"emial_ip": "5/h"}, "is not the name of a limit; allowed: email_ip"),
        ("rate_limits", "storage", "http://a", "[rate_limits] storage: the value is not the URL of"),
        ("database", "url", "mysql://a", "[database] url: the value is not the URL of a database"),
        ("database", "url", "sqlite://", "is not the URL of a database"),
        ("database", "url", "sqlite:///:memory:", "is not the URL of a database"),
        ("database", "url", "postgresql://u:p%ss@h/db", 'is not understood by libpq; allowed: a "%"'),
        ("database", "pool_size", 1.5, "[database] pool_size: 1.5 is not a whole number"),
        ("logging", "level", ["info"], "[logging] level: ['info'] is none of the choices"),
        ("logging", "level", "x" * 99, "xxx… is none of the choices"),
        ("logging", "format", datetime(2020, 1, 1, tzinfo=UTC), "is none of the choices"),
    ],
)  # fmt: skip
def test_value_that_is_wrong_is_one_fault(section, key, written, said):
    faults = faults_of(section, **{key: written})
    assert said in faults[0]
    assert "\n" not in faults[0]
    # A wrong name of a limit or header may come with a wrong value.
    assert len(faults) == 1


ALL_FAULTS = """
IDENTITY_SERVER__NMAE: unknown variable; allowed: IDENTITY_SERVER__NAME is the nearest
[database] url_file: cannot be read: No such file or directory; allowed: a file that this user can read
[server] workers: -1 is too small; allowed: at least 0
[server] treads: unknown key; allowed: threads is the nearest
[email] smtp_host: is empty, but backend is smtp; allowed: the SMTP server's name
[email] tls: "starttls" does not work on port 465; allowed: "tls", or port 587
[replication] certificate: is empty, but replication listens on 0.0.0.0:4434; allowed: the path of a certificate in PEM
[replication] private_key: is empty, but replication listens on 0.0.0.0:4434; allowed: the path of a private key in PEM
[logging] level: "loud" is none of the choices (set by IDENTITY_LOGGING__LEVEL); allowed: "debug", "info", "warning", "error" or "critical"
[emial]: unknown section; allowed: email is the nearest
"""


def test_faults_of_many_kinds_are_told_together(tmp_path):
    tree = {
        "server": {"workers": -1, "treads": 3},
        "emial": {},
        "email": {"backend": "smtp", "smtp_port": 465},
        "replication": {"listen": "0.0.0.0:4434"},
        "database": {"url_file": "missing"},
    }
    environ = {"IDENTITY_LOGGING__LEVEL": "loud", "IDENTITY_SERVER__NMAE": "x"}
    with pytest.raises(ConfigError) as caught:
        parse(tree, environ, tmp_path)
    assert str(caught.value) == ALL_FAULTS.strip()


@pytest.mark.parametrize(
    ("section", "keys", "at"),
    [
        ("database", {"read_url": "postgresql://h/db"}, "[database] read_url"),
        ("email", {"smtp_username": "u"}, "[email] smtp_password"),
        ("email", {"smtp_password": "p"}, "[email] smtp_username"),
        ("sms", {"provider": "twilio", "from": "A", "twilio": {"account_sid": "AC"}}, "[sms.twilio] auth_token"),
        ("sms", {"provider": "twilio", "from": "A", "twilio": {"auth_token": "t"}}, "[sms.twilio] account_sid"),
        ("sms", {"provider": "twilio", "twilio": {"account_sid": "AC", "auth_token": "t"}}, "[sms] from"),
        ("sms", {"provider": ["file", "http"]}, "[sms.http] url"),
        ("sms", {"provider": ["file", "file"]}, "[sms] provider"),
        ("sms", {"spend_per_day": 5.0}, "[sms] price"),
        ("lookup", {"algorithms": ["none"]}, "[lookup] algorithms"),
        ("lookup", {"algorithms": []}, "[lookup] algorithms"),
        ("replication", {"certificate": "c.pem"}, "[replication] private_key"),
        ("internal", {"listen": "8.8.8.8:8091"}, "[internal] listen"),
        ("metrics", {"listen": "127.0.0.1:8090"}, "[metrics] listen"),
    ],
)  # fmt: skip
def test_values_that_contradict_each_other_are_a_fault(section, keys, at):
    (fault,) = faults_of(section, **keys)
    assert fault.startswith(f"{at}: ")


def test_config_once_made_cannot_be_changed():
    config = configured()
    with pytest.raises(ValidationError):
        config.server.workers = 3
    with pytest.raises(ValidationError):
        config.server = config.server


# --- environment ----------------------------------------------------------------------


def test_environment_string_is_taken_as_it_is():
    password = "50%\"#'$\\n=é"
    environ = {
        "IDENTITY_EMAIL__SMTP_USERNAME": "mailer",
        "IDENTITY_EMAIL__SMTP_PASSWORD": password,
        "IDENTITY_SMS__TWILIO__AUTH_TOKEN": "[1]",
        "IDENTITY_SERVER__REQUEST_BODY_LIMIT": "2MiB",
        "IDENTITY_LOOKUP__PEPPER_ROTATION": "30d",
        "IDENTITY_METRICS__LISTEN": "[::1]:9090",
    }
    config = configured(environ=environ)
    assert config.email.smtp_password.get_secret_value() == password
    assert config.sms.twilio.auth_token.get_secret_value() == "[1]"
    assert config.server.request_body_limit == 2**21
    assert config.lookup.pepper_rotation == timedelta(days=30)
    assert config.metrics.listen == Listen("::1", 9090)


def test_environment_value_that_is_no_string_is_read_as_toml():
    environ = {
        "IDENTITY_SERVER__WORKERS": "4",
        "IDENTITY_VALIDATION__CONFIRM_PAGE": "false",
        "IDENTITY_SMS__PRICE": "0.05",
        "IDENTITY_EMAIL__ALLOWED_DOMAINS": '["a.example", "b.example"]',
        "IDENTITY_SMS__ORIGINATORS": '{ "1" = "Matrix" }',
        "IDENTITY_SMS__PROVIDER": '["file"]',
    }
    config = configured(environ=environ)
    assert config.server.workers == config.worker_count == 4
    assert config.validation.confirm_page is False
    assert config.sms.price == 0.05
    assert config.email.allowed_domains == ("a.example", "b.example")
    assert config.sms.originators == {"1": "Matrix"}
    assert config.sms.provider == ("file",)
    assert configured(environ={"IDENTITY_SMS__PROVIDER": "file"}).sms.provider == ("file",)


def test_environment_entry_of_a_table_is_set_beside_those_of_the_file():
    environ = {
        "IDENTITY_SMS__HTTP__HEADERS__AUTHORIZATION": "Bearer new",
        "IDENTITY_RATE_LIMITS__LIMITS__EMAIL_IP": "1/d",
        "IDENTITY_SMS__ORIGINATORS__44": "Matrix",
    }
    config = configured(
        "sms.http", environ=environ, headers={"Authorization": "Bearer old", "X-Kind": "text"}
    )
    headers = {name: value.get_secret_value() for name, value in config.sms.http.headers.items()}
    assert headers == {"authorization": "Bearer new", "X-Kind": "text"}
    assert config.rate_limits.limits == {"email_ip": (Rate(1, 86_400_000),)}
    assert config.sms.originators == {"44": "Matrix"}


@pytest.mark.parametrize("in_file", [{"smtp_password": "old"}, {"smtp_password_file": "/missing"}])
def test_environment_secret_replaces_either_form_in_the_file(in_file, tmp_path):
    file = tmp_path / "password"
    file.write_text("new")
    for variable, value in (("SMTP_PASSWORD", "new"), ("SMTP_PASSWORD_FILE", str(file))):
        config = configured(
            "email", environ={f"IDENTITY_EMAIL__{variable}": value}, smtp_username="u", **in_file
        )
        assert config.email.smtp_password.get_secret_value() == "new"


@pytest.mark.parametrize(
    "name",
    [
        "IDENTITY_", "IDENTITY_SERVER", "IDENTITY_SERVER__", "IDENTITY_SERVER__NAME__X",
        "IDENTITY_SERVER_NAME", "IDENTITY_CONFIGX", "IDENTITY_TESTS", "IDENTITY_server__name",
        "IDENTITY_EMAIL__FROM_", "IDENTITY_SERVER__NAME_FILE", "IDENTITY_SMS__HTTP__HEADERS__",
    ],
)  # fmt: skip
def test_environment_variable_that_names_no_key_is_a_fault(name):
    (fault,) = faults_of(environ={name: CANARY})
    assert fault.startswith(f"{name}: unknown variable; allowed: IDENTITY_")
    assert CANARY not in fault


@pytest.mark.parametrize("text", ["", "four", "4\nthreads = 5", "[" * 9_999, "4 5", "é", '"4'])
def test_environment_value_that_is_no_toml_is_one_fault_that_does_not_quote_it(text):
    (fault,) = faults_of(environ={"IDENTITY_SERVER__WORKERS": text})
    assert fault.startswith("IDENTITY_SERVER__WORKERS: is not a TOML value; allowed: ")


def test_environment_value_that_is_not_utf8_is_a_fault():
    (fault,) = faults_of(environ={"IDENTITY_EMAIL__SMTP_PASSWORD": "\udcff"})
    assert fault == "IDENTITY_EMAIL__SMTP_PASSWORD: is not UTF-8; allowed: UTF-8"


def test_environment_below_a_section_that_is_none_leaves_that_fault():
    with pytest.raises(ConfigError) as caught:
        parse({"server": 3}, {"IDENTITY_SERVER__WORKERS": "1"}, BASE)
    (fault,) = caught.value.faults
    assert str(fault).startswith("[server]: the value is not a section")


# --- secrets --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "secret"), [("s3cret", "s3cret"), ("s3cret\n", "s3cret"), ("s3cret\r\n", "s3cret")]
)
def test_secret_file_is_read_without_its_last_line_break(tmp_path, content, secret):
    (tmp_path / "token").write_bytes(content.encode())
    tree = {
        "sms": {
            "twilio": {"auth_token_file": "token"},
            "http": {"headers": {"Authorization_file": "token"}},
        }
    }
    sms = parse(tree, {}, tmp_path).sms
    assert sms.twilio.auth_token.get_secret_value() == secret
    assert {k: v.get_secret_value() for k, v in sms.http.headers.items()} == {
        "Authorization": secret
    }


@pytest.mark.parametrize("location", [place for place in FIELDS if is_secret(FIELDS[place])])
def test_secret_of_any_key_may_come_from_a_file(tmp_path, location):
    *section, key = [*location, "X-Key"] if is_table(FIELDS[location]) else location
    good = {"url": "postgresql://h/d", "read_url": "postgresql://h/d", "storage": "redis://h"}
    (tmp_path / "secret").write_text(good.get(key, "s3cret"))
    tree: dict = {"email": {"smtp_username": "u"}, "database": {"url": "postgresql://h/d"}}
    tree["email"]["smtp_password"] = "p"
    table = tree
    for part in section:
        table = table.setdefault(part, {})
    table.pop(key, None)
    table[f"{key}_file"] = "secret"
    value = parse(tree, {}, tmp_path)
    for part in location:
        value = getattr(value, part)
    secret = value["X-Key"] if is_table(FIELDS[location]) else value
    assert secret.get_secret_value() == good.get(key, "s3cret")


@pytest.mark.parametrize(
    ("content", "keys", "said"),
    [
        (b"", {}, "names an empty file"),
        (b"\n", {}, "names an empty file"),
        (b"\xff", {}, "is not UTF-8"),
        (b"x" * 70_000, {}, "is too large; allowed: at most 65536 bytes"),
        (b"a\nb", {}, "holds a line break"),
        (b"x", {"auth_token": "y"}, "is given twice, as a value and as a file"),
        (b"x", {"auth_token_file": 3}, "is not a string"),
        (b"x", {"auth_token_file": "."}, "cannot be read: Is a directory"),
    ],
)
def test_secret_file_that_cannot_be_used_is_a_fault(tmp_path, content, keys, said):
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        parse({"sms": {"twilio": {"auth_token_file": "token", **keys}}}, {}, tmp_path)
    (fault,) = caught.value.faults
    assert fault.section == "sms.twilio"
    assert fault.key.startswith("auth_token")
    assert said in str(fault)


def test_secret_file_of_a_key_that_is_no_secret_is_unknown():
    (fault,) = faults_of("server", name_file="x")
    assert fault.startswith("[server] name_file: unknown key; allowed: name")


def test_secrets_in_a_sound_configuration_are_not_shown():
    tree = {
        "database": {"url": f"postgresql://u:{CANARY}@h/d", "read_url": f"postgresql://u:{CANARY}@h/d"},
        "email": {"smtp_username": "u", "smtp_password": CANARY},
        "sms": {"twilio": {"auth_token": CANARY}, "http": {"headers": {"A": CANARY}}},
        "rate_limits": {"storage": f"redis://:{CANARY}@h"},
    }  # fmt: skip
    config = parse(tree, {}, BASE)
    assert CANARY not in repr(config)
    assert CANARY not in str(config)
    assert CANARY not in " ".join(config.warnings())
    assert CANARY in config.database_url


@pytest.mark.parametrize("location", [place for place in FIELDS if is_secret(FIELDS[place])])
@pytest.mark.parametrize("junk", [f"{CANARY}\n\0", [CANARY], {CANARY + "é": CANARY}])
def test_secrets_in_a_wrong_configuration_are_not_shown(location, junk):
    tree: dict = {}
    table = tree
    for part in location[:-1]:
        table = table.setdefault(part, {})
    table[location[-1]] = {"X": junk} if is_table(FIELDS[location]) else junk
    with pytest.raises(ConfigError) as caught:
        parse(tree, {}, BASE)
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None


def test_secret_files_of_a_configuration_are_found(tmp_path):
    path = tmp_path / "identity.conf"
    path.write_text(
        '[database]\nurl = "postgresql://u:pw@h/d"\n[email]\nsmtp_username = "u"\n'
        'smtp_password_file = "mail"\n[rate_limits]\nstorage = "redis://cache"\n'
        '[sms.http]\nheaders = { A = "x", B_file = "b" }\n'
    )
    environ = {"IDENTITY_SMS__TWILIO__AUTH_TOKEN": "t", "IDENTITY_DATABASE__READ_URL_FILE": "/r"}
    assert sorted(find_secret_files(path, environ)) == [
        ("database.read_url_file", Path("/r")),
        ("database.url", path),
        ("email.smtp_password_file", tmp_path / "mail"),
        ("sms.http.headers.A", path),
        ("sms.http.headers.B_file", tmp_path / "b"),
    ]


# --- warnings -------------------------------------------------------------------------

PUBLIC = {"name": "id.example.org", "public_url": "https://id.example.org", "trusted_proxies": 1}
MAIL = {"smtp_host": "mail.example.org", "from": "noreply@id.example.org"}
SMS = {
    "provider": "twilio",
    "allowed_calling_codes": ["44"],
    "twilio": {"account_sid": "AC", "auth_token": "t"},
}


def test_warnings_of_a_usual_public_server_are_none():
    assert parse({"server": {**PUBLIC}, "email": {**MAIL}}, {}, BASE).warnings() == []


@pytest.mark.parametrize(
    "sms",
    [
        {"originators": {"44": "Matrix"}},
        {"originators": {"default": "Matrix"}, "allowed_calling_codes": ["*"]},
        {"from": "Matrix"},
    ],
)
def test_warnings_of_a_twilio_account_with_a_sender_for_each_calling_code_are_none(sms):
    tree = {"server": {**PUBLIC}, "email": {**MAIL}, "sms": {**SMS, **sms}}
    assert parse(tree, {}, BASE).warnings() == []


def test_warnings_of_senders_name_the_calling_codes_that_have_none():
    sms = {**SMS, "allowed_calling_codes": ["44", "33", "*"], "originators": {"44": "Matrix"}}
    (warning,) = parse({"server": {**PUBLIC}, "email": {**MAIL}, "sms": sms}, {}, BASE).warnings()
    assert "none for 33, all others, so" in warning


@pytest.mark.requirement("SIGN-06")
@pytest.mark.parametrize(
    ("server", "warned"),
    [
        ({"name": "other.example.org"}, True),
        ({"name": "id.example.org:8448"}, True),
        ({"name": "id.example.org:443"}, False),
        ({"name": "ID.example.org"}, False),
        ({"public_url": "https://id.example.org:8448/base"}, False),
        ({"name": "other.example.org", "aliases": ["id.example.org"]}, True),
    ],
)
def test_warnings_of_a_name_that_is_not_the_public_host_tell_so(server, warned):
    config = parse({"server": {**PUBLIC, **server}, "email": {**MAIL}}, {}, BASE)
    assert [w.partition(": ")[0] for w in config.warnings()] == ["[server] public_url"] * warned


@pytest.mark.parametrize(
    ("section", "keys", "at"),
    [
        ("server", {"public_url": "http://id.example.org"}, "[server] public_url"),
        ("server", {"trusted_proxies": 0}, "[server] trusted_proxies"),
        ("email", {"backend": "file"}, "[email] backend"),
        ("email", {"from": "noreply@localhost"}, "[email] from"),
        ("email", {"tls": "none"}, "[email] tls"),
        ("sms", {"provider": "http", "http": {"url": "https://a"}}, "[sms] allowed_calling_codes"),
        ("sms", {**SMS, "provider": "http", "http": {"url": "http://sms.test"}}, "[sms.http] url"),
        ("sms", {**SMS, "originators": {"1": "+12125550100"}}, "[sms] originators"),
        ("rate_limits", {"enabled": False}, "[rate_limits] enabled"),
        ("federation", {"verify_certificates": False}, "[federation] verify_certificates"),
        ("federation", {"allow_private_addresses": True}, "[federation] allow_private_addresses"),
        ("legacy_api", {"open": True}, "[legacy_api] open"),
        ("lookup", {"algorithms": ["sha256", "none"]}, "[lookup] algorithms"),
        ("internal", {"listen": "0.0.0.0:1"}, "[internal] listen"),
    ],
)
def test_warnings_of_what_is_rarely_meant_name_the_key(section, keys, at):
    tree: dict = {"server": {**PUBLIC}, "email": {**MAIL}}
    tree.setdefault(section, {}).update(keys)
    (warning,) = parse(tree, {}, BASE).warnings()
    assert warning.startswith(f"{at}: ")


# --- junk -----------------------------------------------------------------------------

TEXTS = st.text(max_size=20) | st.text(string.printable, max_size=20)
# Pieces that come close to what the parsers take.
SCHEMES = ["http://", "https://", "sqlite:///", "postgresql://", "redis://"]
WORDS = ["a.example", "[::1]", ":80", "*.", "1/h", "24h", "1KiB", "+44"]
PIECES = st.sampled_from([*SCHEMES, *WORDS, *'@<>"\\%?#,!/é'])
NEARLY = st.lists(PIECES | st.text(max_size=3), max_size=6).map("".join)
SCALARS = TEXTS | NEARLY | st.integers() | st.floats() | st.booleans() | st.datetimes() | st.none()
JUNK = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | NEARLY, inner, max_size=3)
)  # fmt: skip
VARIABLES = st.sampled_from([variable_name(place) for place in FIELDS])


def try_out(tree: dict, environ: dict[str, str]) -> None:
    """Whatever goes in: a configuration that can be used, or faults of one line each."""
    try:
        config = parse(tree, environ, BASE)
    except ConfigError as error:
        faults = error.faults
    else:
        assert config.database_url
        assert all(warning.isprintable() for warning in config.warnings())
        return
    assert faults
    assert all(str(fault).isprintable() and fault.problem and fault.allowed for fault in faults)


@pytest.mark.parametrize("location", FIELDS, ids=".".join)
@settings(max_examples=10, deadline=None)
@given(junk=st.data())
def test_junk_for_any_key_gives_a_config_error_at_most(location, junk):
    tree: dict = {}
    table = tree
    for part in location[:-1]:
        table = table.setdefault(part, {})
    table[location[-1]] = junk.draw(JUNK)
    try_out(tree, {})


@settings(deadline=None)
@given(JUNK)
def test_junk_for_the_whole_file_gives_a_config_error_at_most(junk):
    try_out(junk if isinstance(junk, dict) else {"server": junk}, {})


@settings(deadline=None)
@given(st.dictionaries(VARIABLES | TEXTS.map("IDENTITY_".__add__), TEXTS | NEARLY, max_size=5))
def test_junk_in_the_environment_gives_a_config_error_at_most(environ):
    try_out({}, environ)
