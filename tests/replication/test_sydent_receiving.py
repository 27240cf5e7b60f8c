"""What a Sydent pushes to us: who it is, what is refused, what is taken and how it counts.

The connection is not there; its certificate is what the route asks it for.
"""

import json

import pytest
from parts.sydent import AT_MS, CENTURY_MS, Sydent

from identity.app import create_sydent_app
from identity.mxid import UserId
from identity.replication import store
from identity.replication.peer import Peer, Protocol, Scope, Supersede
from identity.replication.receiving import Receiver
from identity.replication.sydent.wire import PATH
from identity.signing import SigningKey, is_signed_by
from identity.threepid import ThreePid

MINUTE_MS = 60_000
# Of what is decided before anything is stored.
ONE_DATABASE = pytest.mark.parametrize("database_kind", ["sqlite"])
INVITES = [{"medium": "email", "address": "a@example.test", "sender": "@other:hs.test"}]


class Connection:
    """What the route sees of one: its client's certificate."""

    def __init__(self, common_name=None, dns=()):
        self._subject = ((("commonName", common_name),),) if common_name else ()
        self._dns = tuple(("DNS", name) for name in dns)

    def getpeercert(self):
        return {"subject": self._subject, "subjectAltName": self._dns}


@pytest.fixture
def server(make_server):
    return make_server(
        {
            "SERVER__NAME": "id.test",
            "SERVER__PUBLIC_URL": "https://id.test",
            "LEGACY_API__OPEN": "true",
        }
    )


@pytest.fixture
def sydent(server):
    sydent = Sydent()
    add(server, sydent.peer())
    return sydent


def add(server, peer):
    server.database.write(lambda tx: store.put_peer(tx, peer, server.clock.now_ms()))


@pytest.fixture
def push(server):
    """Push associations by id; `body`: other bytes."""
    client = create_sydent_app(server.services).test_client()

    def push(associations=None, *, body=None, connection=None, content_type="application/json"):
        data = json.dumps({"sgAssocs": associations}).encode() if body is None else body
        return client.post(
            PATH,
            data=data,
            content_type=content_type,
            environ_overrides={"gunicorn.socket": connection or Connection("sydent.test")},
        )

    return push


def taken(response):
    return response.status_code == 200 and response.json == {"success": True}


def mxid_of(server, address, medium="email"):
    return server.services.associations.find_mxid(ThreePid.parse(medium, address))


def stored(server):
    rows = server.rows("statements")
    return sorted(row["origin_id"] for row in rows if row["origin"] == "sydent.test")


def refused(server):
    return {row["origin_id"]: row["reason"] for row in server.rows("quarantine")}


# --- who it is ------------------------------------------------------------------------------


def test_binding_of_a_peer_is_found_through_the_lookup_api(server, sydent, push):
    assert taken(push({"7": sydent.bound("a@example.test", "@a:hs.test")}))
    assert server.found("a@example.test") == "@a:hs.test"


@ONE_DATABASE
def test_peer_is_known_by_a_dns_name_of_its_certificate_too(server, sydent, push):
    connection = Connection("something else", ["other.test", "sydent.test"])
    pushed = {"7": sydent.bound("a@example.test", "@a:hs.test")}
    assert taken(push(pushed, connection=connection))
    assert mxid_of(server, "a@example.test") == "@a:hs.test"


@ONE_DATABASE
@pytest.mark.parametrize(
    "connection",
    [
        Connection("stranger.test"),
        Connection("SYDENT.test"),
        Connection("sydent.test "),
        Connection(None),
        Connection("v2.test"),
        Connection("stranger.test", ["*.test", "id.test"]),
    ],
)
def test_unknown_peer_is_refused_before_its_body_is_looked_at(server, sydent, push, connection):
    add(server, Peer("v2.test", "https://v2.test", Protocol.V2, sydent.peer().keys))
    response = push(body=b"no JSON", connection=connection, content_type="text/plain")
    assert response.status_code == 403
    assert response.json == {
        "errcode": "M_UNKNOWN_PEER",
        "error": "This peer is not known to this server",
    }
    assert server.rows("statements") == []


def test_peer_that_was_removed_is_unknown(server, sydent, push):
    server.database.write(lambda tx: store.delete_peer(tx, "sydent.test"))
    assert push({"7": sydent.bound("a@example.test", "@a:hs.test")}).status_code == 403
    assert server.rows("statements") == []


def test_statements_of_another_peer_are_not_taken_from_this_one(server, sydent, push):
    other = Sydent("other.test")
    add(server, other.peer())
    response = push({"7": other.bound("a@example.test", "@a:hs.test")})
    assert (response.status_code, response.json["failed_ids"]) == (400, ["7"])
    assert server.rows("statements") == []


# --- what is no push ------------------------------------------------------------------------


@ONE_DATABASE
@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "text/json", "APPLICATION/JSON", None]
)
def test_content_type_has_to_be_json_exactly(server, sydent, push, content_type):
    pushed = {"7": sydent.bound("a@example.test", "@a:hs.test")}
    response = push(pushed, content_type=content_type)
    assert response.status_code == 400
    assert response.json == {"errcode": "M_NOT_JSON", "error": "This endpoint expects JSON"}
    assert server.rows("statements") == []


@ONE_DATABASE
@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"{", "Malformed JSON"),
        (b"", "Malformed JSON"),
        (b'{"sgAssocs": {"1": Infinity}}', "Malformed JSON"),
        (b"[" * 10_000, "Malformed JSON"),
        (b"[]", 'No "sgAssocs" key in JSON'),
        (b"{}", 'No "sgAssocs" key in JSON'),
        (b'{"sgAssocs": []}', '"sgAssocs" must be an object'),
        (b'{"sgAssocs": {"x": {}}}', "An id must be a positive integer"),
    ],
)
def test_what_is_no_push_is_bad_json(server, sydent, push, body, error):
    response = push(body=body)
    assert response.status_code == 400
    assert response.json == {"errcode": "M_BAD_JSON", "error": error}


@ONE_DATABASE
def test_push_over_four_mebibytes_is_too_large(server, sydent, push):
    response = push(body=b" " * (4 * 1024 * 1024 + 1))
    assert (response.status_code, response.json["errcode"]) == (413, "M_TOO_LARGE")


def test_push_of_two_megabytes_is_taken(server, sydent, push):
    pushed = {str(n): sydent.bound(f"a{n}@example.test", "@a:hs.test") for n in range(1, 301)}
    body = json.dumps({"sgAssocs": pushed}).encode()
    assert taken(push(body=body + b" " * (2_000_000 - len(body))))
    assert len(stored(server)) == 300


@ONE_DATABASE
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_other_methods_are_not_there(server, sydent, method):
    client = create_sydent_app(server.services).test_client()
    assert client.open(PATH, method=method).status_code == 405


@ONE_DATABASE
def test_push_is_not_there_on_the_public_listener(server, sydent):
    assert server.client.post(PATH, json={"sgAssocs": {}}).status_code == 404


@ONE_DATABASE
def test_nothing_else_is_there_on_the_listener_of_peers(server, sydent):
    client = create_sydent_app(server.services).test_client()
    assert client.get("/_matrix/identity/v2").status_code == 404


def test_empty_push_is_a_success(server, sydent, push):
    assert taken(push({}))


# --- what refuses a whole push --------------------------------------------------------------


def changed(sydent, signed):
    return {**signed, "mxid": "@c:hs.test"}


def unsigned(sydent, signed):
    return {**signed, "signatures": {}}


def by_another_key_id(sydent, signed):
    return again(SigningKey.from_seed("ed25519:1", sydent.key.seed), sydent, signed)


def by_another_key(sydent, signed):
    return again(SigningKey.generate("ed25519:0"), sydent, signed)


def without_a_key(sydent, signed):
    del signed["not_after"]
    return again(sydent.key, sydent, signed)


def with_a_wrong_type(sydent, signed):
    return again(sydent.key, sydent, {**signed, "ts": "now"})


def no_object(sydent, signed):
    return "text"


def with_a_fraction_beside(sydent, signed):
    return {**signed, "unsigned": 0.5}


def again(key, sydent, signed):
    return key.sign({name: signed[name] for name in signed if name != "signatures"}, sydent.name)


HOW = [
    changed,
    unsigned,
    by_another_key_id,
    by_another_key,
    without_a_key,
    with_a_wrong_type,
    no_object,
    with_a_fraction_beside,
]


@ONE_DATABASE
@pytest.mark.parametrize("how", HOW)
def test_bad_shape_or_signature_refuses_the_whole_push_and_names_the_ids(server, sydent, push, how):
    bad = how(sydent, sydent.bound("b@example.test", "@b:hs.test"))
    good = sydent.bound("a@example.test", "@a:hs.test")
    response = push({"10": bad, "3": good, "9": bad, "100": good})
    assert response.status_code == 400
    assert response.json == {
        "errcode": "M_VERIFICATION_FAILED",
        "error": "Verification failed for one or more associations",
        "failed_ids": ["9", "10"],
    }
    assert server.rows("statements") == []
    assert server.rows("quarantine") == []
    assert mxid_of(server, "a@example.test") is None


@ONE_DATABASE
def test_other_signatures_are_not_looked_at(server, sydent, push):
    signed = sydent.bound("a@example.test", "@a:hs.test")
    signed["signatures"]["else.test"] = {"ed25519:0": "broken"}
    signed["signatures"][sydent.name]["ed25519:9"] = 17
    assert taken(push({"7": signed}))
    assert mxid_of(server, "a@example.test") == "@a:hs.test"


def test_any_of_the_keys_that_are_pinned_may_have_signed(server, sydent, push):
    new = SigningKey.generate("ed25519:a")
    keys = {**sydent.peer().keys, "ed25519:a": new.public_key}
    add(server, Peer(sydent.name, "https://x.test", Protocol.SYDENT, keys))
    by_new = Sydent(sydent.name, new).bound("b@example.test", "@b:hs.test")
    assert taken(push({"1": sydent.bound("a@example.test", "@a:hs.test"), "2": by_new}))
    assert stored(server) == [1, 2]


# --- what is quarantined --------------------------------------------------------------------


@ONE_DATABASE
@pytest.mark.parametrize(
    ("reason", "statement"),
    [
        ("address", {"address": "no address"}),
        ("address", {"address": "Ａ@example.test"}),
        ("address", {"address": "12x", "medium": "msisdn"}),
        ("shape", {"medium": "pigeon"}),
        ("shape", {"mxid": "nobody"}),
        ("shape", {"not_before": None}),
        ("shape", {"more": "x" * 70_000}),
        ("future", {"ts": 11 * MINUTE_MS}),
    ],
)
def test_what_else_is_wrong_is_quarantined_and_the_rest_goes_on(
    server, sydent, push, reason, statement
):
    now_ms = server.clock.now_ms()
    if "ts" in statement:
        statement = {"ts": now_ms + statement["ts"]}
    bad = {"address": "b@example.test", "mxid": "@b:hs.test", **statement}
    bad = sydent.bound(bad.pop("address"), bad.pop("mxid"), **bad)
    assert taken(push({"5": bad, "6": sydent.bound("a@example.test", "@a:hs.test")}))
    assert refused(server) == {5: reason}
    assert mxid_of(server, "a@example.test") == "@a:hs.test"
    assert mxid_of(server, "b@example.test") is None
    (alarm,) = server.rows("alarms")
    assert (alarm["peer"], alarm["kind"], alarm["count"]) == ("sydent.test", "refused", 1)


def test_what_is_out_of_scope_is_quarantined(server, sydent, push):
    add(server, sydent.peer(scope=Scope.parse(domains=["example.test"])))
    inside, outside = "a@example.test", "a@else.test"
    assert taken(push({"1": sydent.bound(outside, "@a:hs.test"), "2": sydent.unbound(outside)}))
    assert taken(push({"3": sydent.bound(inside, "@a:hs.test")}))
    assert refused(server) == {1: "scope", 2: "scope"}
    assert mxid_of(server, inside) == "@a:hs.test"


def test_peer_that_may_replace_its_own_only_cannot_unbind_ours(server, sydent, push):
    add(server, sydent.peer(supersede=Supersede.OWN))
    server.bind_directly("a@example.test", "@a:hs.test")
    later_ms = server.clock.now_ms() + MINUTE_MS
    assert taken(push({"1": sydent.unbound("a@example.test", later_ms)}))
    assert refused(server) == {1: "supersede"}
    assert mxid_of(server, "a@example.test") == "@a:hs.test"


def test_statement_from_the_future_is_taken_when_it_is_due(server, sydent, push):
    ts = server.clock.now_ms() + 15 * MINUTE_MS
    assert taken(push({"1": sydent.bound("+447700900123", "@a:hs.test", ts, "msisdn")}))
    assert mxid_of(server, "447700900123", "msisdn") is None
    server.clock.advance(minutes=16)
    Receiver(server.database, server.services.associations, server.clock).take_due()
    assert mxid_of(server, "447700900123", "msisdn") == "@a:hs.test"
    assert server.rows("quarantine") == []


# --- ids ------------------------------------------------------------------------------------


def test_known_id_is_a_success_and_nothing_changes(server, sydent, push):
    first = sydent.bound("a@example.test", "@a:hs.test")
    assert taken(push({"7": first}))
    before = server.rows("statements"), server.rows("associations")
    assert taken(push({"7": first}))
    other = sydent.bound("a@example.test", "@other:hs.test", AT_MS + 1)
    assert taken(push({"7": other}))
    assert (server.rows("statements"), server.rows("associations")) == before
    assert server.rows("quarantine") == []
    assert server.rows("alarms") == []


def test_quarantined_id_is_known_too(server, sydent, push):
    bad = sydent.bound("no address", "@a:hs.test")
    assert taken(push({"7": bad}))
    assert taken(push({"7": bad}))
    assert refused(server) == {7: "address"}
    assert server.rows("alarms")[0]["count"] == 1


def test_gaps_fill_later_and_nothing_counts_as_lost(server, sydent, push):
    for origin_id in (9, 4, 12, 1):
        address = f"a{origin_id}@example.test"
        assert taken(push({str(origin_id): sydent.bound(address, "@a:hs.test")}))
        assert mxid_of(server, address) == "@a:hs.test"
    assert stored(server) == [1, 4, 9, 12]
    assert server.rows("alarms") == []
    origin = next(row for row in server.rows("origins") if row["origin"] == "sydent.test")
    assert origin["last_id"] == 12


# --- what counts ----------------------------------------------------------------------------


def test_revocation_is_decided_by_time_not_by_arrival(server, sydent, push):
    assert taken(push({"7": sydent.bound("a@example.test", "@a:hs.test", AT_MS)}))
    # A replay of an old one, under a new id.
    assert taken(push({"8": sydent.unbound("a@example.test", AT_MS - 1)}))
    assert mxid_of(server, "a@example.test") == "@a:hs.test"
    assert taken(push({"9": sydent.unbound("a@example.test", AT_MS + 1)}))
    assert mxid_of(server, "a@example.test") is None
    assert server.found("a@example.test") is None
    # And what was bound before does not come back.
    assert taken(push({"3": sydent.bound("a@example.test", "@old:hs.test", AT_MS - 5)}))
    assert mxid_of(server, "a@example.test") is None


def test_rebinding_replaces(server, sydent, push):
    assert taken(push({"7": sydent.bound("a@example.test", "@a:hs.test", AT_MS)}))
    assert taken(push({"8": sydent.bound("a@example.test", "@b:hs.test", AT_MS + 1)}))
    assert server.found("a@example.test") == "@b:hs.test"


def test_newer_revocation_of_a_peer_ends_a_binding_of_ours(server, sydent, push):
    server.bind_directly("a@example.test", "@a:hs.test")
    assert taken(push({"7": sydent.unbound("a@example.test", server.clock.now_ms() - 1)}))
    assert mxid_of(server, "a@example.test") == "@a:hs.test"
    assert taken(push({"8": sydent.unbound("a@example.test", server.clock.now_ms() + 1)}))
    assert mxid_of(server, "a@example.test") is None


@ONE_DATABASE
def test_revocation_may_say_anything_of_its_validity(server, sydent, push):
    assert taken(push({"7": sydent.bound("a@example.test", "@a:hs.test", AT_MS)}))
    odd = {**sydent.unbound("a@example.test", AT_MS + 1), "not_before": 5, "not_after": 6}
    del odd["signatures"]
    assert taken(push({"8": sydent.sign(odd)}))
    assert mxid_of(server, "a@example.test") is None
    assert server.services.associations.rebuild() == 2
    assert mxid_of(server, "a@example.test") is None


def test_binding_fulfils_an_invitation_that_waits_here(server, sydent, push, alice):
    body = {
        "medium": "email",
        "address": "a@example.test",
        "room_id": "!r:hs",
        "sender": alice.user_id,
    }
    assert alice.post("/store-invite", json=body).status_code == 200
    assert taken(push({"7": sydent.bound("a@example.test", "@a:hs.test", invites=INVITES)}))
    (delivery,) = server.rows("deliveries")
    assert delivery["mxid"] == "@a:hs.test"
    assert delivery["invite"] is not None


def test_binding_without_an_invitation_tells_nobody(server, sydent, push):
    assert taken(push({"7": sydent.bound("a@example.test", "@a:hs.test")}))
    assert server.rows("deliveries") == []


# --- what is kept and shown -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("medium", "sent", "canonical"),
    [
        ("msisdn", "+447700900123", "447700900123"),
        ("email", "Ann@Example.Test", "ann@example.test"),
        ("email", "STRASSE@example.test", "strasse@example.test"),
        ("email", "Jörg@exämple.test", "jörg@exämple.test"),
    ],
)
def test_address_is_found_by_its_canonical_form_and_kept_as_it_came(
    server, sydent, push, medium, sent, canonical
):
    signed = sydent.bound(sent, "@a:hs.test", medium=medium)
    assert taken(push({"7": signed}))
    assert server.found(canonical, medium) == "@a:hs.test"
    assert json.loads(server.rows("statements")[0]["signed"]) == signed
    # The view and the index made anew are the same, and it can be unbound.
    assert server.services.associations.rebuild() == 1
    assert server.found(canonical, medium) == "@a:hs.test"
    assert server.services.associations.unbind(
        ThreePid.parse(medium, canonical), UserId.parse("@a:hs.test")
    )
    assert server.found(canonical, medium) is None
    assert server.rows("lookup_index") == []


def test_only_six_keys_and_signatures_are_given_out(server, sydent, push):
    signed = sydent.bound("a@example.test", "@a:hs.test", invites=INVITES)
    assert taken(push({"7": signed}))
    assert json.loads(server.rows("statements")[0]["signed"]) == signed
    query = {"medium": "email", "address": "a@example.test"}
    shown = server.client.get("/_matrix/identity/api/v1/lookup", query_string=query).json
    said = {"address", "medium", "mxid", "ts", "not_before", "not_after", "signatures"}
    assert shown.keys() == said
    assert shown["not_after"] == AT_MS + CENTURY_MS
    assert shown["signatures"].keys() == {"sydent.test", "id.test"}
    key = server.database.read(server.services.signing_keys.active)
    assert is_signed_by(shown, "id.test", {key.key_id: key.public_key})


def test_push_makes_the_peer_due_at_once(server, sydent, push):
    assert taken(push({}))
    (cursor,) = server.rows("cursors")
    assert cursor["next_try_at_ms"] <= server.clock.now_ms()
