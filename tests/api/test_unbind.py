"""Unbind over v2, authorised by a validation session or by nothing: conformance.md section 12."""

import pytest
from parts.parallel import second_server
from parts.server import V2
from parts.validation import UNLIMITED, bind, refused, sqlite_only, submit

EMAIL = "alice@example.com"
# What Synapse reads as "unbinding is not supported", and then forgets the binding.
NOT_SUPPORTED = {400, 404, 501}


def unbind(server, session, address=EMAIL, mxid="@alice:hs.test", medium="email", **request):
    body = {"mxid": mxid, "threepid": {"medium": medium, "address": address}}
    for name in ("sid", "client_secret"):
        if name in session:
            body[name] = session[name]
    return server.client.post(V2 + "/3pid/unbind", json=body, **request)


def unbound(response):
    assert (response.status_code, response.json) == (200, {})
    return True


@pytest.fixture
def session(alice):
    """A validated session, whose address is bound to alice."""
    session = alice.validate(EMAIL)
    assert bind(alice, session).status_code == 200
    return session


@pytest.mark.requirement("UNB-01", "AMB-12")
def test_unbind_by_a_session_removes_the_binding(server, session):
    assert server.found(EMAIL) == "@alice:hs.test"
    assert unbound(unbind(server, session))
    assert server.found(EMAIL) is None
    (row,) = server.rows("associations")
    assert row["mxid"] is None
    assert len(server.rows("statements")) == 2


@pytest.mark.requirement("UNB-01")
def test_unbind_then_bind_by_the_same_session_finds_it_again(server, alice, session):
    for _ in range(2):
        assert unbound(unbind(server, session))
        assert server.found(EMAIL) is None
        assert bind(alice, session).status_code == 200
        assert server.found(EMAIL) == alice.user_id


@pytest.mark.requirement("UNB-01")
def test_unbind_by_the_new_owner_of_an_address_removes_what_the_old_one_bound(server, session, bob):
    """Decision 9: it ignores whose session it is, for the session proves the address."""
    assert unbound(unbind(server, bob.validate(EMAIL)))
    assert server.found(EMAIL) is None


@pytest.mark.requirement("UNB-02", "UNB-07")
def test_unbind_of_an_address_that_the_session_does_not_prove_is_refused(server, alice, session):
    other = alice.validate("other@example.com", "another")
    phone = {"address": "441632960000", "medium": "msisdn"}
    for response in (
        unbind(server, other),
        unbind(server, session, "other@example.com"),
        unbind(server, session, "441632960000@example.com"),
        unbind(server, session, **phone),
    ):
        assert refused(response, 403, "M_FORBIDDEN")
        assert response.status_code not in NOT_SUPPORTED
    assert server.found(EMAIL) == alice.user_id


@pytest.mark.requirement("UNB-05", "UNB-07")
def test_unbind_by_a_session_that_proves_nothing_is_refused(server, clock, alice, session):
    alice.request_token(EMAIL, "unvalidated")
    unvalidated = server.mailed()
    submit(alice, unvalidated, token="wrong")
    cases = [
        (session | {"client_secret": "other"}, "M_NO_VALID_SESSION"),
        (session | {"sid": "nope"}, "M_NO_VALID_SESSION"),
        (session | {"sid": ""}, "M_NO_VALID_SESSION"),
        (unvalidated, "M_SESSION_NOT_VALIDATED"),
    ]
    for credentials, errcode in cases:
        response = unbind(server, credentials)
        assert refused(response, 403, errcode)
        assert response.status_code not in NOT_SUPPORTED
    clock.advance(hours=24, ms=1)
    assert refused(unbind(server, session), 403, "M_SESSION_EXPIRED")
    assert refused(unbind(server, unvalidated), 403, "M_SESSION_EXPIRED")
    assert server.found(EMAIL) == alice.user_id
    assert len(server.rows("statements")) == 1


@pytest.mark.requirement("UNB-06", "UNB-07", "AMB-12")
def test_unbind_by_nothing_or_by_an_access_token_alone_is_refused(server, alice, session):
    bearer = {"Authorization": f"Bearer {alice.token}"}
    for credentials in ({}, {"sid": session["sid"]}, {"client_secret": session["client_secret"]}):
        for headers in ({}, bearer, {"Authorization": "Bearer bogus"}):
            response = unbind(server, credentials, headers=headers)
            assert refused(response, 401, "M_UNAUTHORIZED")
            assert response.status_code not in NOT_SUPPORTED
    assert server.found(EMAIL) == alice.user_id


@sqlite_only
@pytest.mark.requirement("AMB-12")
def test_unbind_by_a_session_ignores_an_access_token(make_server, tmp_path):
    """Of somebody else, of nobody, or of one who has not accepted the terms."""
    terms = tmp_path / "terms.yaml"
    terms.write_text(
        "docs: {privacy: {version: '1', langs: {en: {name: P, url: 'https://id.example.org/'}}}}"
    )
    server = make_server(UNLIMITED)
    gated = second_server(make_server, server, **UNLIMITED, TERMS__FILE=str(terms))
    alice, bob = server.account("@alice:hs.test"), server.account("@bob:hs.test")
    pending = gated.account(alice.user_id)
    assert refused(pending.get("/account"), 403, "M_TERMS_NOT_SIGNED")
    session = alice.validate(EMAIL)
    for token in ("", "bogus", bob.token, pending.token):
        assert bind(alice, session).status_code == 200
        assert server.found(EMAIL) == alice.user_id
        assert unbound(unbind(gated, session, headers={"Authorization": f"Bearer {token}"}))
        assert server.found(EMAIL) is None


@pytest.mark.requirement("UNB-08")
def test_unbind_of_what_is_not_bound_to_that_mxid_changes_nothing(server, alice, bob, session):
    assert unbound(unbind(server, session, mxid=bob.user_id))
    assert unbound(unbind(server, session, mxid="@ALICE:hs.test"))
    assert server.found(EMAIL) == alice.user_id
    assert len(server.rows("statements")) == 1
    for _ in range(2):
        assert unbound(unbind(server, session))
    assert len(server.rows("statements")) == 2
    bob.bind(EMAIL)
    assert unbound(unbind(server, session))
    assert server.found(EMAIL) == bob.user_id
    never_bound = alice.validate("never@example.com", "another")
    assert unbound(unbind(server, never_bound, "never@example.com"))


@sqlite_only
@pytest.mark.requirement("UNB-10")
def test_unbind_canonicalises_the_address(server, alice):
    session = alice.validate("Strauß@Example.com")
    for typed in ("STRAUSS@Example.com", "strauß@example.com", "Strauss@EXAMPLE.COM"):
        bind(alice, session)
        assert server.found("strauss@example.com") == alice.user_id
        assert unbound(unbind(server, session, typed))
        assert server.found("strauss@example.com") is None


@sqlite_only
@pytest.mark.requirement("UNB-10")
def test_unbind_with_missing_or_mistyped_parameters_is_refused(server, alice, session):
    threepid = {"medium": "email", "address": EMAIL}
    body = {**session, "mxid": alice.user_id, "threepid": threepid}

    def post(changed):
        return server.client.post(V2 + "/3pid/unbind", json=changed)

    for name in ("mxid", "threepid"):
        assert refused(post({k: v for k, v in body.items() if k != name}), 400, "M_MISSING_PARAMS")
    for name in threepid:
        rest = {k: v for k, v in threepid.items() if k != name}
        assert refused(post(body | {"threepid": rest}), 400, "M_MISSING_PARAMS")
    for wrong in (1, [], True, None, "x"):
        for changed in (
            body | {"threepid": wrong},
            body | {"mxid": wrong},
            body | {"threepid": threepid | {"address": wrong}},
            body | {"threepid": threepid | {"medium": wrong}},
        ):
            assert refused(post(changed), 400, "M_INVALID_PARAM"), changed
        if wrong != "x":
            for name in ("sid", "client_secret"):
                assert refused(post(body | {name: wrong}), 400, "M_INVALID_PARAM")
    for medium, address in (("Email", EMAIL), ("fax", "1"), ("email", "a@b@c"), ("msisdn", "x")):
        changed = body | {"threepid": {"medium": medium, "address": address}}
        assert refused(post(changed), 400, "M_INVALID_PARAM")
    form = server.client.post(V2 + "/3pid/unbind", data={"mxid": alice.user_id})
    assert refused(form, 400, "M_NOT_JSON")
    assert server.found(EMAIL) == alice.user_id
    assert len(server.rows("statements")) == 1
