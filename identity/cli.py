"""The command line.

Exit status: 0 success, 1 it failed (one line on standard error says why), 2 wrong usage.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from identity import logs, schema
from identity.clock import SystemClock
from identity.config import Config, ConfigError, find_path, load
from identity.errors import IdentityError, SetupError
from identity.invites.invite import redact
from identity.mxid import UserId
from identity.opening import open_database
from identity.processes.configuration import ConfigSource
from identity.services import Services, assemble
from identity.threepid import Medium, ThreePid

log = structlog.get_logger(__name__)

_CONFIG_KEY: Final = "identity.config"


class _Command(click.Command):
    """A command that takes -c, and tells faults in one line."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.append(_config_option())

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            _fail("\n".join(str(fault) for fault in error.faults))
        except (SetupError, IdentityError) as error:
            _fail(str(error))
        except BrokenPipeError:
            # Whoever reads what we print has seen enough, which click knows how to deal with.
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _fail(f"{where}{error.strerror}")


class _Group(click.Group):
    command_class = _Command
    group_class = type

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.append(_config_option())


def _config_option() -> click.Option:
    def remember(ctx: click.Context, _option: click.Parameter, path: Path | None) -> None:
        # The root context is shared, so -c works before and after the command; the last counts.
        if path is not None:
            ctx.find_root().meta[_CONFIG_KEY] = path

    return click.Option(
        ["-c", "--config"],
        type=click.Path(path_type=Path),
        callback=remember,
        expose_value=False,
        help="The configuration file.  [default: $IDENTITY_CONFIG, ./identity.conf]",
    )


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="matrix-identity", prog_name="identity")
def main() -> None:
    """An identity server for Matrix."""
    # What is created here is for this user alone: keys, database, mails of development.
    os.umask(0o077)


@main.command()
def serve() -> None:
    """Run the server; creates the database and the keys on first start."""
    # Only this command needs them, and they take a while to load.
    from identity.processes.supervisor import Supervisor  # noqa: PLC0415

    source = _source()
    config = source.load()
    for warning in config.warnings():
        log.warning("configuration", note=warning)
    opened = open_database(config, SystemClock(), migrate=True)
    opened.database.close()
    for name in opened.made:
        log.info("created", what=name)
    _warn_of_copies(config, opened.made)
    sys.exit(Supervisor(source).run())


@main.command()
def check() -> None:
    """Check the configuration and everything that it names."""
    from identity.check import run_check  # noqa: PLC0415

    lines, passed = run_check(_source().path, os.environ)
    for line in lines:
        click.echo(str(line))
    if not passed:
        sys.exit(1)


@main.group(cls=_Group)
def db() -> None:
    """The database."""


@db.command()
def upgrade() -> None:
    """Bring the schema up to date."""
    open_database(_config(), SystemClock(), migrate=True).database.close()
    click.echo(schema.head())


@db.command()
def current() -> None:
    """Print the revision of the schema."""
    with _services() as services:
        click.echo(services.database.read(schema.current))


@db.command()
def rebuild() -> None:
    """Make the current view and the lookup index anew from the statement log."""
    with _services() as services, _progress("Statements") as bar:
        bar.total(services.associations.count_log())
        count = services.associations.rebuild(bar.advance)
    click.echo(f"{count} statements")


@db.command()
def digest() -> None:
    """Print what two servers compare: for each origin the chain and the range digests."""
    with _services() as services:
        for origin in services.associations.digest():
            click.echo(
                json.dumps(
                    {
                        "origin": origin.origin,
                        "last_id": origin.last_id,
                        "head": origin.head,
                        "ranges": origin.ranges,
                    }
                )
            )


@main.group(cls=_Group)
def keys() -> None:
    """The server's signing keys."""


@keys.command()
def show() -> None:
    """Print the public keys, newest last."""
    with _services() as services:
        for key_id, public_key in services.signing_keys.public_keys().items():
            click.echo(f"{key_id} {public_key}")


@keys.command()
def rotate() -> None:
    """Make a new signing key; the old ones stay published."""
    with _services() as services:
        key_id = services.signing_keys.rotate()
        click.echo(f"{key_id} {services.signing_keys.public_keys()[key_id]}")


@keys.command()
@click.argument("key_id")
def revoke(key_id: str) -> None:
    """Declare a signing key invalid, for ever."""
    with _services() as services:
        services.signing_keys.revoke(key_id)


@main.command()
@click.argument("medium")
@click.argument("address")
@click.argument("mxid")
def bind(medium: str, address: str, mxid: str) -> None:
    """State that an address belongs to a Matrix user, without any proof."""
    threepid, user_id = ThreePid.parse(medium, address), UserId.parse(mxid)
    with _services() as services:
        click.echo(json.dumps(services.associations.bind(threepid, user_id), ensure_ascii=False))


@main.command()
@click.argument("medium")
@click.argument("address")
@click.argument("mxid")
def unbind(medium: str, address: str, mxid: str) -> None:
    """Revoke the association of an address with a Matrix user."""
    threepid, user_id = ThreePid.parse(medium, address), UserId.parse(mxid)
    with _services() as services:
        if not services.associations.unbind(threepid, user_id):
            _fail("That address is not bound to that user")


@main.command()
@click.argument("medium")
@click.argument("address")
def lookup(medium: str, address: str) -> None:
    """Print the Matrix user that an address is bound to."""
    threepid = ThreePid.parse(medium, address)
    with _services() as services:
        mxid = services.associations.find_mxid(threepid)
    if mxid is None:
        _fail("That address is not bound")
    click.echo(mxid)


@main.group(cls=_Group)
def tokens() -> None:
    """Access tokens."""


@tokens.command()
@click.argument("mxid")
def issue(mxid: str) -> None:
    """Print a new access token for a Matrix user, without asking a homeserver."""
    user_id = UserId.parse(mxid)
    with _services() as services:
        click.echo(services.accounts.issue_token(user_id))


@main.group(cls=_Group)
def invites() -> None:
    """Invitations of people who are not on Matrix yet."""


@invites.command("list")
def list_invites() -> None:
    """Print the newest invitations, a line of JSON each; addresses are redacted."""
    with _services() as services:
        for invite in services.invites.list(None):
            threepid = ThreePid(Medium(invite.medium), invite.address)
            click.echo(
                json.dumps(
                    {
                        "token": invite.token,
                        "address": redact(threepid),
                        "sender": invite.sender,
                        "room_id": invite.room_id,
                        "created_at_ms": invite.created_at_ms,
                        "expires_at_ms": invite.expires_at_ms,
                        "delivered_at_ms": invite.delivered_at_ms,
                        "revoked_at_ms": invite.revoked_at_ms,
                    }
                )
            )


@invites.command("revoke")
@click.argument("token")
def revoke_invite(token: str) -> None:
    """Revoke an invitation: it is not delivered, and its key is not valid any more."""
    with _services() as services:
        services.invites.revoke(token, None)


@main.group(cls=_Group)
def deliveries() -> None:
    """Notifications to homeservers."""


@deliveries.command("list")
def list_deliveries() -> None:
    """Print what is not delivered, a line of JSON each, oldest first."""
    with _services() as services:
        for delivery in services.notifications.undelivered():
            click.echo(
                json.dumps(
                    {
                        "id": delivery.delivery_id,
                        "mxid": delivery.mxid,
                        "invitation": delivery.invite is not None,
                        "created_at_ms": delivery.created_at_ms,
                        "tries": delivery.tries,
                        "next_try_at_ms": delivery.next_try_at_ms,
                        "outcome": delivery.outcome,
                        "last_error": delivery.last_error,
                    }
                )
            )


@deliveries.command("retry")
@click.argument("delivery_id")
def retry_delivery(delivery_id: str) -> None:
    """Try a dead delivery again."""
    with _services() as services:
        services.notifications.retry(delivery_id)


@main.group(cls=_Group)
def pepper() -> None:
    """The pepper of the lookup index."""


@pepper.command("rotate")
def rotate_pepper() -> None:
    """Index everything under a new pepper, then switch to it."""
    with _services() as services, _progress("Associations") as bar:
        new = services.peppers.begin()
        bar.total(services.peppers.count())
        services.peppers.finish(new, bar.advance)


def _source() -> ConfigSource:
    option = click.get_current_context().find_root().meta.get(_CONFIG_KEY)
    return ConfigSource(find_path(option, os.environ), os.environ)


def _config() -> Config:
    source = _source()
    config = load(source.path, source.environ)
    # Commands speak for themselves; what they have to say is their output.
    logs.configure("warning", config.logging.format)
    return config


@contextmanager
def _services() -> Iterator[Services]:
    """Everything, for one command."""
    config, clock = _config(), SystemClock()
    services = assemble(config, open_database(config, clock, migrate=False).database, clock)
    try:
        yield services
    finally:
        services.close()


class _Bar:
    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=None)

    def total(self, total: int) -> None:
        self._progress.update(self._task, total=total)

    def advance(self, steps: int) -> None:
        self._progress.advance(self._task, steps)


@contextmanager
def _progress(title: str) -> Iterator[_Bar]:
    """A progress bar on standard error, where a terminal is."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as progress:
        yield _Bar(progress, title)


def _warn_of_copies(config: Config, made: tuple[str, ...]) -> None:
    if str(config.storage_keys_path) in made:
        log.warning(
            "keep_a_copy",
            file=str(config.storage_keys_path),
            note="without it the database cannot be read; keep it apart from database backups",
        )


def _fail(reason: str) -> Any:
    click.echo(reason, err=True)
    sys.exit(1)
