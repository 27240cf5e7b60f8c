"""Domain errors on the wire: the one table from class to status and errcode.

The nearest class in the table counts, so a leaf needs a row only where it differs from its
parent. A test asserts that each errcode is in the specification or in docs/spec-divergences.md.
"""

from collections.abc import Mapping
from typing import Any, Final

from flask import Response, jsonify

from identity import errors

RESPONSES: Final[Mapping[type[errors.IdentityError], tuple[int, str]]] = {
    errors.NotJson: (400, "M_NOT_JSON"),
    errors.BadJson: (400, "M_BAD_JSON"),
    errors.BodyTooLarge: (413, "M_TOO_LARGE"),
    errors.BodyTooSlow: (408, "M_UNKNOWN"),
    errors.MissingParameters: (400, "M_MISSING_PARAMS"),
    errors.InvalidParameter: (400, "M_INVALID_PARAM"),
    errors.InvalidEmail: (400, "M_INVALID_EMAIL"),
    errors.InvalidPhoneNumber: (400, "M_INVALID_ADDRESS"),
    errors.TooManyAddresses: (400, "M_TOO_LARGE"),
    errors.UnrecognizedMedium: (400, "M_UNRECOGNIZED"),
    errors.DestinationRejected: (400, "M_DESTINATION_REJECTED"),
    errors.Unauthorized: (401, "M_UNAUTHORIZED"),
    errors.UnknownAccessToken: (401, "M_UNAUTHORIZED"),
    errors.HomeserverRefusedToken: (401, "M_UNAUTHORIZED"),
    errors.Forbidden: (403, "M_FORBIDDEN"),
    errors.HomeserverNotAllowed: (403, "M_FORBIDDEN"),
    errors.NotTheTokenOwner: (403, "M_UNAUTHORIZED"),
    errors.TermsNotSigned: (403, "M_TERMS_NOT_SIGNED"),
    errors.SessionUnknown: (404, "M_NO_VALID_SESSION"),
    errors.SessionExpired: (400, "M_SESSION_EXPIRED"),
    errors.SessionNotValidated: (400, "M_SESSION_NOT_VALIDATED"),
    errors.WrongValidationToken: (400, "M_TOKEN_INCORRECT"),
    errors.ThreePidInUse: (400, "M_THREEPID_IN_USE"),
    errors.InviteUnknown: (404, "M_UNRECOGNIZED"),
    errors.KeyNotFound: (404, "M_NOT_FOUND"),
    errors.PepperMismatch: (400, "M_INVALID_PEPPER"),
    errors.LimitExceeded: (429, "M_LIMIT_EXCEEDED"),
    errors.Recovering: (503, "M_UNKNOWN"),
    errors.UnknownPeer: (403, "M_UNKNOWN_PEER"),
    errors.PeerAhead: (409, "M_CONFLICT"),
    errors.VerificationFailed: (400, "M_VERIFICATION_FAILED"),
    errors.EmailNotSent: (400, "M_EMAIL_SEND_ERROR"),
    errors.SmsNotSent: (400, "M_SEND_ERROR"),
    errors.HomeserverUnreachable: (502, "M_UNKNOWN"),
    errors.HomeserversBusy: (503, "M_UNKNOWN"),
    errors.StorageUnavailable: (503, "M_UNKNOWN"),
}


def status_and_errcode(error: errors.IdentityError) -> tuple[int, str]:
    for kind in type(error).__mro__:
        if kind in RESPONSES:
            return RESPONSES[kind]
    raise LookupError(f"{type(error).__name__} has no row in the table of responses")


def error_response(
    error: errors.IdentityError,
    *,
    status: int | None = None,
    errcode: str | None = None,
    **extra: Any,
) -> Response:
    """The standard error body; `status` and `errcode` where an endpoint has its own."""
    usual_status, usual_errcode = status_and_errcode(error)
    response = json_error(
        status or usual_status, errcode or usual_errcode, str(error), **_extras(error), **extra
    )
    return set_retry_after(response, error)


def set_retry_after(response: Response, error: errors.IdentityError) -> Response:
    """With the header that says when to try again, where the error knows it."""
    retry_after_ms = getattr(error, "retry_after_ms", None)
    if retry_after_ms is not None:
        # Rounded up: a client that waits so long succeeds.
        response.headers["Retry-After"] = str(-(-retry_after_ms // 1000))
    return response


def json_error(status: int, errcode: str, message: str, **extra: Any) -> Response:
    response = jsonify({"errcode": errcode, "error": message, **extra})
    response.status_code = status
    return response


def _extras(error: errors.IdentityError) -> dict[str, Any]:
    match error:
        case errors.LimitExceeded():
            return {"retry_after_ms": error.retry_after_ms}
        case errors.ThreePidInUse():
            return {"mxid": error.mxid}
        case errors.VerificationFailed():
            return {"failed_ids": error.failed_ids}
        case errors.PeerAhead():
            return {"last_id": error.last_id}
        case errors.PepperMismatch():
            # Element Android tries again straight from these (LOOK-06).
            return {"algorithm": error.algorithm, "lookup_pepper": error.lookup_pepper}
        case _:
            return {}
