"""Reads a configuration: the file, then the environment, then the files that hold secrets.

Nothing is ever written. Every step notes its faults and goes on, so that the operator gets all
of them at once; only a file that cannot be read as TOML ends it early.
"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from identity.config.environment import CONFIG_VARIABLE, find_table, override
from identity.config.explain import explain, fault_at
from identity.config.faults import ConfigError, Fault
from identity.config.fields import FIELDS, FILE_SUFFIX, Location, is_secret, is_table
from identity.config.root import Config
from identity.config.values import Rejected, parse_path

MAX_FILE_BYTES: Final = 2**20
MAX_SECRET_BYTES: Final = 2**16

_DEFAULT_FILE: Final = Path("identity.conf")


def find_path(option: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Which file to read: the option, else $IDENTITY_CONFIG, else ./identity.conf if it exists.

    None means that there is none, and the defaults serve for development. A file that was
    named but does not exist is returned all the same: `load` says that it cannot be read.
    """
    if option is not None:
        return option
    if environ.get(CONFIG_VARIABLE):
        return Path(environ[CONFIG_VARIABLE])
    return _DEFAULT_FILE if _DEFAULT_FILE.exists() else None


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Read and check everything. Relative paths start at the file, else at the current folder.

    Raises: ConfigError with every fault.
    """
    tree = _read_toml(path) if path else {}
    return parse(tree, environ, path.absolute().parent if path else Path.cwd())


def parse(tree: dict[str, Any], environ: Mapping[str, str], base: Path) -> Config:
    """The same for a file that was decoded; `base` is its folder. Changes `tree`.

    Raises: ConfigError with every fault.
    """
    faults: list[Fault] = []
    variables = override(tree, environ, faults)
    _read_secrets(tree, base, variables, faults)
    for section in Config.model_fields:
        # A section that is left out still has paths that lie in `base`.
        tree.setdefault(section, {})
    try:
        config = Config.model_validate(tree, context={"base": base})
    except ValidationError as error:
        for details in error.errors(include_url=False):
            faults.extend(explain(details, variables))
        raise ConfigError(faults) from None
    if faults:
        raise ConfigError(faults)
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    """Raises: ConfigError with one fault, which quotes nothing of the file."""
    try:
        return tomllib.loads(_read(path, MAX_FILE_BYTES))
    except Rejected as error:
        problem = error.problem
    except tomllib.TOMLDecodeError as error:
        problem = f"is not TOML: {error}"
    except RecursionError:
        problem = "is nested too deeply"
    except ValueError:
        problem = "holds a number that is too long"
    raise ConfigError([Fault("", str(path), problem)])


def find_secret_files(path: Path | None, environ: Mapping[str, str]) -> list[tuple[str, Path]]:
    """Which files hold secrets, each with the key: the configuration itself, and every `x_file`.

    Of a configuration that `load` accepts. A URL without a password is no secret.
    """
    tree = _read_toml(path) if path else {}
    base = path.absolute().parent if path else Path.cwd()
    found = []
    for place, table, name in _secrets_in(tree):
        if path and _may_be_secret(table.get(name)):
            found.append((".".join((*place, name)), path))
    override(tree, environ, [])
    for place, table, name in _secrets_in(tree):
        file = parse_path(table.get(f"{name}{FILE_SUFFIX}"), base)
        if file:
            found.append((".".join((*place, f"{name}{FILE_SUFFIX}")), file))
    return found


def _secrets_in(tree: dict[str, Any]) -> Iterator[tuple[Location, dict[str, Any], str]]:
    """Each secret that may stand in `tree`: its section, the table that holds it, its name."""
    for location, field in FIELDS.items():
        if is_secret(field) and is_table(field):
            table = find_table(tree, location)
            for name in dict.fromkeys(key.removesuffix(FILE_SUFFIX) for key in table):
                yield location, table, name
        elif is_secret(field):
            *section, name = location
            yield tuple(section), find_table(tree, tuple(section)), name


def _may_be_secret(value: object) -> bool:
    if not isinstance(value, str) or not value:
        return False
    return "://" not in value or "password=" in value or "@" in value


def _read_secrets(
    tree: dict[str, Any], base: Path, variables: Mapping[Location, str], faults: list[Fault]
) -> None:
    """Replace each `x_file` of a secret `x` by what that file holds."""
    for section, table, name in _secrets_in(tree):
        file = table.pop(f"{name}{FILE_SUFFIX}", "")
        try:
            if file != "":
                table[name] = _read_secret(table.get(name, ""), file, base)
        except Rejected as error:
            place = (*section, f"{name}{FILE_SUFFIX}")
            faults.append(fault_at(place, error.problem, error.allowed, variables))


def _read_secret(given: object, file: object, base: Path) -> str:
    """What the file holds, without one line break at its end. Raises: Rejected."""
    if given != "":
        raise Rejected("is given twice, as a value and as a file", "one of the two")
    path = parse_path(file, base)
    text = _read(path, MAX_SECRET_BYTES) if path else ""
    secret = text.removesuffix("\n").removesuffix("\r")
    if not secret:
        raise Rejected("names an empty file", "the path of a file that holds the secret")
    return secret


def _read(path: Path, maximum_bytes: int) -> str:
    """Raises: Rejected when the file cannot be read, is too large or is not UTF-8."""
    allowed = "a file that this user can read"
    try:
        with path.open("rb") as file:
            content = file.read(maximum_bytes + 1)
        if len(content) > maximum_bytes:
            raise Rejected("is too large", f"at most {maximum_bytes} bytes")
        return content.decode()
    except OSError as error:
        raise Rejected(f"cannot be read: {error.strerror}", allowed) from None
    except UnicodeDecodeError:
        raise Rejected("is not UTF-8", "UTF-8") from None
