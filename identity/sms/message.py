"""What a text message says: a brand's template, rendered so that it fits into one message.

`verification.sms.j2` gets `code`, `host`, `server_name`, `address` (the number, as "+44…") and
`requested_by`; `invite.sms.j2` gets `link`, `server_name`, `address`, `sender`, `is_space`, and the
texts of the request under their own names. Other than in mails, what callers supply comes in plain
(see `identity.sms.gsm`), and as short as it has to be: nobody's name keeps a code from being sent.

A verification ends with the line by which phones fill in the code for the right site alone, and the
code stands nowhere else: `@<host of our public URL> #<code>`.

Source: decision 14; the WICG's draft "Origin-bound one-time codes delivered via SMS".
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from identity.errors import SetupError, SmsNotSent
from identity.invites.invite import SPACE, TEXTS, InviteRequest, short_link
from identity.messaging.brands import Brands
from identity.messaging.text import ascii_domain
from identity.signing import SEED_BYTES
from identity.sms.gsm import MAX_SEPTETS, count_septets, plain
from identity.threepid import ThreePid

if TYPE_CHECKING:
    from identity.config import Config

VERIFICATION: Final = "verification.sms.j2"
INVITATION: Final = "invite.sms.j2"

# How long a supplied text may be, tried in turn. At 0 it is empty, and what is left was checked
# when the server started.
_LIMITS: Final = (48, 40, 32, 26, 20, 16, 12, 8, 0)
_CUT: Final = ".."
# The longest number there is, and a code such as every other one.
_SAMPLE_ADDRESS: Final = "999999999999999"
_SAMPLE_CODE: Final = "135790"

_LACKS: Final = {
    VERIFICATION: "does not carry its one code in the last line, as @{{ host }} #{{ code }}",
    INVITATION: "does not carry the link",
}

Render = Callable[[Mapping[str, str]], str]


def message_host(public_url: str) -> str:
    """The host that a code is bound to. No port: phones compare domains."""
    return ascii_domain(urlsplit(public_url).hostname or "")


def verification_text(
    brands: Brands,
    number: ThreePid,
    *,
    code: str,
    server_name: str,
    host: str,
    requested_by: str | None,
    brand: str | None,
) -> str:
    """The message with the code, six digits; at most 160 septets.

    host: as `message_host` gives it. requested_by: the MXID of the account that asks, None where
    the request named none. Raises: SmsNotSent where no text fits, which `check_texts` rules out.
    """
    known = {
        "code": code,
        "host": host,
        "server_name": server_name,
        "address": f"+{number.address}",
    }
    return _fitted(
        lambda names: _lines(brands.render(brand, VERIFICATION, {**names, **known})),
        {"requested_by": requested_by or ""},
        partial(_carries_code, code=code, host=host),
    )


def invitation_text(brands: Brands, request: InviteRequest, *, link: str, server_name: str) -> str:
    """The message with the link, whole; at most 160 septets.

    Raises: SmsNotSent where no text fits, which `check_texts` rules out for short links.
    """
    known = {
        "link": link,
        "server_name": server_name,
        "address": f"+{request.threepid.address}",
        "is_space": request.texts.get("room_type") == SPACE,
    }
    return _fitted(
        lambda names: _lines(brands.render(request.brand, INVITATION, {**names, **known})),
        {**{name: request.texts.get(name, "") for name in TEXTS}, "sender": str(request.sender)},
        partial(_carries_link, link=link),
    )


def check_texts(brands: Brands, config: "Config") -> None:
    """Whether every brand's messages fit, however short names have to be made.

    Raises: SetupError, which names the brand and the template.
    """
    server_name, url = str(config.server.name), config.server.public_url
    link = short_link(url, bytes(SEED_BYTES)) if config.invites.allow_msisdn else None
    for brand in brands.names():
        for file, text, carries in _samples(brands, brand, server_name, message_host(url), link):
            if not carries(text):
                raise _unfit(brand, file, _LACKS[file])
            septets = count_septets(text)
            if septets is None:
                raise _unfit(brand, file, "has characters that are not in the alphabet of SMS")
            if septets > MAX_SEPTETS:
                size = f"takes {septets} of {MAX_SEPTETS} septets even without any name"
                raise _unfit(brand, file, f"{size}; shorten it, or [server] public_url")


def _samples(
    brands: Brands, brand: str | None, server_name: str, host: str, link: str | None
) -> Iterator[tuple[str, str, Callable[[str], bool]]]:
    """File, text, and whether it carries what it is for, with every name empty."""
    known: dict[str, object] = {"server_name": server_name, "address": f"+{_SAMPLE_ADDRESS}"}
    variables = {**known, "code": _SAMPLE_CODE, "host": host, "requested_by": ""}
    text = _lines(brands.render(brand, VERIFICATION, variables))
    yield VERIFICATION, text, partial(_carries_code, code=_SAMPLE_CODE, host=host)
    if link is None:
        return
    for is_space in (False, True):
        variables = {**dict.fromkeys(TEXTS, ""), **known, "sender": "", "link": link}
        text = _lines(brands.render(brand, INVITATION, {**variables, "is_space": is_space}))
        yield INVITATION, text, partial(_carries_link, link=link)


def _fitted(render: Render, supplied: Mapping[str, str], carries: Callable[[str], bool]) -> str:
    """The text with as much of what was supplied as there is room for."""
    names = {name: plain(text) for name, text in supplied.items()}
    for limit in _LIMITS:
        text = render({name: _shorten(value, limit) for name, value in names.items()})
        septets = count_septets(text)
        if septets is not None and septets <= MAX_SEPTETS and carries(text):
            return text
    raise SmsNotSent


def _carries_code(text: str, *, code: str, host: str) -> bool:
    return text.count(code) == 1 and text.endswith(f"\n@{host} #{code}")


def _carries_link(text: str, *, link: str) -> bool:
    return link in text.split()


def _lines(rendered: str) -> str:
    return "\n".join(line.strip() for line in rendered.strip().splitlines())


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else (text[: limit - len(_CUT)].rstrip() + _CUT) * (limit > 0)


def _unfit(brand: str | None, file: str, problem: str) -> SetupError:
    return SetupError(f"[email] templates: {file} of the brand {brand or 'by default'} {problem}")
