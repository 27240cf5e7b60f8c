"""Pages for people, sent with the headers that keep them harmless."""

from collections.abc import Iterable
from typing import TypeVar

from flask import Response
from werkzeug.wrappers import Response as BaseResponse

from identity.messaging.brands import Brands
from identity.messaging.pages import render_page

R = TypeVar("R", bound=BaseResponse)


class Pages:
    """Renders the pages of a brand."""

    def __init__(self, brands: Brands, server_name: str) -> None:
        self._brands = brands
        self._server_name = server_name

    def render(
        self,
        name: str,
        *,
        status: int = 200,
        brand: str | None = None,
        form_targets: Iterable[str] = (),
        **variables: object,
    ) -> Response:
        page = render_page(
            self._brands,
            brand,
            name,
            form_targets=form_targets,
            server_name=self._server_name,
            **variables,
        )
        response = Response(page.html, status=status, mimetype="text/html")
        response.headers["Content-Security-Policy"] = page.csp
        return self.harden(response)

    @staticmethod
    def harden(response: R) -> R:
        """Headers of every answer that a browser shows: its URL may hold a token."""
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Robots-Tag"] = "noindex"
        return response
