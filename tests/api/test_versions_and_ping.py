"""Conformance, section 2: versions and the ping."""

import re

import pytest
from parts.server import V2
from parts.validation import sqlite_only

pytestmark = sqlite_only

VERSIONS = "/_matrix/identity/versions"
CURRENT = [f"v1.{minor}" for minor in range(1, 20)]
LEGACY = ["r0.1.0", "r0.2.0", "r0.2.1", "r0.3.0"]


@pytest.fixture
def gated(make_server, tmp_path):
    """A server whose terms nobody has accepted."""
    terms = tmp_path / "terms.yaml"
    terms.write_text(
        "docs: {terms: {version: 1, langs: {en: {name: Terms, url: 'https://hs.test/1'}}}}"
    )
    return make_server({"TERMS__FILE": str(terms)})


@pytest.mark.requirement("VER-01")
def test_versions_are_told_without_a_token_in_the_form_of_the_specification(gated):
    alice = gated.account("@alice:hs.test")
    for answer in (gated.client.get(VERSIONS), alice.get(VERSIONS)):
        assert answer.status_code == 200
        assert answer.mimetype == "application/json"
        assert set(answer.json) == {"versions"}
        assert answer.json["versions"]
        for version in answer.json["versions"]:
            assert re.fullmatch(r"v\d+\.\d+|r\d+\.\d+\.\d+", version)


@pytest.mark.requirement("VER-02", "AMB-03")
def test_versions_are_those_that_are_implemented(make_server):
    with_legacy = make_server().client.get(VERSIONS).json["versions"]
    assert set(with_legacy) == {*LEGACY, *CURRENT}
    without = make_server({"LEGACY_API__CORE": "false"}).client.get(VERSIONS).json["versions"]
    assert set(without) == set(CURRENT)
    for versions in (with_legacy, without):
        assert len(versions) == len(set(versions))


@pytest.mark.requirement("PING-01", "PING-02")
def test_ping_answers_an_empty_object_to_anyone(gated):
    alice = gated.account("@alice:hs.test")
    for path in (V2, f"{V2}/"):
        for answer in (
            gated.client.get(path),
            gated.client.get(path, headers={"Authorization": "Bearer garbage"}),
            alice.get(path),
        ):
            assert answer.status_code == 200
            assert answer.mimetype == "application/json"
            assert answer.json == {}
            assert answer.get_data().strip() == b"{}"
