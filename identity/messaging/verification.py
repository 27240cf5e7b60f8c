"""The mail by which people show that they read an address. Source: MAIL-01, decision 12."""

from email.message import EmailMessage

from identity.messaging.email import Composer
from identity.threepid import ThreePid


def verification_mail(
    composer: Composer,
    threepid: ThreePid,
    *,
    token: str,
    link: str,
    requested_by: str | None,
    brand: str | None,
) -> EmailMessage:
    """A mail to the canonical address with the token and the link.

    requested_by: the MXID of the account that asks, None where the request named none.
    Raises: EmailNotSent where mail cannot carry the address.
    """
    variables = {
        "token": token,
        "link": link,
        "requested_by": requested_by or "",
        "address": threepid.address,
    }
    return composer.compose("verification", threepid.address, brand, variables)
