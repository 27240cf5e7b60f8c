"""The main job, end to end: prove an address, bind it, let a stranger find it."""


def test_bind_then_lookup_finds_and_unbind_removes(server, alice):
    session = alice.validate("Alice@Example.com")
    assert server.found("alice@example.com") is None

    bound = alice.post("/3pid/bind", json={**session, "mxid": alice.user_id})
    assert bound.status_code == 200
    assert bound.json["mxid"] == alice.user_id
    assert server.found("alice@example.com") == alice.user_id

    threepid = {"medium": "email", "address": "alice@example.com"}
    body = {**session, "mxid": alice.user_id, "threepid": threepid}
    assert server.client.post("/_matrix/identity/v2/3pid/unbind", json=body).json == {}
    assert server.found("alice@example.com") is None
