"""What lies on this machine: folders, keys, secrets, terms, templates, certificates."""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from identity.check.certificates import probe_authorities, probe_pair
from identity.check.report import Line, fail, ok, warn
from identity.config import Config, find_secret_files
from identity.errors import SetupError
from identity.keys.keyfile import read_signing_keys, read_storage_keys
from identity.messaging.brands import Brands
from identity.sms.message import check_texts
from identity.terms.policy import Policies


def probe_folder(where: str, folder: Path) -> Iterator[Line]:
    """A folder that the server writes to, and creates when it is missing."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        yield fail(f"{where}: {existing} is not a folder")
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield fail(f"{where}: {existing} cannot be written to by this user")
    elif existing == folder:
        yield ok(f"{where}: {folder}")
    else:
        yield ok(f"{where}: {folder} will be created")


def probe_keys(config: Config, *, database_exists: bool | None) -> Iterator[Line]:
    """Key files, which are made only together with a new database (decision 23).

    `database_exists`: None where that cannot be told.
    """
    for where, path, read in (
        ("[keys] signing_keys", config.signing_keys_path, read_signing_keys),
        ("[keys] storage_keys", config.storage_keys_path, read_storage_keys),
    ):
        if not path.exists() and database_exists is None:
            yield warn(f"{where}: {path} does not exist; it is made together with a new database")
        elif not path.exists() and not database_exists:
            yield ok(f"{where}: {path} will be created")
        else:
            yield _probe_key_file(where, path, read)


def _probe_key_file(where: str, path: Path, read: Callable[[Path], object]) -> Line:
    try:
        read(path)
    except SetupError as error:
        return fail(f"{where}: {error}")
    return ok(f"{where}: {path}")


def probe_secret_files(path: Path | None, environ: Mapping[str, str]) -> Iterator[Line]:
    """Whether everyone on this machine can read a file that holds a secret."""
    for key, file in find_secret_files(path, environ):
        if stat.S_IMODE(file.stat().st_mode) & stat.S_IROTH:
            yield warn(f"{file}: holds {key} and can be read by others; run: chmod o-r {file}")


def probe_terms(config: Config) -> Iterator[Line]:
    if config.terms.file:
        try:
            policies = Policies.load(config.terms.file)
        except SetupError as error:
            yield fail(f"[terms] file: {error}")
        else:
            yield ok(f"[terms] file: {len(policies.documents)} policies")


def probe_templates(config: Config) -> Iterator[Line]:
    try:
        brands = Brands(config.email.templates, config.email.default_brand)
        if config.sms_providers:
            check_texts(brands, config)
    except SetupError as error:
        yield fail(str(error))
    else:
        yield ok(f"[email] templates: {config.email.templates or 'the built-in ones'}")


def probe_certificates(config: Config, now_ms: int) -> Iterator[Line]:
    """The server's own certificate, and those of the authorities that it trusts."""
    own = config.replication
    if own.certificate and own.private_key:
        yield from probe_pair(own.certificate, own.private_key, config.server.name.host, now_ms)
    for where, file in (
        ("[replication] ca_file", own.ca_file),
        ("[federation] ca_file", config.federation.ca_file),
        ("[email] smtp_ca_file", config.email.smtp_ca_file),
    ):
        if file:
            yield from probe_authorities(where, file, now_ms)
