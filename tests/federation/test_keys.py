"""The keys of homeservers: asked for over TLS, believed or not, kept for as long as they count."""

import json
import threading

import pytest
from parts.clock import FakeClock
from parts.homeserver import KEYS, WELL_KNOWN, FakeHomeserver, Reply
from signedjson.key import encode_verify_key_base64, generate_signing_key

from identity.clock import DAY_MS, MINUTE_MS
from identity.errors import HomeserversBusy, HomeserverUnreachable
from identity.federation.keys import MAX_KEY_ID_CHARACTERS, MAX_KEYS, MAX_SERVERS, HomeserverKeys
from identity.mxid import ServerName

HS = ServerName.parse("hs.test")


@pytest.fixture
def keys(make_client, clock) -> HomeserverKeys:
    return HomeserverKeys(make_client(), clock)


def published(*signing_keys) -> dict[str, bytes]:
    return {f"ed25519:{key.version}": bytes(key.verify_key) for key in signing_keys}


def questions(homeserver: FakeHomeserver) -> int:
    return homeserver.paths().count(KEYS)


@pytest.mark.requirement("FED-12", "AMB-27")
def test_keys_are_asked_for_under_the_path_without_a_slash(keys, homeserver):
    assert keys.get(HS) == published(*homeserver.signing_keys)
    assert homeserver.paths() == [WELL_KNOWN, KEYS]
    request = homeserver.requests[-1]
    assert (request.method, request.target) == ("GET", "/_matrix/key/v2/server")
    assert request.headers["Host"] == "hs.test"
    assert "Authorization" not in request.headers


@pytest.mark.requirement("FED-12", "AMB-27")
def test_keys_come_from_where_the_name_leads(keys, homeserver, resolver, network):
    homeserver.well_known = Reply.json({"m.server": "b.hs.test:8449"})
    resolver.host("b.hs.test", "1.2.3.5")
    with FakeHomeserver("b.hs.test") as delegated:
        network.routes["1.2.3.5", 8449] = ("127.0.0.1", delegated.port)
        assert keys.get(HS) == published(*delegated.signing_keys)


class TestAcceptance:
    @pytest.mark.requirement("FED-13", "AMB-27")
    @pytest.mark.parametrize("name", ["other.test", "HS.test", "hs.test:8448", "", None, 1])
    def test_answer_about_another_server_is_refused(self, keys, homeserver, name):
        homeserver.answers[KEYS] = Reply.json(homeserver.key_document(server_name=name))
        with pytest.raises(HomeserverUnreachable):
            keys.get(HS)

    @pytest.mark.requirement("FED-13", "AMB-27")
    def test_server_name_is_compared_as_it_was_written(self, keys, homeserver):
        homeserver.server_name = "HS.test"
        with pytest.raises(HomeserverUnreachable):
            keys.get(HS)
        assert keys.get(ServerName.parse("HS.test")) == published(*homeserver.signing_keys)

    @pytest.mark.requirement("FED-13", "AMB-27")
    @pytest.mark.parametrize("signers", ["nobody", "a stranger", "an old key"])
    def test_answer_not_signed_by_one_of_its_keys_is_refused(self, keys, homeserver, signers):
        homeserver.old_keys = [generate_signing_key("old")]
        chosen = {
            "nobody": [],
            "a stranger": [generate_signing_key(homeserver.signing_keys[0].version)],
            "an old key": homeserver.old_keys,
        }[signers]
        homeserver.answers[KEYS] = Reply.json(homeserver.key_document(chosen))
        with pytest.raises(HomeserverUnreachable):
            keys.get(HS)

    @pytest.mark.requirement("FED-13", "AMB-27")
    def test_answer_changed_after_signing_is_refused(self, keys, homeserver):
        document = homeserver.key_document()
        document["valid_until_ts"] += 1
        homeserver.answers[KEYS] = Reply.json(document)
        with pytest.raises(HomeserverUnreachable):
            keys.get(HS)

    @pytest.mark.requirement("FED-13", "AMB-27")
    def test_one_signature_of_its_keys_suffices(self, keys, homeserver):
        homeserver.signing_keys.append(generate_signing_key("a_2"))
        document = homeserver.key_document(homeserver.signing_keys[1:])
        document["signatures"]["hs.test"]["ed25519:a_1"] = "AAAA"
        document["signatures"]["other.test"] = {"ed25519:a_1": "AAAA"}
        homeserver.answers[KEYS] = Reply.json(document)
        assert keys.get(HS) == published(*homeserver.signing_keys)

    @pytest.mark.requirement("FED-14")
    def test_old_keys_do_not_count(self, keys, homeserver):
        homeserver.old_keys = [generate_signing_key("old")]
        assert keys.get(HS) == published(*homeserver.signing_keys)

    def test_keys_that_cannot_be_used_are_passed_over(self, keys, homeserver):
        (good,) = homeserver.key_document()["verify_keys"].values()
        verify_keys = {
            "ed25519:a_1": good,
            "rsa:1": good,
            "ed25519:short": {"key": "AAAA"},
            "ed25519:odd": {"key": "?"},
            "ed25519:number": {"key": 1},
            "ed25519:nothing": {},
            "ed25519:text": good["key"],
            "ed25519:" + "a" * MAX_KEY_ID_CHARACTERS: good,
        }
        homeserver.answers[KEYS] = Reply.json(homeserver.key_document(verify_keys=verify_keys))
        assert keys.get(HS) == published(*homeserver.signing_keys)

    @pytest.mark.parametrize(("count", "accepted"), [(MAX_KEYS, True), (MAX_KEYS + 1, False)])
    def test_number_of_keys_is_bounded(self, keys, homeserver, count, accepted):
        homeserver.signing_keys = [generate_signing_key(f"a_{number}") for number in range(count)]
        if accepted:
            assert len(keys.get(HS)) == count
        else:
            with pytest.raises(HomeserverUnreachable):
                keys.get(HS)

    @pytest.mark.parametrize(
        "changes",
        [
            {"valid_until_ts": None},
            {"valid_until_ts": "1900000000000"},
            {"valid_until_ts": True},
            {"verify_keys": []},
            {"verify_keys": {}},
            {"verify_keys": None},
            {"signatures": []},
        ],
        ids=str,
    )
    def test_malformed_answer_is_refused(self, keys, homeserver, changes):
        document = homeserver.key_document(
            **{k: v for k, v in changes.items() if k != "signatures"}
        )
        homeserver.answers[KEYS] = Reply.json({**document, **changes})
        with pytest.raises(HomeserverUnreachable):
            keys.get(HS)

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'"hs.test"', b"{", b"\xff"])
    def test_answer_that_is_no_object_is_refused(self, keys, homeserver, body):
        homeserver.answers[KEYS] = Reply(body=body)
        with pytest.raises(HomeserverUnreachable):
            keys.get(HS)

    @pytest.mark.parametrize("status", [201, 302, 401, 404, 500])
    def test_status_other_than_200_is_refused(self, keys, homeserver, status):
        homeserver.answers[KEYS] = Reply.json(homeserver.key_document(), status)
        with pytest.raises(HomeserverUnreachable):
            keys.get(HS)

    @pytest.mark.requirement("FED-11")
    @pytest.mark.parametrize(("size", "accepted"), [(50 * 1024, True), (50 * 1024 + 1, False)])
    def test_answer_is_capped(self, keys, homeserver, size, accepted):
        body = json.dumps(homeserver.key_document()).encode()
        homeserver.answers[KEYS] = Reply(body=body + b" " * (size - len(body)))
        if accepted:
            assert keys.get(HS) != {}
        else:
            with pytest.raises(HomeserverUnreachable):
                keys.get(HS)


class TestLifetime:
    @pytest.mark.requirement("FED-14")
    @pytest.mark.parametrize("ago_ms", [0, 1, 365 * DAY_MS])
    def test_expired_answer_holds_no_keys(self, keys, homeserver, clock, ago_ms):
        homeserver.keys_valid_until_ms = clock.at_ms - ago_ms
        assert keys.get(HS) == {}

    @pytest.mark.requirement("FED-14", "FED-15")
    def test_keys_are_kept_until_the_answer_says(self, keys, homeserver, clock):
        homeserver.keys_valid_until_ms = clock.at_ms + DAY_MS
        assert keys.get(HS) != {}
        clock.at_ms += DAY_MS - 1
        assert keys.get(HS) != {}
        assert questions(homeserver) == 1
        clock.at_ms += 1
        assert keys.get(HS) == {}  # the same answer, which is too old by now
        assert questions(homeserver) == 2

    @pytest.mark.requirement("FED-14")
    def test_keys_are_kept_for_seven_days_at_most(self, keys, homeserver, clock):
        first = keys.get(HS)
        homeserver.signing_keys = [generate_signing_key("a_2")]
        clock.at_ms += 7 * DAY_MS - 1
        assert keys.get(HS) == first
        clock.at_ms += 1
        assert keys.get(HS) == published(*homeserver.signing_keys)

    @pytest.mark.requirement("FED-14")
    def test_clock_that_is_set_back_keeps_no_keys_alive(self, keys, homeserver, clock):
        keys.get(HS)
        homeserver.signing_keys = [generate_signing_key("a_2")]
        clock.at_ms -= 1
        assert keys.get(HS) == published(*homeserver.signing_keys)

    @pytest.mark.requirement("FED-14")
    def test_keys_that_ran_out_do_not_count_while_the_server_is_down(
        self, keys, homeserver, network, clock
    ):
        keys.get(HS)
        network.routes.clear()
        clock.at_ms += 7 * DAY_MS
        with pytest.raises(HomeserverUnreachable):
            keys.get(HS)

    def test_server_used_least_recently_is_forgotten(self, make_client, homeserver, clock):
        keys = HomeserverKeys(make_client(), clock)
        keys.get(HS)
        for number in range(MAX_SERVERS):
            keys._known.put(f"{number}.hs.test", keys._known.find("hs.test"))
            if number == MAX_SERVERS // 2:
                keys.get(HS)
        keys.get(HS)
        assert questions(homeserver) == 1
        for number in range(MAX_SERVERS):
            keys._known.put(f"{number}.other.test", keys._known.find("0.hs.test"))
        keys.get(HS)
        assert questions(homeserver) == 2


@pytest.mark.requirement("FED-15")
class TestQuestions:
    def test_server_is_asked_anew_once_a_minute(self, keys, homeserver, clock):
        first = keys.get(HS)
        homeserver.signing_keys = [generate_signing_key("a_2")]
        for _ in range(100):
            assert keys.refresh(HS) == first
        clock.at_ms += MINUTE_MS - 1
        assert keys.refresh(HS) == first
        assert questions(homeserver) == 1
        clock.at_ms += 1
        for _ in range(100):
            assert keys.refresh(HS) == published(*homeserver.signing_keys)
        assert questions(homeserver) == 2

    @pytest.mark.parametrize("failure", ["down", "refused", "expired"])
    def test_server_that_gave_no_keys_is_asked_once_a_minute(
        self, keys, homeserver, network, clock, failure
    ):
        routes = dict(network.routes)
        if failure == "down":
            network.routes.clear()
        elif failure == "refused":
            homeserver.answers[KEYS] = Reply.json({})
        else:
            homeserver.answers[KEYS] = Reply.json(homeserver.key_document(valid_until_ts=1))

        def no_keys() -> None:
            if failure == "expired":
                assert keys.get(HS) == {}
            else:
                with pytest.raises(HomeserverUnreachable):
                    keys.get(HS)

        no_keys()
        connects = len(network.connects)
        homeserver.answers.clear()
        network.routes.update(routes)
        clock.at_ms += MINUTE_MS - 1
        for _ in range(100):
            no_keys()
        assert len(network.connects) == connects
        clock.at_ms += 1
        assert keys.get(HS) == published(*homeserver.signing_keys)

    def test_failure_leaves_the_keys_that_are_valid(self, keys, homeserver, network, clock):
        first = keys.get(HS)
        network.routes.clear()
        clock.at_ms += MINUTE_MS
        for _ in range(2):
            with pytest.raises(HomeserverUnreachable):
                keys.refresh(HS)
            assert keys.get(HS) == first

    def test_servers_are_asked_and_kept_apart(self, keys, homeserver, resolver, network):
        resolver.host("b.hs.test", "1.2.3.5")
        with FakeHomeserver() as other:
            other.server_name = "b.hs.test"
            network.routes["1.2.3.5", 8448] = ("127.0.0.1", other.port)
            for _ in range(2):
                assert keys.get(HS) == published(*homeserver.signing_keys)
                assert keys.get(ServerName.parse("b.hs.test")) == published(*other.signing_keys)
            assert questions(homeserver) == questions(other) == 1

    def test_question_that_was_not_asked_counts_for_nothing(self, make_client, homeserver, clock):
        client = make_client(threads=1)
        keys = HomeserverKeys(client, clock)
        homeserver.hold = threading.Event()
        caller = threading.Thread(target=lambda: client.get_openid_subject(HS, "token"))
        caller.start()
        homeserver.wait_for_requests(1)
        with pytest.raises(HomeserversBusy):
            keys.get(HS)
        homeserver.hold.set()
        caller.join()
        assert keys.get(HS) == published(*homeserver.signing_keys)

    def test_answer_outlives_the_failure_of_a_slower_question(
        self, make_client, homeserver, clock: FakeClock
    ):
        """Two ask at once; the one that fails ends last."""
        keys = HomeserverKeys(make_client(), clock)
        good, first_asked, answered = Reply.json(homeserver.key_document()), [], threading.Event()

        def answer(_request) -> Reply:
            if first_asked:
                return good
            first_asked.append(True)
            answered.wait(10)
            return Reply(500)

        homeserver.answers[KEYS] = answer
        errors = []

        def ask() -> None:
            try:
                keys.get(HS)
            except HomeserverUnreachable as error:
                errors.append(error)

        caller = threading.Thread(target=ask)
        caller.start()
        homeserver.wait_for_requests(2)
        assert keys.get(HS) == published(*homeserver.signing_keys)
        answered.set()
        caller.join()
        assert len(errors) == 1
        assert keys.get(HS) == published(*homeserver.signing_keys)


def test_key_in_any_base64_is_read(keys, homeserver):
    (key,) = homeserver.signing_keys
    padded = {"ed25519:a_1": {"key": encode_verify_key_base64(key.verify_key) + "="}}
    homeserver.answers[KEYS] = Reply.json(homeserver.key_document(verify_keys=padded))
    assert keys.get(HS) == published(key)
