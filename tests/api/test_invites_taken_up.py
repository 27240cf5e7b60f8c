"""An invitation that was taken up by the link in the mail, before its address is bound.

A homeserver that is told of it once more makes a member of the room an invited person again:
conformance.md section 21, number 1, seen with the link in place of a repeated onbind.
"""

import pytest
from parts.invitations import invite, mailed_invitation
from parts.server import V1

ADDRESS = "bob@example.com"
BOB, CAROL = "@bob:hs.test", "@carol:hs.test"


@pytest.fixture
def invited(server, alice):
    """Signs the invitation for an MXID, as the link in its mail does."""
    assert invite(alice, ADDRESS).status_code == 200
    mail = mailed_invitation(server)

    def sign(mxid):
        values = {"mxid": mxid, "token": mail.token, "private_key": mail.private_key}
        answer = server.client.post(f"{V1}/sign-ed25519", query_string=values)
        assert answer.status_code == 200

    return sign


def notifications(server):
    return [(row["mxid"], row["invite"] is not None) for row in server.rows("deliveries")]


def test_invitation_signed_for_the_bound_mxid_is_not_told_again(server, invited):
    invited(BOB)
    assert server.rows("invites")[0]["delivered_at_ms"] is None
    server.account(BOB).bind(ADDRESS)
    # The homeserver is told of the binding, as of any other.
    assert notifications(server) == [(BOB, False)]
    (row,) = server.rows("invites")
    assert row["delivered_at_ms"] == server.clock.now_ms()


def test_invitation_signed_for_one_mxid_is_not_told_when_another_is_bound_later(server, invited):
    invited(BOB)
    server.account(BOB).bind(ADDRESS)
    server.account(CAROL).bind(ADDRESS, "other")
    assert notifications(server) == [(BOB, False), (CAROL, False)]


def test_invitation_signed_for_another_mxid_is_told_to_the_one_that_is_bound(server, invited):
    invited(CAROL)
    server.account(BOB).bind(ADDRESS)
    assert notifications(server) == [(BOB, True)]


def test_invitation_signed_for_several_counts_for_the_last(server, invited):
    for mxid in (BOB, CAROL, CAROL):
        invited(mxid)
    server.account(CAROL).bind(ADDRESS)
    assert notifications(server) == [(CAROL, False)]


def test_of_two_invitations_the_one_that_was_not_signed_is_told(server, alice, invited):
    invited(BOB)
    assert invite(alice, ADDRESS, room_id="!other:hs.test").status_code == 200
    server.account(BOB).bind(ADDRESS)
    assert notifications(server) == [(BOB, True)]
    by_room = {row["room_id"]: row["token_hash"] for row in server.rows("invites")}
    assert server.rows("deliveries")[0]["invite"] == by_room["!other:hs.test"]
