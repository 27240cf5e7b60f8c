"""The layers of the package: imports run one way, and each library has its place.

    app, cli → routes → service → store, adapters → tables → database → core → kernel

A core decides and does nothing else: no database, no sockets, no clock of its own. Where a new
module does not fit, either it or this page is wrong.
"""

import ast
import graphlib
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "identity"

# Lowest first. A module is in the layer whose pattern says most about it.
LAYERS = {
    "kernel": "errors clock mxid threepid strict_json signing sealing lru breaker",
    "core": "* federation.addresses federation.wellknown federation.xmatrix messaging.domains "
    "messaging.text",
    "database": "database schema",
    "tables": "tables *.models",
    "store": "*.store *.outbox *.index federation.* messaging.* messaging.pages keys.keyfile "
    "replication.client replication.cursors replication.milestones "
    "replication.sydent.client replication.sydent.tls sydent_import.source "
    "sms.gateway sms.message sms.sender sms.transport sms.twilio",
    "service": "*.service *.channel messaging.channel limits.lookup_budget sms.defence services opening "
    "replication.copies replication.forgetting replication.healing replication.peers replication.receiving replication.recovery replication.sending "
    "replication.sydent.receiving replication.sydent.sending",
    "routes": "*.routes *.pages associations.unbinding web.*",
    "program": "app cli logs __main__ check check.* processes.*",
}

# Library to who may import it: layers in capitals, modules in small letters.
PLACES = {
    "sqlalchemy": "DATABASE TABLES *.store replication.cursors replication.milestones",
    "alembic": "schema",
    "psycopg": "database config.values check.network",
    "sqlite3": "database check.network sydent_import.source",
    "pysqlite3": "database",
    "redis": "limits.store check.network",
    "flask": "ROUTES app processes.web",
    "werkzeug": "ROUTES app",
    "gunicorn": "processes.* web.parameters",
    "click": "cli",
    "rich": "cli",
    # What opens sockets.
    "socket": "federation.endpoint federation.homeserver federation.resolver federation.transport messaging.smtp "
    "processes.* check.network",
    "ssl": "federation.endpoint federation.transport messaging.smtp sms.transport check.* "
    "processes.* replication.sydent.*",
    "smtplib": "messaging.smtp check.network",
    "http": "federation.endpoint federation.transport",
    "dns": "federation.resolver",
    "urllib3": "check.network sms.twilio",
    # What one module does for all.
    "canonicaljson": "strict_json",
    "email_validator": "threepid",
    "jinja2": "messaging.brands",
    "nacl": "signing sealing",
    "phonenumbers": "threepid",
    "signedjson": "signing",
    "twilio": "sms.twilio",
    "yaml": "terms.policy",
}
# There are better ways for what these do, or it is not to be done.
NOWHERE = ["asyncio", "pickle", "requests", "subprocess", "urllib.request", "xmlrpc"]
# Time is passed in.
CLOCKLESS = ("kernel", "core", "tables")


def modules():
    """Name without the package to syntax tree."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts).removesuffix("__init__").removesuffix(".")
        if name:
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


TREES = modules()


@cache
def imports_of(name):
    """Everything that a module imports, wherever in it: `a.b` for `from a import b`."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def inside(name):
    """The modules of this package that a module imports."""
    found = set()
    for imported in imports_of(name):
        package, _, rest = imported.partition(".")
        while package == "identity" and rest and rest not in TREES:
            rest = rest.rpartition(".")[0]
        if package == "identity" and rest:
            found.add(rest)
    return found


def layer_of(name):
    matching = [
        ("*" not in pattern, len(pattern), layer)
        for layer, patterns in LAYERS.items()
        for pattern in patterns.split()
        if fnmatchcase(name, pattern)
    ]
    return max(matching)[-1]


HEIGHTS = {layer: height for height, layer in enumerate(LAYERS)}


@pytest.mark.parametrize("name", TREES)
def test_imports_run_downwards(name):
    upwards = {
        other: layer_of(other)
        for other in inside(name)
        if HEIGHTS[layer_of(other)] > HEIGHTS[layer_of(name)]
    }
    assert upwards == {}, f"{name} is in the layer {layer_of(name)}"


def test_imports_run_in_no_circle():
    graph = {name: inside(name) - {name} for name in TREES}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def users_of(library):
    return [
        name
        for name in TREES
        if any(f"{imported}.".startswith(f"{library}.") for imported in imports_of(name))
    ]


@pytest.mark.parametrize("library", PLACES)
def test_library_is_imported_in_its_place_and_nowhere_else(library):
    users, places = users_of(library), PLACES[library].split()
    assert users, "the table speaks of what is gone"
    strangers = [
        name
        for name in users
        if layer_of(name).upper() not in places
        and not any(fnmatchcase(name, place) for place in places)
    ]
    assert strangers == []


@pytest.mark.parametrize("library", NOWHERE)
def test_library_is_imported_nowhere(library):
    assert users_of(library) == []


@pytest.mark.parametrize(
    "name", [name for name in TREES if layer_of(name) in CLOCKLESS and name != "clock"]
)
def test_core_has_no_clock_of_its_own(name):
    assert "time" not in imports_of(name)
    calls = {ast.unparse(node) for node in ast.walk(TREES[name]) if isinstance(node, ast.Attribute)}
    assert not calls & {"datetime.now", "datetime.utcnow", "date.today", "time.time"}


def test_every_pattern_matches_something():
    for layer, patterns in LAYERS.items():
        for pattern in patterns.split():
            assert any(fnmatchcase(name, pattern) for name in TREES), f"{layer}: {pattern}"


def test_walk_sees_what_is_there():
    """The control: an import in the wrong place would be seen."""
    assert "database" in users_of("sqlalchemy")
    assert "associations.store" in inside("associations.service")
    # Also where it is imported late, or for types only.
    assert "database" in users_of("psycopg")
    assert "config" in inside("messaging.email")
    layers = {
        "mxid": "kernel",
        "associations.statement": "core",
        "federation.addresses": "core",
        "federation.transport": "store",
        "messaging.pages": "store",
        "validation.pages": "routes",
        "check": "program",
    }
    assert {name: layer_of(name) for name in layers} == layers
