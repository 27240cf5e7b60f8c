"""Brands: the look and the words of mails and pages, as Jinja2 templates.

A file is taken from `<templates>/<brand>/`, else from `<templates>/<default brand>/`, else from
the built-in ones beside this module. A brand that is not a folder there is the default brand:
what a request names selects among folders that were listed at the start, and never becomes
part of a path. Templates are read and compiled at the start; a reload reads them again.

What a template may rely on:
- a variable holds the value as it was sent, control characters removed; a missing one is empty;
- only `*.html.j2` is HTML-escaped;
- filters: `shorten(n)`, `defuse` and `alabel`, see `identity.messaging.text`;
- `{% trans %}` and `_()`, which return the English text until there are translations (a percent
  sign inside `_()` is written `%%`);
- `{% extends %}` and `{% include %}` look for files in the same order.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from jinja2 import (
    ChainableUndefined,
    ChoiceLoader,
    Environment,
    FileSystemLoader,
    TemplateSyntaxError,
)
from jinja2.sandbox import SandboxedEnvironment

from identity.errors import SetupError
from identity.messaging import text

_BUILT_IN: Final = Path(__file__).parent / "templates" / "default"
_BRAND_NAME: Final = re.compile(r"[a-z0-9_-]{1,64}", re.ASCII)


class Brands:
    """The templates of every brand, ready to be rendered. Safe to share between threads."""

    def __init__(self, templates: Path | None, default_brand: str) -> None:
        """Read all templates. Raises: SetupError naming the folder or template that is at fault."""
        folders = _find_brands(templates, default_brand)
        default = [folders[default_brand]] if default_brand in folders else []
        self._default = _environment([*default, _BUILT_IN])
        self._brands = {
            brand: _environment([folder, *default, _BUILT_IN])
            for brand, folder in folders.items()
            if brand != default_brand
        }

    def names(self) -> list[str | None]:
        """Every brand there is; None is the default one."""
        return [None, *self._brands]

    def render(self, brand: str | None, file: str, variables: Mapping[str, object]) -> str:
        """The text of `file` in `brand`, which may be any string a caller sent."""
        environment = self._brands.get(brand or "", self._default)
        shown = {name: text.without_controls(value) for name, value in variables.items()}
        return environment.get_template(file).render(shown)


def find_brand_name(text: str | None) -> str | None:
    """What a request names, if a brand can be called so: at most 64 characters."""
    return text if text is not None and _BRAND_NAME.fullmatch(text) else None


def _find_brands(templates: Path | None, default_brand: str) -> dict[str, Path]:
    if templates is None:
        return {}
    try:
        folders = {folder.name: folder for folder in templates.iterdir() if folder.is_dir()}
    except OSError as error:
        raise SetupError(
            f"[email] templates: {templates} cannot be read: {error.strerror}"
        ) from None
    if default_brand not in folders and default_brand != _BUILT_IN.name:
        raise SetupError(f"[email] default_brand: there is no folder {templates / default_brand}")
    return {
        brand: folder
        for brand, folder in folders.items()
        if brand == default_brand or _BRAND_NAME.fullmatch(brand)
    }


def _environment(folders: list[Path]) -> Environment:
    environment = SandboxedEnvironment(
        loader=ChoiceLoader([FileSystemLoader(folder) for folder in folders]),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=ChainableUndefined,
        finalize=lambda value: "" if value is None else value,
        extensions=["jinja2.ext.i18n"],
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.install_null_translations(newstyle=True)  # type: ignore[attr-defined] # by i18n
    environment.filters.update(shorten=text.shorten, defuse=text.defuse, alabel=text.alabel)
    for file in environment.list_templates(extensions=["j2"]):
        try:
            environment.get_template(file)
        except TemplateSyntaxError as error:
            where = f"{error.filename}, line {error.lineno}"
            raise SetupError(f"[email] templates: {where}: {error.message}") from None
        except (OSError, UnicodeDecodeError):
            raise SetupError(f"[email] templates: {file} in {folders[0]} cannot be read") from None
    return environment
