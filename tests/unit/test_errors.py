"""The domain's errors and their one table of statuses and errcodes."""

import re
from pathlib import Path

import pytest

from identity import errors
from identity.errors import IdentityError
from identity.web.errors import RESPONSES, status_and_errcode

ROOT = Path(__file__).parents[2]
DIVERGENCES = ROOT / "docs" / "spec-divergences.md"

# Of the Identity Service API, v1.19: its list of standard errors, its prose on authentication
# and terms, and its descriptions of endpoints.
SPECIFIED = {
    "M_DESTINATION_REJECTED",
    "M_EMAIL_SEND_ERROR",
    "M_FORBIDDEN",
    "M_INVALID_ADDRESS",
    "M_INVALID_EMAIL",
    "M_INVALID_PARAM",
    "M_INVALID_PEPPER",
    "M_MISSING_PARAMS",
    "M_NOT_FOUND",
    "M_NO_VALID_SESSION",
    "M_SEND_ERROR",
    "M_SESSION_EXPIRED",
    "M_SESSION_NOT_VALIDATED",
    "M_TERMS_NOT_SIGNED",
    "M_THREEPID_IN_USE",
    "M_TOKEN_INCORRECT",
    "M_UNAUTHORIZED",
    "M_UNKNOWN",
    "M_UNKNOWN_TOKEN",
    "M_UNRECOGNIZED",
}
# Of the client-server API and of replication, for what the Identity Service API leaves unnamed.
BORROWED = {
    "M_BAD_JSON",
    "M_CONFLICT",
    "M_LIMIT_EXCEEDED",
    "M_NOT_JSON",
    "M_TOO_LARGE",
    "M_UNKNOWN_PEER",
    "M_VERIFICATION_FAILED",
}


def leaves(kind=IdentityError):
    """The errors that nothing is derived from: what is raised."""
    below = kind.__subclasses__()
    return [leaf for child in below for leaf in leaves(child)] if below else [kind]


def raised(kind):
    """An instance, whatever its constructor asks for."""
    return kind.__new__(kind)


def errcodes_in_code():
    """Every errcode that some file of the package names."""
    texts = [path.read_text() for path in (ROOT / "identity").rglob("*.py")]
    return {errcode for text in texts for errcode in re.findall(r'"(M_[A-Z_]+)"', text)}


@pytest.mark.parametrize("kind", leaves(), ids=lambda kind: kind.__name__)
def test_every_leaf_has_a_status_and_an_errcode_for_an_error(kind):
    status, errcode = status_and_errcode(raised(kind))
    assert 400 <= status < 600
    assert status != 500  # that is for our own faults, which are no domain errors
    assert re.fullmatch("M_[A-Z_]+", errcode)


def test_every_row_of_the_table_is_an_error_of_the_domain():
    for kind in RESPONSES:
        assert issubclass(kind, IdentityError)
        assert getattr(errors, kind.__name__) is kind


def test_error_without_a_row_is_a_fault():
    with pytest.raises(LookupError):
        status_and_errcode(IdentityError())


@pytest.mark.requirement("GEN-06")
def test_every_errcode_is_specified_or_borrowed():
    used = errcodes_in_code()
    assert {errcode for _, errcode in RESPONSES.values()} <= used
    assert used - SPECIFIED == BORROWED


def test_borrowed_errcodes_are_named_among_the_divergences():
    assert set(re.findall("M_[A-Z_]+", DIVERGENCES.read_text())) >= BORROWED


@pytest.mark.parametrize("kind", leaves(), ids=lambda kind: kind.__name__)
def test_every_message_is_a_sentence_without_a_place_for_what_a_caller_sent(kind):
    assert kind.message
    assert kind.message[0].isupper()
    assert not re.search(r"[{}%]", kind.message)


@pytest.mark.parametrize(
    ("raised_error", "status", "errcode"),
    [
        (errors.MissingParameters(["sid", "token"]), 400, "M_MISSING_PARAMS"),
        (errors.UnknownAccessToken(), 401, "M_UNAUTHORIZED"),
        (errors.NotTheTokenOwner(), 403, "M_UNAUTHORIZED"),
        (errors.TermsNotSigned(), 403, "M_TERMS_NOT_SIGNED"),
        (errors.SessionUnknown(), 404, "M_NO_VALID_SESSION"),
        (errors.BodyTooLarge(), 413, "M_TOO_LARGE"),
        (errors.LimitExceeded(1), 429, "M_LIMIT_EXCEEDED"),
        (errors.HomeserverUnreachable(), 502, "M_UNKNOWN"),
        (errors.StorageUnavailable(), 503, "M_UNKNOWN"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_table_gives_the_agreed_answers(raised_error, status, errcode):
    assert status_and_errcode(raised_error) == (status, errcode)


def test_missing_parameters_are_named_in_their_order():
    assert str(errors.MissingParameters(["b", "a"])) == "Missing parameters: b, a"
