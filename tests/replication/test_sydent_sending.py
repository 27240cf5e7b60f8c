"""What we push to a Sydent: over mutual TLS to one that is played on loopback."""

import json
from random import Random

import pytest
from parts.sydent import Certificates, FakeListener, Sydent

from identity.federation.resolver import SystemResolver
from identity.mxid import UserId
from identity.replication import cursors, store
from identity.replication.receiving import Receiver
from identity.replication.sydent.client import SydentClients
from identity.replication.sydent.receiving import SydentReceiver
from identity.replication.sydent.sending import SydentSending
from identity.signing import is_signed_by
from identity.threepid import ThreePid

DAY_MS = 86_400_000


@pytest.fixture
def certificates(tmp_path):
    folder = tmp_path / "certificates"
    folder.mkdir()
    return Certificates(folder)


@pytest.fixture
def server(make_server, certificates):
    named = {"SERVER__NAME": "id.test", "SERVER__PUBLIC_URL": "https://id.test"}
    return make_server({**named, **certificates.settings("id.test")})


@pytest.fixture
def listener(certificates):
    with FakeListener(certificates, "sydent.test") as listener:
        yield listener


@pytest.fixture
def sydent(server, listener):
    """Known to us at `listener`."""
    sydent = Sydent()
    add(server, sydent.peer(listener.url))
    return sydent


def add(server, peer):
    server.database.write(lambda tx: store.put_peer(tx, peer, server.clock.now_ms()))


@pytest.fixture
def sending(server):
    return make_sending(server)


def make_sending(server, holder="this host", settings=None):
    return SydentSending(
        server.database,
        server.services.signing_keys,
        SydentClients(settings or server.config.replication, SystemResolver()),
        "id.test",
        1_000,
        server.clock,
        holder,
        Random(1),
    )


def attend(sending):
    """What the courier does, until there is nothing due."""
    for _ in range(10):
        due = sending.due()
        if not due:
            return
        for peer in due:
            sending.attend(peer, lambda: False)
    raise AssertionError("there is always something due")


def cursor(server):
    (row,) = server.rows("cursors")
    return row


def bind(server, number, mxid="@a:hs.test"):
    return server.bind_directly(f"a{number}@example.test", mxid)


def unbind(server, number, mxid="@a:hs.test"):
    threepid = ThreePid.email(f"a{number}@example.test")
    assert server.services.associations.unbind(threepid, UserId.parse(mxid))


# --- what is sent ---------------------------------------------------------------------------


def test_binding_is_pushed_as_it_was_signed(server, sydent, listener, sending):
    signed = bind(server, 1)
    attend(sending)
    assert listener.pushes[0] == {"1": signed}
    assert cursor(server)["acknowledged_id"] == 1
    head = listener.heads[0].decode()
    assert head.startswith("POST /_matrix/identity/replicate/v1/push HTTP/1.1\r\n")
    assert "\r\nContent-Type: application/json\r\n" in head
    assert dict(listener.callers[0]["subject"][-1])["commonName"] == "id.test"


def test_revocation_has_all_keys_and_null_where_it_has_nothing_to_say(
    server, sydent, listener, sending
):
    bind(server, 1)
    unbind(server, 1)
    attend(sending)
    (pushed,) = filter(None, listener.pushes)
    (said,) = pushed.values()
    assert list(said) == [
        "medium",
        "address",
        "mxid",
        "ts",
        "not_before",
        "not_after",
        "signatures",
    ]
    assert (said["mxid"], said["not_before"], said["not_after"]) == (None, None, None)


def test_only_what_counts_is_sent_in_order_and_at_most_a_hundred_at_once(
    server, sydent, listener, sending
):
    for number in range(1, 131):
        bind(server, number)
    for number in range(1, 11):
        unbind(server, number)  # 131 to 140 in place of 1 to 10
    bind(server, 1)  # 141 in place of 131
    attend(sending)
    wanted = [*range(11, 131), *range(132, 142)]
    assert listener.taken() == [str(origin_id) for origin_id in wanted]
    assert [len(push) for push in listener.pushes if push] == [100, 30]
    assert cursor(server)["acknowledged_id"] == 141


def test_what_a_peer_has_replaced_is_not_sent(server, sydent, listener, sending):
    bind(server, 1)
    other = Sydent("other.test")
    add(server, other.peer())
    later = other.bound("a1@example.test", "@b:hs.test", server.clock.now_ms() + 5)
    receiver = SydentReceiver(
        server.database,
        Receiver(server.database, server.services.associations, server.clock),
        server.clock,
    )
    receiver.receive(other.peer(), json.dumps({"sgAssocs": {"1": later}}).encode())
    sending.attend("sydent.test", lambda: False)
    # Neither ours, which does not count, nor theirs, which is not ours to send.
    assert listener.taken() == []
    rows = {row["peer"]: row["acknowledged_id"] for row in server.rows("cursors")}
    assert rows["sydent.test"] == 1


def test_statement_of_a_newer_key_is_signed_by_the_first_one_too(server, sydent, listener, sending):
    newer = server.services.signing_keys.rotate()
    signed = bind(server, 1)
    assert list(signed["signatures"]["id.test"]) == [newer]
    attend(sending)
    (said,) = listener.pushes[0].values()
    keys = server.services.signing_keys
    for key_id in ("ed25519:0", newer):
        assert is_signed_by(said, "id.test", {key_id: keys.find_held(key_id).public_key})
    # What is stored stays as it was.
    assert json.loads(server.rows("statements")[0]["signed"]) == signed


def test_without_the_first_key_nothing_is_sent_and_the_operator_is_told(
    server, sydent, listener, sending
):
    newer = server.services.signing_keys.rotate()
    with server.database.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE signing_keys SET revoked_at_ms = 1 WHERE key_id = 'ed25519:0'"
        )
    assert newer
    bind(server, 1)
    sending.attend("sydent.test", lambda: False)
    assert listener.taken() == []
    assert cursor(server)["last_error"] == "this server has no key ed25519:0"


def test_peer_with_everything_is_asked_once_an_hour_whether_it_is_there(
    server, sydent, listener, sending
):
    attend(sending)
    assert listener.pushes == [{}]
    assert cursor(server)["last_success_at_ms"] == server.clock.now_ms()
    server.clock.advance(minutes=59)
    assert sending.due() == []
    server.clock.advance(minutes=2)
    attend(sending)
    assert listener.pushes == [{}, {}]


# --- answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [201, 204, 299])
@pytest.mark.parametrize("answer", [b'{"success": false}', b"plain text"])
def test_any_success_means_that_it_was_taken(server, sydent, listener, sending, status, answer):
    listener.status, listener.answer = status, b"" if status == 204 else answer
    bind(server, 1)
    attend(sending)
    assert cursor(server)["acknowledged_id"] == 1


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (302, b""),
        (400, b"no JSON"),
        (400, b'{"errcode": "M_VERIFICATION_FAILED"}'),
        (400, b'{"errcode": "M_VERIFICATION_FAILED", "failed_ids": ["77", "x", 1, null]}'),
        (403, b'{"errcode": "M_UNKNOWN_PEER"}'),
        (500, b'{"errcode": "M_VERIFICATION_FAILED", "failed_ids": ["1"]}'),
    ],
)
def test_after_any_other_answer_the_same_is_sent_again_later(
    server, sydent, listener, sending, status, answer
):
    listener.status, listener.answer = status, answer
    bind(server, 1)
    bind(server, 2)
    attend(sending)
    failed = cursor(server)
    assert (failed["acknowledged_id"], failed["failures"]) == (0, 1)
    assert failed["last_error"].startswith(f"answered {status}")
    assert server.clock.now_ms() < failed["next_try_at_ms"] <= server.clock.now_ms() + 1_000
    assert sending.due() == []
    server.clock.advance(seconds=1)
    listener.status, listener.answer = 200, None
    attend(sending)
    assert listener.taken() == ["1", "2"]
    assert (cursor(server)["acknowledged_id"], cursor(server)["failures"]) == (2, 0)


def test_statement_that_the_peer_will_not_take_holds_up_nothing(server, sydent, listener, sending):
    for number in range(1, 6):
        bind(server, number)
    listener.refuses = {"2", "4"}
    attend(sending)
    assert listener.taken() == ["1", "3", "5"]
    assert (cursor(server)["acknowledged_id"], cursor(server)["failures"]) == (5, 0)
    assert ("sydent.test", "not taken", 2) in [
        (row["peer"], row["kind"], row["count"]) for row in server.rows("alarms")
    ]


def test_peer_that_finds_fault_with_everything_does_not_know_our_key_and_gets_it_later(
    server, sydent, listener, sending
):
    for number in range(1, 4):
        bind(server, number)
    listener.refuses = {"1", "2", "3"}
    attend(sending)
    assert cursor(server)["last_error"] == "answered 400 M_VERIFICATION_FAILED"
    listener.refuses = set()
    server.clock.advance(seconds=1)
    attend(sending)
    assert listener.taken() == ["1", "2", "3"]


def test_peer_that_finds_ever_new_faults_gets_everything_later(server, sydent, listener, sending):
    for number in range(1, 4):
        bind(server, number)
    listener.status = 400
    listener.answer = b'{"errcode": "M_VERIFICATION_FAILED", "failed_ids": ["2"]}'
    attend(sending)
    assert cursor(server)["last_error"] == "answered 400 M_VERIFICATION_FAILED twice"
    assert cursor(server)["acknowledged_id"] == 0


# --- connections ----------------------------------------------------------------------------


def test_silent_peer_is_given_up_in_time(server, sydent, listener, sending):
    listener.silent = True
    bind(server, 1)
    attend(sending)
    assert cursor(server)["last_error"] == "connection timed out"


def test_peer_whose_certificate_is_for_another_host_is_not_told(server, certificates, sending):
    with FakeListener(certificates, "127.0.0.1", "sydent.test") as listener:
        add(server, Sydent().peer(listener.url))
        bind(server, 1)
        attend(sending)
        assert listener.pushes == []
    assert cursor(server)["last_error"] == "certificate not valid"


def test_peer_of_another_authority_is_not_told(server, tmp_path, sending):
    (tmp_path / "other").mkdir()
    with FakeListener(Certificates(tmp_path / "other"), "sydent.test") as listener:
        add(server, Sydent().peer(listener.url))
        bind(server, 1)
        attend(sending)
        assert listener.pushes == []
    assert cursor(server)["last_error"] == "certificate not valid"


def test_without_a_certificate_of_ours_the_operator_is_told(make_server, listener):
    server = make_server({"SERVER__NAME": "id.test", "SERVER__PUBLIC_URL": "https://id.test"})
    add(server, Sydent().peer(listener.url))
    attend(make_sending(server))
    assert cursor(server)["last_error"] == "no certificate of ours that can be used"
    assert listener.callers == []


# --- who sends, and how long ------------------------------------------------------------------


def test_another_host_does_not_send_while_one_is_at_it(server, sydent, listener, sending):
    bind(server, 1)
    server.database.write(
        lambda tx: cursors.lease(tx, "sydent.test", "this host", server.clock.now_ms())
    )
    other = make_sending(server, "other host")
    assert other.due() == []
    other.attend("sydent.test", lambda: False)
    assert listener.pushes == []
    attend(sending)
    assert listener.taken() == ["1"]


def test_sender_that_is_stopped_ends_between_two_pushes(server, sydent, listener, sending):
    for number in range(1, 151):
        bind(server, number)
    sending.attend("sydent.test", lambda: bool(listener.pushes))
    assert len(listener.taken()) == 100
    assert cursor(server)["acknowledged_id"] == 100
    attend(sending)
    assert len(listener.taken()) == 150


def test_peer_that_was_given_up_gets_everything_when_it_is_back(server, sydent, listener, sending):
    bind(server, 1)
    attend(sending)
    bind(server, 2)
    now_ms = server.clock.now_ms()
    server.database.write(lambda tx: cursors.suspend_silent(tx, now_ms + 1, now_ms))
    attend(sending)
    assert listener.taken() == ["1", "2", "1", "2"] or listener.taken() == ["1", "2", "1", "2", "2"]
    assert server.rows("peers")[0]["suspended_at_ms"] is None
