"""Who is calling: access tokens from the Authorization header, and the gate of the terms.

Source: Matrix Identity Service API, "Authentication" and "Terms of service".
"""

import ipaddress
from typing import Final

from flask import request

from identity.accounts.caller import Caller
from identity.accounts.service import Accounts
from identity.mxid import UserId
from identity.terms.service import Terms

_MAX_TOKEN_CHARACTERS: Final = 255


class Authentication:
    """Reads the credentials of the request at hand."""

    def __init__(self, accounts: Accounts, terms: Terms, trusted_proxies: int) -> None:
        self._accounts = accounts
        self._terms = terms
        self._trusted_proxies = trusted_proxies

    def caller(self) -> Caller:
        """As `require`, with the address that the request comes from."""
        return Caller(self.require(), self.client_ip())

    def anonymous(self) -> Caller:
        """Where the API knows no accounts; a token that is sent anyway is not looked at."""
        return Caller(None, self.client_ip())

    def require_account(self) -> UserId:
        """The caller, whether or not the terms are accepted. Raises: Unauthorized."""
        return self._accounts.authenticate(bearer_token())

    def require(self) -> UserId:
        """The caller, who has accepted the terms. Raises: Unauthorized, TermsNotSigned."""
        return self.require_terms(self.require_account())

    def require_also_by_query(self) -> UserId:
        """As `require`; the token may be in the query, as Synapse sends it for `hash_details`.

        A token in the header wins (AUTH-17).
        """
        in_header = "Authorization" in request.headers
        token = bearer_token() if in_header else request.args.get("access_token")
        return self.require_terms(self._accounts.authenticate(token))

    def client_ip(self) -> str:
        """The address of the client: that which the outermost trusted proxy saw.

        Each proxy appends whom it saw to X-Forwarded-For, so what a client writes there itself
        stands further left and is never looked at. An unreadable entry is not believed.
        """
        peer = request.remote_addr or "unknown"
        if self._trusted_proxies == 0:
            return peer
        seen = ",".join(request.headers.getlist("X-Forwarded-For")).split(",")
        if len(seen) < self._trusted_proxies:
            return peer
        try:
            return str(ipaddress.ip_address(seen[-self._trusted_proxies].strip()))
        except ValueError:
            return peer

    def require_terms(self, user_id: UserId) -> UserId:
        self._terms.require(user_id)
        return user_id


def bearer_token() -> str | None:
    """The token of `Authorization: Bearer …`, the scheme in any case; None without one."""
    scheme, _, token = request.headers.get("Authorization", "").strip().partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not 1 <= len(token) <= _MAX_TOKEN_CHARACTERS:
        return None
    return token if token.isascii() else None
