"""Pages for people: one HTML document each, and the policy that holds a browser to it.

A page has no script and loads nothing. Its style sheet is allowed by its hash, so that text
which slips in as markup can neither run, nor style, nor load anything. The names of the pages
and the variables that they take, all optional, are:
- `confirm`: `address`, `requested_by`, `sid`, `client_secret`, `token`, and `action`, the URL
  that the form posts to (the page's own when empty);
- `verified`: `address`;
- `failed`: `reason`, one of "wrong", "expired" and "attempts";
- `invitation`: `sender`, `address`, `is_space`, the texts of the invitation under their own names,
  and two links, `link` into the web client and `refuse_link`;
- `refuse`: `medium`, `address`, `token`, `code`, and `action` as for `confirm`;
- `refused`: `medium`, `address`;
- `error`: `title`, `message`, and `final` where trying again is no use, all safe to show.
Each also takes `server_name`. No page but `confirm`, `invitation` and `refuse` is given a secret
(MAIL-09).

Source: security.md, threat 21; Content Security Policy level 3.
"""

import base64
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from identity.messaging.brands import Brands
from identity.messaging.text import ascii_domain

_STYLE: Final = re.compile(r"<style[^>]*>(.*?)</style>", re.DOTALL)
# The host-source of the policy's grammar, which has no room for IPv6 literals.
_HOST: Final = re.compile(r"[a-z0-9.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Page:
    """An HTML document and the value of the Content-Security-Policy header it is sent with."""

    html: str
    csp: str


def render_page(
    brands: Brands,
    brand: str | None,
    name: str,
    *,
    form_targets: Iterable[str] = (),
    **variables: object,
) -> Page:
    """Render `<name>.html.j2`.

    form_targets: URLs whose origins may follow the submission of a form. Chromium applies
    form-action to redirects as well, so the next_link of a session has to be among them.
    """
    html = brands.render(brand, f"{name}.html.j2", variables)
    styles = [f"'sha256-{_sha256_b64(style)}'" for style in _STYLE.findall(html)]
    targets = [origin for url in form_targets if (origin := _find_origin(url))]
    directives = {
        "default-src": ["'none'"],
        "style-src": styles or ["'none'"],
        "img-src": ["data:"],  # a brand's logo, inside the page
        "form-action": ["'self'", *targets],
        "frame-ancestors": ["'none'"],
        "base-uri": ["'none'"],
    }
    return Page(
        html, "; ".join(f"{name} {' '.join(values)}" for name, values in directives.items())
    )


def _sha256_b64(style: str) -> str:
    return base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()


def _find_origin(url: str) -> str | None:
    """The origin of an http or https URL as a source expression; None where there is none."""
    try:
        parts = urlsplit(url)
        host, port = ascii_domain(parts.hostname or ""), parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host):
        return None
    return f"{parts.scheme}://{host}" + (f":{port}" if port is not None else "")
