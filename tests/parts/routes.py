"""Every route of an application, for tests that sweep over all of them: new ones are covered."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from identity.web.parameters import Parameters

VARIABLE = "ed25519:0"  # for each variable part of a path


@dataclass(frozen=True)
class Route:
    """`path`: with the variables filled in. `names`: the parameters it takes, or more."""

    method: str
    path: str
    rule: str
    is_page: bool
    names: tuple[str, ...]
    client: FlaskClient = field(repr=False)

    def __str__(self) -> str:
        return f"{self.method} {self.rule}"

    def send(self, token: str | None = None, **arguments: Any) -> TestResponse:
        """Calls the route, as the owner of `token`; `path` may be given to replace its own."""
        headers = dict(arguments.pop("headers", {}))
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        path = arguments.pop("path", self.path)
        return self.client.open(path, method=self.method, headers=headers, **arguments)


def routes_of(app: Flask) -> list[Route]:
    """One for each path and method but HEAD and OPTIONS. Pages for people come from blueprints
    that are called `…pages`."""
    client = app.test_client()
    return [
        Route(
            method,
            re.sub(r"<[^>]*>", VARIABLE, rule.rule),
            rule.rule,
            rule.endpoint.partition(".")[0].endswith("pages"),
            _names(app.view_functions[rule.endpoint]),
            client,
        )
        for rule in app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
    ]


def paths_of(app: Flask) -> dict[str, set[str]]:
    """Path to the methods that it takes, HEAD and OPTIONS included."""
    methods: dict[str, set[str]] = {}
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<[^>]*>", VARIABLE, rule.rule)
        methods.setdefault(path, set()).update(rule.methods or ())
    return methods


def _names(view: Callable[..., Any]) -> tuple[str, ...]:
    """Of the models that the view names itself, else of all that its module knows."""
    known = {
        name: value
        for name, value in vars(sys.modules[view.__module__]).items()
        if isinstance(value, type) and issubclass(value, Parameters) and value is not Parameters
    }
    used = [known[name] for name in view.__code__.co_names if name in known]
    models = used or known.values()
    return tuple(sorted({name for model in models for name in model.model_fields}))
