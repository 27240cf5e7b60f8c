"""Conformance, section 4: terms of service."""

import json

import pytest
from parts.homeserver import FakeHomeserver
from parts.server import V2
from parts.validation import refused, sqlite_only
from test_accounts import AUTHENTICATED, authenticated, bearer

ON = "https://hs.test"
TERMS = {
    "terms_of_service": {
        "version": "2.0",
        "langs": {
            "en": {"name": "Terms of Service", "url": f"{ON}/terms-2.0-en.html"},
            "fr": {"name": "Conditions d'utilisation", "url": f"{ON}/terms-2.0-fr.html"},
        },
    },
    "privacy_policy": {
        "version": "1.2",
        "langs": {
            "en": {"name": "Privacy Policy", "url": f"{ON}/privacy-1.2-en.html"},
            "fr": {"name": "Politique de confidentialité", "url": f"{ON}/privacy-1.2-fr.html"},
        },
    },
}
TERMS_EN, TERMS_FR = f"{ON}/terms-2.0-en.html", f"{ON}/terms-2.0-fr.html"
PRIVACY_EN, PRIVACY_FR = f"{ON}/privacy-1.2-en.html", f"{ON}/privacy-1.2-fr.html"


@pytest.fixture
def write_terms(tmp_path):
    def write(docs):
        path = tmp_path / "terms.yaml"
        path.write_text(json.dumps({"docs": docs}))  # JSON is YAML
        return {"TERMS__FILE": str(path)}

    return write


@pytest.fixture
def server(make_server, write_terms):
    return make_server(write_terms(TERMS))


@pytest.fixture
def restart(make_server):
    """Another server over the same database and keys, with other settings."""

    def start(server, settings):
        same = {
            "SERVER__DATA_DIR": str(server.config.server.data_dir),
            "DATABASE__URL": server.config.database_url,
        }
        return make_server(same | settings)

    return start


def accept(account, *urls):
    return account.post("/terms", json={"user_accepts": list(urls)})


def accepted(server):
    return {(row["user_id"], row["url"]) for row in server.rows("accepted_terms")}


def is_pending(account):
    return refused(account.get("/hash_details"), 403, "M_TERMS_NOT_SIGNED")


@pytest.mark.requirement("TERMS-01")
@sqlite_only
def test_policies_are_told_to_anyone_by_language(server):
    for headers in ({}, bearer("garbage")):
        answer = server.client.get(f"{V2}/terms", headers=headers)
        assert answer.status_code == 200
        assert answer.json == {
            "policies": {
                policy: {"version": content["version"], **content["langs"]}
                for policy, content in TERMS.items()
            }
        }


@pytest.mark.requirement("TERMS-01")
@sqlite_only
def test_server_without_policies_tells_none_and_asks_for_none(make_server):
    server = make_server()
    assert server.client.get(f"{V2}/terms").json == {"policies": {}}
    alice = server.account("@alice:hs.test")
    assert alice.get("/hash_details").status_code == 200
    assert accept(alice).json == {}


@pytest.mark.requirement("TERMS-02", "TERMS-04")
def test_known_url_is_accepted_while_terms_are_pending(server, alice):
    assert is_pending(alice)
    for urls in ([TERMS_EN], [TERMS_EN], []):
        answer = accept(alice, *urls)
        assert (answer.status_code, answer.json) == (200, {})
    assert accepted(server) == {(alice.user_id, TERMS_EN)}
    assert is_pending(alice)  # one of two is not enough


@pytest.mark.requirement("TERMS-02")
@sqlite_only
def test_accepting_needs_a_token(server):
    body = {"user_accepts": [TERMS_EN]}
    for headers in ({}, bearer("garbage")):
        answer = server.client.post(f"{V2}/terms", json=body, headers=headers)
        assert refused(answer, 401, "M_UNAUTHORIZED")
    assert accepted(server) == set()


@pytest.mark.requirement("TERMS-03")
def test_acceptances_of_several_calls_add_up(server, alice, bob):
    accept(alice, TERMS_EN)
    accept(alice, PRIVACY_EN)
    accept(alice)
    assert alice.get("/hash_details").status_code == 200
    assert accepted(server) == {(alice.user_id, TERMS_EN), (alice.user_id, PRIVACY_EN)}
    assert is_pending(bob)


@pytest.mark.requirement("TERMS-05")
@sqlite_only
@pytest.mark.parametrize(
    ("urls", "is_enough"),
    [
        ([TERMS_EN, PRIVACY_FR], True),
        ([TERMS_FR, PRIVACY_EN], True),
        ([TERMS_EN, TERMS_FR], False),
        ([PRIVACY_FR], False),
    ],
)
def test_one_language_of_each_policy_counts_for_all(alice, urls, is_enough):
    accept(alice, *urls)
    assert alice.get("/hash_details").status_code == (200 if is_enough else 403)


@pytest.mark.requirement("TERMS-06", "AUTH-10", "AMB-24")
@sqlite_only
def test_pending_terms_close_every_endpoint_that_needs_a_token(server, alice):
    gated = [
        route for route in authenticated(server) if route[1] not in ("/terms", "/account/logout")
    ]
    assert ("GET", "/account") in gated
    assert len(gated) >= len([route for route in AUTHENTICATED if "email" in route[1]]) + 5
    for method, path in gated:
        answer = alice.request(method, path, json={})
        assert refused(answer, 403, "M_TERMS_NOT_SIGNED"), path
        # Who is nobody is told so first.
        for headers in ({}, bearer("x"), {"Authorization": "Basic x"}):
            answer = server.client.open(V2 + path, method=method, headers=headers)
            assert refused(answer, 401, "M_UNAUTHORIZED"), path
    query = {"access_token": alice.token}
    answer = server.client.get(f"{V2}/hash_details", query_string=query)
    assert refused(answer, 403, "M_TERMS_NOT_SIGNED")
    assert server.rows("validation_sessions") == []

    accept(alice, TERMS_EN, PRIVACY_EN)
    for method, path in gated:
        assert alice.request(method, path, json={}).status_code != 403, path
    assert alice.get("/account").json == {"user_id": alice.user_id}


@pytest.mark.requirement("TERMS-06", "AMB-24")
def test_unbind_that_is_proven_otherwise_is_open_while_terms_are_pending(
    make_server, restart, write_terms
):
    before = make_server()
    alice = before.account("@alice:hs.test")
    session = alice.validate("a@example.com")
    assert alice.post("/3pid/bind", json={**session, "mxid": alice.user_id}).status_code == 200

    server = restart(before, write_terms(TERMS))
    body = {"mxid": alice.user_id, "threepid": {"medium": "email", "address": "a@example.com"}}
    for headers in ({}, bearer(alice.token)):
        answer = server.client.post(f"{V2}/3pid/unbind", json={**body, **session}, headers=headers)
        assert (answer.status_code, answer.json) == (200, {})
    assert [row["mxid"] for row in server.rows("associations")] == [None]


@pytest.mark.requirement("AUTH-15", "AMB-24")
def test_pending_terms_hold_nobody_back_from_logging_out(server, alice):
    assert is_pending(alice)
    answer = alice.post("/account/logout")
    assert (answer.status_code, answer.json) == (200, {})
    assert refused(alice.get("/account"), 401, "M_UNAUTHORIZED")
    assert server.rows("access_tokens") == []


@pytest.mark.requirement("AUTH-10")
@sqlite_only
def test_account_tells_token_and_terms_apart(server, alice):
    assert refused(alice.get("/account"), 403, "M_TERMS_NOT_SIGNED")
    answer = server.client.get(f"{V2}/account", headers=bearer("x"))
    assert refused(answer, 401, "M_UNAUTHORIZED")
    accept(alice, TERMS_EN, PRIVACY_EN)
    assert alice.get("/account").json == {"user_id": alice.user_id}


@pytest.mark.requirement("TERMS-07")
def test_acceptance_belongs_to_the_user_and_not_to_the_token(make_server, write_terms):
    with FakeHomeserver() as homeserver:
        name = f"localhost:{homeserver.port}"
        homeserver.openid_users["openid"] = f"@alice:{name}"
        federation = {
            "FEDERATION__CA_FILE": str(homeserver.ca_file),
            "FEDERATION__ALLOW_PRIVATE_ADDRESSES": "true",
        }
        server = make_server(write_terms(TERMS) | federation)
        body = {"access_token": "openid", "matrix_server_name": name}

        def log_in():
            token = server.client.post(f"{V2}/account/register", json=body).json["token"]
            account = server.account("@nobody:hs.test")
            account.token = token
            return account

        first, second = log_in(), log_in()
        assert is_pending(second)
        accept(first, TERMS_EN, PRIVACY_EN)
        for account in (first, second, log_in()):
            assert account.get("/hash_details").status_code == 200
        first.post("/account/logout")
        assert log_in().get("/hash_details").status_code == 200


@pytest.mark.requirement("TERMS-08")
def test_new_url_of_a_policy_is_to_be_accepted_again(server, alice, restart, write_terms):
    accept(alice, TERMS_EN, PRIVACY_EN)
    assert alice.get("/hash_details").status_code == 200

    newer = TERMS | {
        "privacy_policy": {
            "version": "1.3",
            "langs": {"en": {"name": "Privacy Policy", "url": f"{ON}/privacy-1.3-en.html"}},
        }
    }
    alice.server = changed = restart(server, write_terms(newer))
    assert is_pending(alice)
    assert changed.client.get(f"{V2}/terms").json["policies"]["privacy_policy"]["version"] == "1.3"
    assert refused(accept(alice, PRIVACY_EN), 400, "M_INVALID_PARAM")  # the old URL is gone
    accept(alice, f"{ON}/privacy-1.3-en.html")
    assert alice.get("/hash_details").status_code == 200
    # A policy that is dropped is asked for no more.
    alice.server = restart(server, write_terms({"privacy_policy": newer["privacy_policy"]}))
    assert alice.get("/hash_details").status_code == 200


@pytest.mark.requirement("TERMS-09")
@sqlite_only
def test_what_is_no_list_of_known_urls_is_refused_and_nothing_is_stored(server, alice):
    unknown = [
        [f"{ON}/nope"],
        [TERMS_EN, f"{ON}/nope"],
        [TERMS_EN + "/"],
        [TERMS_EN.upper()],
        [""],
        ["x" * 10_000],
    ]
    for urls in ("x", TERMS_EN, 1, None, {}, [1], [TERMS_EN, 1], [None], [[TERMS_EN]], *unknown):
        answer = alice.post("/terms", json={"user_accepts": urls})
        assert refused(answer, 400, "M_INVALID_PARAM"), urls
    assert accepted(server) == set()
    assert accept(alice).json == {}
    assert accept(alice, TERMS_EN, TERMS_EN).json == {}
    assert accepted(server) == {(alice.user_id, TERMS_EN)}
