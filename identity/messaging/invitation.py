"""The mail that invites someone who is not on Matrix yet.

Its templates get every text of the request under its own name, as the homeserver sent it: they
shorten and defuse what they show. What we say ourselves is never taken from the request. A name
that a template cannot write, like `org.matrix.web_client_location`, is passed over.

Source: Matrix Identity Service API, "Invitation storage"; MSC3288; decision 16; security.md,
threats 18 and 19; CVE-2021-29432 for what happens otherwise.
"""

from email.message import EmailMessage
from typing import Final

from identity.invites.invite import SPACE, TEXTS, InviteRequest
from identity.messaging.email import Composer

# Names with a meaning of their own in every template: a text in their place would speak for
# this server, or be called like the function that it hides.
_RESERVED: Final = frozenset(
    {
        "server_name",
        *("_", "gettext", "ngettext", "pgettext", "npgettext"),
        *("range", "dict", "lipsum", "cycler", "joiner", "namespace"),
    }
)


def invitation_mail(
    composer: Composer, request: InviteRequest, *, token: str, link: str, refuse_link: str
) -> EmailMessage:
    """A mail to the canonical address with the link that accepts.

    link: the web client's, which carries the private half of the ephemeral key.
    refuse_link: of the page where the recipient can ask for no more invitations.
    Raises: EmailNotSent where mail cannot carry the address.
    """
    variables: dict[str, object] = {
        **dict.fromkeys(TEXTS, ""),
        **{name: text for name, text in request.texts.items() if _is_variable(name)},
        "room_id": request.room_id,
        "medium": str(request.threepid.medium),
        "address": request.threepid.address,
        "sender": str(request.sender),
        "is_space": request.texts.get("room_type") == SPACE,
        "token": token,
        "link": link,
        "refuse_link": refuse_link,
    }
    return composer.compose("invite", request.threepid.address, request.brand, variables)


def _is_variable(name: str) -> bool:
    return name.isidentifier() and name not in _RESERVED
