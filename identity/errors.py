"""Everything that can go wrong in the domain, without a word of HTTP.

Each class is one meaning. The message is safe to show to a client: it holds no
address, token or secret. What a client needs beyond the message is an attribute.
`identity.web.errors` maps each class to a status and an errcode; a test holds that
table against this module.
"""


class IdentityError(Exception):
    """The root: every error that a caller of this server can cause or must be told of.

    `message` is a class attribute with the usual wording; an instance may give a better one.
    """

    message = "The request could not be carried out"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.message)


# --- the request itself -------------------------------------------------------------


class InvalidRequest(IdentityError):
    """The request is wrong in itself; sending it again will not help."""


class NotJson(InvalidRequest):
    message = "The body is not valid JSON"


class BadJson(InvalidRequest):
    message = "The body must be a JSON object"


class BodyTooLarge(InvalidRequest):
    message = "The body is too large"


class BodyTooSlow(InvalidRequest):
    message = "The body took too long to arrive"


class MissingParameters(InvalidRequest):
    """`names`: the parameters that are missing, in the order of the specification."""

    def __init__(self, names: list[str]) -> None:
        super().__init__("Missing parameters: " + ", ".join(names))
        self.names = names


class InvalidParameter(InvalidRequest):
    message = "A parameter is invalid"


class InvalidEmail(InvalidRequest):
    message = "The e-mail address is not valid"


class InvalidPhoneNumber(InvalidRequest):
    message = "The phone number is not valid"


class TooManyAddresses(InvalidRequest):
    """`maximum`: how many addresses one request may hold."""

    def __init__(self, maximum: int) -> None:
        super().__init__(f"At most {maximum} addresses may be looked up at once")
        self.maximum = maximum


class UnrecognizedMedium(InvalidRequest):
    message = "This medium is not supported here"


class DestinationRejected(InvalidRequest):
    message = "This server does not send messages to that destination"


# --- who is asking ------------------------------------------------------------------


class Unauthorized(IdentityError):
    message = "A valid access token is needed"


class UnknownAccessToken(Unauthorized):
    message = "The access token is not known"


class HomeserverRefusedToken(Unauthorized):
    message = "The homeserver did not confirm the OpenID token"


class Forbidden(IdentityError):
    message = "This is not allowed"


class HomeserverNotAllowed(Forbidden):
    message = "Accounts of that homeserver may not be registered here"


class NotTheTokenOwner(Forbidden):
    message = "The access token belongs to another user"


class TermsNotSigned(IdentityError):
    message = "The terms of service must be accepted first"


# --- validation sessions --------------------------------------------------------------


class SessionError(IdentityError):
    """A validation session cannot be used in this way."""


class SessionUnknown(SessionError):
    """No such sid, or not that client secret: the two are not told apart."""

    message = "No validation session was found for that sid and client secret"


class SessionExpired(SessionError):
    message = "The validation session has expired"


class SessionNotValidated(SessionError):
    message = "The validation session has not been completed"


class WrongValidationToken(SessionError):
    message = "The token is incorrect"


# --- invitations ----------------------------------------------------------------------


class ThreePidInUse(IdentityError):
    """`mxid`: who is bound, so that the homeserver can invite them directly."""

    message = "That address is already bound to a Matrix user"

    def __init__(self, mxid: str) -> None:
        super().__init__()
        self.mxid = mxid


class InviteUnknown(IdentityError):
    message = "No invitation has that token"


# --- keys, lookup, limits -------------------------------------------------------------


class KeyNotFound(IdentityError):
    message = "The public key was not found"


class PepperMismatch(IdentityError):
    """`algorithm`: what was asked for; `lookup_pepper`: the pepper to use instead."""

    message = "Unknown or invalid pepper - has it been rotated?"

    def __init__(self, algorithm: str, lookup_pepper: str) -> None:
        super().__init__()
        self.algorithm = algorithm
        self.lookup_pepper = lookup_pepper


class LimitExceeded(IdentityError):
    """`retry_after_ms`: after how long the same request can succeed."""

    message = "Too many requests"

    def __init__(self, retry_after_ms: int) -> None:
        super().__init__()
        self.retry_after_ms = retry_after_ms


# --- replication ----------------------------------------------------------------------


class Recovering(IdentityError):
    """`retry_after_ms`: when it is worth trying again."""

    message = "This server is being restored, and makes no changes yet; please try again"

    def __init__(self, retry_after_ms: int = 10_000) -> None:
        super().__init__()
        self.retry_after_ms = retry_after_ms


class UnknownPeer(IdentityError):
    message = "This server does not replicate with that one"


class PeerAhead(IdentityError):
    """`last_id`: what is held of the peer; its push begins behind that."""

    message = "Statements before these are missing here"

    def __init__(self, last_id: int) -> None:
        super().__init__()
        self.last_id = last_id


class VerificationFailed(InvalidRequest):
    """`failed_ids`: of the statements with a wrong shape or without a good signature, as text, in
    numeric order; nothing of that push is stored."""

    message = "Verification failed for one or more associations"

    def __init__(self, failed_ids: list[str]) -> None:
        super().__init__()
        self.failed_ids = failed_ids


# --- the world around us --------------------------------------------------------------


class EmailNotSent(IdentityError):
    message = "The e-mail could not be sent"


class SmsNotSent(IdentityError):
    message = "The text message could not be sent"


class SmsUnclear(SmsNotSent):
    """A provider may have taken it: it is neither sent again nor given back."""


class HomeserverUnreachable(IdentityError):
    message = "The homeserver could not be reached, or gave no usable answer"


class HomeserversBusy(IdentityError):
    message = "Too many calls to homeservers are under way; please try again"


class StorageUnavailable(IdentityError):
    """`retry_after_ms`: when it is worth trying again."""

    message = "The database is not available; please try again"

    def __init__(self, retry_after_ms: int = 5_000) -> None:
        super().__init__()
        self.retry_after_ms = retry_after_ms


# --- the operator ---------------------------------------------------------------------


class SetupError(Exception):
    """The server cannot run as it is set up: wrong configuration, keys, files, schema.

    Shown as one line on standard error with exit status 1; never sent to a client.
    """
