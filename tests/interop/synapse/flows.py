"""What people do with e-mail addresses, from end to end.

A flow has people, rooms and addresses of its own. Each of its steps prints one line; the first
that fails ends the flow, and the next one begins.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import click
from client import Refused, User, World, link_in
from homeserver import Synapse
from parts.processes import RunningServer, identity, wait_until

MEMBER = "m.room.member"
EMAIL_INVITE = "m.room.third_party_invite"
# A notification that failed is tried again after about 4, 8, 16, 32 seconds.
DELIVERY_S = 60


class Stage:
    """The servers, and the score."""

    def __init__(self, world: World, synapse: Synapse, server: RunningServer) -> None:
        self.world = world
        self.synapse = synapse
        self.server = server
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
        self._doing = name
        yield
        self.passed += 1
        click.echo(f"  ok    {name}")

    def person(self, localpart: str) -> User:
        """With accounts at both servers."""
        user = User(self.world, localpart)
        user.register_at_identity_server()
        user.accept_terms()
        return user

    def command(self, *arguments: str) -> str:
        """`identity` on the server's machine; what it prints."""
        done = identity(*arguments, folder=self.server.folder, settings=self.server.settings)
        expect(done.returncode, 0, done.stderr)
        return done.stdout

    def undelivered(self, user: User) -> list[dict[str, Any]]:
        """What the operator sees of the notifications about one user."""
        lines = self.command("deliveries", "list").splitlines()
        return [item for line in lines if (item := json.loads(line))["mxid"] == user.user_id]

    def wait_until_told(self, user: User) -> None:
        """Until the homeserver has taken every notification about the user."""
        wait_until(lambda: not self.undelivered(user), DELIVERY_S)


def expect(actual: Any, expected: Any, about: object = "") -> None:
    if actual != expected:
        raise AssertionError(f"{actual!r} in place of {expected!r} {about}")


def expect_refusal(status: int, errcode: str, call: Callable[[], Any]) -> None:
    try:
        answer = call()
    except Refused as refused:
        expect((refused.status, refused.body.get("errcode")), (status, errcode))
    else:
        raise AssertionError(f"{answer!r} in place of {status} {errcode}")


def membership(user: User, room: str, of: User) -> str | None:
    """What the room, as `user` sees it, says of another."""
    return user.state(room, MEMBER).get(of.user_id, {}).get("membership")


def an_account_at_the_identity_server(stage: Stage) -> None:
    alice = User(stage.world, "alice")
    with stage.step("Synapse vouches for its user by an OpenID token"):
        alice.register_at_identity_server()
    with stage.step("the account is of use once the terms are accepted"):
        expect_refusal(403, "M_TERMS_NOT_SIGNED", lambda: alice.find("alice@example.org"))
        alice.accept_terms()
        expect(alice.identity("GET", "/account"), {"user_id": alice.user_id})
    with stage.step("a token that Synapse does not know gets none"):
        openid = {
            "access_token": "unknown",
            "token_type": "Bearer",
            "matrix_server_name": stage.synapse.name,
            "expires_in": 3600,
        }
        expect_refusal(
            401,
            "M_UNAUTHORIZED",
            lambda: alice.identity("POST", "/account/register", json=openid),
        )


def an_address_is_added_bound_found_and_unbound(stage: Stage) -> None:
    address = "bob@example.org"
    bob, friend = stage.person("bob"), stage.person("friend")
    with stage.step("the address is added to the account at Synapse"):
        bob.add_email(address)
        expect(bob.added(), [address])
    with stage.step("it is validated by the mail of the identity server and bound through Synapse"):
        bob.bind(bob.validate(address))
    with stage.step("another user finds it"):
        expect(friend.find(address), bob.user_id)
    with stage.step("an invitation by the address goes to its user at once"):
        room = friend.create_room("By address")
        friend.invite_email(room, address)
        expect(membership(friend, room, bob), "invite")
        expect(friend.state(room, EMAIL_INVITE), {})
    with stage.step("another user cannot unbind it"):
        expect(friend.unbind(address), "success")
        expect(friend.find(address), bob.user_id)
    with stage.step("its user unbinds it through Synapse, and nobody finds it"):
        expect(bob.unbind(address), "success")
        expect(friend.find(address), None)
        expect(bob.added(), [address])
    with stage.step("bound again, it is found; deleted from the account, it is not"):
        bob.bind(bob.validate(address))
        expect(friend.find(address), bob.user_id)
        expect(bob.unbind(address, "/account/3pid/delete"), "success")
        expect(friend.find(address), None)
        expect(bob.added(), [])


def an_unknown_address_is_invited_registers_and_joins(stage: Stage) -> None:
    address = "carol@example.org"
    host = stage.person("host")
    host.set_display_name("Hostess")
    room = host.create_room("Tea at five")
    with stage.step("the invitation is stored, and the mail arrives"):
        # As somebody may type it.
        host.invite_email(room, "Carol@Example.ORG")
        mail = stage.world.wait_for_mail(address)
        for text in ("Hostess", host.user_id, "Tea at five"):
            expect(text in mail.text, expected=True, about=text)
    with stage.step("the room holds what the identity server answered"):
        ((token, content),) = host.state(room, EMAIL_INVITE).items()
        expect(content["display_name"] not in ("", address), expected=True)
        expect(len(content["public_keys"]), 2)
        for key in content["public_keys"]:
            url = f"{key['key_validity_url']}?public_key={quote(key['public_key'], safe='')}"
            expect(stage.world.http.call("GET", url), {"valid": True})
    with stage.step("a new user registers, validates the address and binds it through Synapse"):
        carol = stage.person("carol")
        carol.bind(carol.validate(address))
        expect(host.find(address), carol.user_id)
    with stage.step("the invitation reaches her by onbind"):
        wait_until(lambda: carol.is_invited(room), DELIVERY_S)
        signed = host.state(room, MEMBER)[carol.user_id]["third_party_invite"]["signed"]
        expect((signed["mxid"], signed["token"]), (carol.user_id, token))
    with stage.step("she joins, and stays"):
        carol.join(room)
        stage.wait_until_told(carol)
        expect(membership(host, room, carol), "join")
    with stage.step("bound anew, she is not invited anew"):
        carol.bind(carol.validate(address))
        stage.wait_until_told(carol)
        expect(membership(host, room, carol), "join")


def several_invitations_wait_for_one_address(stage: Stage) -> None:
    address = "dave@example.org"
    first, second = stage.person("first"), stage.person("second")
    kept = first.create_room("Kept")
    withdrawn = first.create_room("Withdrawn")
    space = second.create_room("Orchard", creation_content={"type": "m.space"})
    with stage.step("three are mailed; the mail tells a space from a room"):
        for inviter, room in ((first, kept), (first, withdrawn), (second, space)):
            inviter.invite_email(room, address)
        stage.world.wait_for_mail(address, 3)
        subjects = [mail.message["Subject"] for mail in stage.world.mails_to(address)]
        expect(["to a space" in subject for subject in subjects], [False, False, True])
    with stage.step("one is withdrawn in the room"):
        (token,) = first.state(withdrawn, EMAIL_INVITE)
        first.set_state(withdrawn, EMAIL_INVITE, token, {})
    with stage.step("after the address is bound, the other two arrive"):
        dave = stage.person("dave")
        dave.bind(dave.validate(address))
        for room in (kept, space):
            wait_until(lambda room=room: dave.is_invited(room), DELIVERY_S)
    with stage.step("what Synapse refused is over, and the operator sees it"):
        wait_until(lambda: outcomes(stage.undelivered(dave)) == ["dead"], DELIVERY_S)
        expect(dave.is_invited(withdrawn), expected=False)


def the_signing_key_is_rotated_while_an_invitation_waits(stage: Stage) -> None:
    address = "erin@example.org"
    host = stage.person("keeper")
    with stage.step("the invitation goes out with a new room"):
        room = host.create_room("Keys", invite_3pid=[host.email_invite(address)])
        stage.world.wait_for_mail(address)
        expect(len(host.state(room, EMAIL_INVITE)), 1)
    with stage.step("the key is rotated"):
        stage.command("keys", "rotate")
        stage.server.wait_for_log("signing_key_active")
    with stage.step("the invitation arrives with signatures by both keys"):
        erin = stage.person("erin")
        erin.bind(erin.validate(address))
        wait_until(lambda: erin.is_invited(room), DELIVERY_S)
        signed = host.state(room, MEMBER)[erin.user_id]["third_party_invite"]["signed"]
        keys = set(signed["signatures"][stage.world.identity_server])
        expect(keys, {"ed25519:0", "ed25519:1"})
    with stage.step("she joins, and stays"):
        erin.join(room)
        stage.wait_until_told(erin)
        expect(membership(host, room, erin), "join")


def an_invitation_is_accepted_by_the_link_in_the_mail(stage: Stage) -> None:
    address = "frank@example.org"
    host = stage.person("sender")
    room = host.create_room("By link")
    with stage.step("the mail has a link that clients understand"):
        host.invite_email(room, address)
        link = link_in(stage.world.wait_for_mail(address))
        path, _, query = urlsplit(link).fragment.partition("?")
        expect(path, f"/room/{quote(room, safe='!:')}")
        (sign_url,) = parse_qs(query)["signurl"]
    with stage.step("without its signature the room is closed"):
        # He has no account at the identity server, and needs none.
        frank = User(stage.world, "frank")
        expect_refusal(403, "M_FORBIDDEN", lambda: frank.join(room))
    with stage.step("with the signature of the link he joins"):
        url = f"{sign_url}&mxid={quote(frank.user_id, safe='')}"
        frank.join(room, stage.world.http.call("POST", url))
        expect(membership(host, room, frank), "join")
    with stage.step("he binds the address afterwards, and stays"):
        frank.register_at_identity_server()
        frank.accept_terms()
        frank.bind(frank.validate(address))
        stage.wait_until_told(frank)
        expect(membership(host, room, frank), "join")


def synapse_is_down_and_the_identity_server_is_restarted(stage: Stage) -> None:
    address = "grace@example.org"
    host, grace = stage.person("patient"), stage.person("grace")
    room = host.create_room("Patience")
    host.invite_email(room, address)
    session = grace.validate(address)
    with stage.step("Synapse is down, and the address is bound at the identity server itself"):
        stage.synapse.stop()
        body = {"sid": session.sid, "client_secret": session.client_secret, "mxid": grace.user_id}
        expect(grace.identity("POST", "/3pid/bind", json=body)["mxid"], grace.user_id)
        wait_until(lambda: tries(stage.undelivered(grace)) >= 1, DELIVERY_S)
    with stage.step("the identity server is killed; restarted, it goes on trying"):
        before = tries(stage.undelivered(grace))
        stage.server.kill()
        stage.server.start()
        wait_until(lambda: tries(stage.undelivered(grace)) > before, DELIVERY_S)
    with stage.step("Synapse is back, and the invitation arrives"):
        stage.synapse.start()
        wait_until(lambda: grace.is_invited(room), DELIVERY_S)
    with stage.step("she joins, and stays"):
        grace.join(room)
        stage.wait_until_told(grace)
        expect(membership(host, room, grace), "join")


def an_account_is_deactivated(stage: Stage) -> None:
    addresses = ["heidi@example.org", "heidi@example.com"]
    heidi, friend = stage.person("heidi"), stage.person("neighbour")
    with stage.step("two addresses are bound through Synapse"):
        for address in addresses:
            heidi.bind(heidi.validate(address))
        expect([friend.find(address) for address in addresses], [heidi.user_id] * 2)
    with stage.step("deactivating the account unbinds both"):
        answer = heidi.with_password("/account/deactivate", {})
        expect(answer, {"id_server_unbind_result": "success"})
        expect([friend.find(address) for address in addresses], [None, None])


def outcomes(deliveries: list[dict[str, Any]]) -> list[str | None]:
    return [delivery["outcome"] for delivery in deliveries]


def tries(deliveries: list[dict[str, Any]]) -> int:
    (delivery,) = deliveries
    return delivery["tries"]


FLOWS = [
    an_account_at_the_identity_server,
    an_address_is_added_bound_found_and_unbound,
    an_unknown_address_is_invited_registers_and_joins,
    several_invitations_wait_for_one_address,
    the_signing_key_is_rotated_while_an_invitation_waits,
    an_invitation_is_accepted_by_the_link_in_the_mail,
    synapse_is_down_and_the_identity_server_is_restarted,
    an_account_is_deactivated,
]
