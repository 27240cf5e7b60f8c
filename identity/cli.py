"""The command line.

Exit status: 0 success, 1 it failed (one line on standard error says why), 2 wrong usage.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from identity import logs, schema
from identity.clock import SystemClock
from identity.config import Config, ConfigError, find_path, load
from identity.errors import IdentityError, InvalidParameter, SetupError
from identity.federation.transport import tls_context
from identity.invites.invite import redact
from identity.mxid import UserId
from identity.opening import open_database
from identity.processes.configuration import ConfigSource
from identity.replication.peer import (
    Peer,
    Protocol,
    Scope,
    Supersede,
    parse_key_id,
    parse_name,
    parse_url,
)
from identity.replication.peers import Report
from identity.replication.sydent.wire import KEY_ID as SYDENT_KEY_ID
from identity.services import Services, assemble
from identity.signing import encode_public_key, parse_public_key
from identity.sms.report import Status, country_lines, pause_lines, server_line
from identity.threepid import Medium, ThreePid

log = structlog.get_logger(__name__)

_CONFIG_KEY: Final = "identity.config"
_PIPED_WIDTH: Final = 200


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
        protocols = {peer.protocol for peer in services.peers.all()}
        if key_id == SYDENT_KEY_ID and Protocol.SYDENT in protocols:
            _fail(f"Sydent peers know this server by {key_id} alone; remove them first")
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
def sms() -> None:
    """Text messages: what they cost, and what is paused."""


@sms.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON each.")
def sms_status(as_json: bool) -> None:
    """Show what was sent today, how much of it was proved, and what is paused."""
    with _services() as services:
        status, settings = services.sms_defence.status(), services.config.sms
        server = server_line(
            status,
            providers=services.config.sms_providers,
            price=settings.price,
            spend_per_day=settings.spend_per_day,
        )
        countries = country_lines(status, services.clock.now_ms())
    if as_json:
        for line in (server, *countries, *pause_lines(status)):
            click.echo(json.dumps(line))
        return
    console = Console(highlight=False)
    for title, text in _about_sms(server, status):
        console.print(f"{title:<16}{text}")
    console.print(_countries_table(countries))


@sms.command("pause")
@click.argument("calling_code")
def pause_sms(calling_code: str) -> None:
    """Send nothing to a calling code, such as 44, until it is resumed."""
    with _services() as services:
        services.sms_defence.pause(calling_code.removeprefix("+"))


@sms.command("resume")
@click.argument("calling_code")
def resume_sms(calling_code: str) -> None:
    """Send to a calling code again, whether it was paused by hand or by itself."""
    with _services() as services:
        services.sms_defence.resume(calling_code.removeprefix("+"))


@main.group(cls=_Group)
def peers() -> None:
    """Identity servers that we replicate with."""


@peers.command("add")
@click.argument("name")
@click.option("--url", required=True, help="Where it is reached, as https://id.example.org")
@click.option("--key", "keys", multiple=True, required=True, metavar="KEY_ID=BASE64")
@click.option(
    "--protocol",
    type=click.Choice(list(map(str, Protocol))),
    default=str(Protocol.V2),
    show_default=True,
)
@click.option("--media", multiple=True, help="It may speak for: email, msisdn.  [default: both]")
@click.option("--domain", "domains", multiple=True, help="... for e-mail addresses of this domain")
@click.option("--prefix", "prefixes", multiple=True, help="... for phone numbers that begin so")
@click.option(
    "--supersede",
    type=click.Choice(list(map(str, Supersede))),
    default=str(Supersede.ALL),
    show_default=True,
    help="Whose statements its newer ones replace.",
)
@click.option("--no-check", is_flag=True, help="Do not ask it for its keys.")
def add_peer(  # noqa: PLR0913, PLR0917 - an argument for each option
    name: str,
    url: str,
    keys: tuple[str, ...],
    protocol: str,
    media: tuple[str, ...],
    domains: tuple[str, ...],
    prefixes: tuple[str, ...],
    supersede: str,
    no_check: bool,
) -> None:
    """Replicate with a server from now on, or make an existing peer what is said here."""
    peer = Peer(
        parse_name(name),
        parse_url(url),
        Protocol(protocol),
        dict(map(_parse_key, keys)),
        Supersede(supersede),
        Scope.parse(media, domains, prefixes),
    )
    with _services() as services:
        # A Sydent publishes its keys elsewhere than it takes pushes.
        if not no_check and peer.protocol is Protocol.V2:
            _check_keys(services.config, peer)
        services.peers.add(peer)


@peers.command("list")
def list_peers() -> None:
    """Print the peers, a line of JSON each."""
    with _services() as services:
        for peer in services.peers.all():
            click.echo(
                json.dumps(
                    {
                        "name": peer.name,
                        "url": peer.url,
                        "protocol": peer.protocol,
                        "keys": {
                            key_id: encode_public_key(key) for key_id, key in peer.keys.items()
                        },
                        "supersede": peer.supersede,
                        "media": sorted(peer.scope.media),
                        "domains": sorted(peer.scope.domains),
                        "prefixes": list(peer.scope.prefixes),
                    }
                )
            )


@peers.command("remove")
@click.argument("name")
def remove_peer(name: str) -> None:
    """Replicate with a server no more. What it has stated stays and counts."""
    with _services() as services:
        services.peers.remove(name)


@peers.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON each.")
def peers_status(as_json: bool) -> None:
    """Show how far each peer is, what failed last, and what of it was refused."""
    with _services() as services:
        reports = services.peers.report()
    if as_json:
        for report in reports:
            click.echo(json.dumps(_report_line(report)))
        return
    # What is piped somewhere is not folded to the width of a terminal.
    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    Console(highlight=False, width=width).print(_peers_table(reports))


@peers.command("retry")
@click.argument("name")
def retry_peer(name: str) -> None:
    """Judge the statements of a peer again that were refused."""
    with _services() as services:
        seen, taken = services.receiver.retry(name)
    click.echo(f"{taken} of {seen} taken")


@peers.command("confirm")
@click.argument("name")
def confirm_peer(name: str) -> None:
    """After a restore: this peer holds nothing of ours that is missing here."""
    with _services() as services:
        services.peers.confirm(name)


@peers.group("key")
def peer_key() -> None:
    """Keys that are pinned for a peer; several may be valid at once."""


@peer_key.command("add")
@click.argument("name")
@click.argument("key", metavar="KEY_ID=BASE64")
def add_peer_key(name: str, key: str) -> None:
    """Take signatures by this key, too."""
    with _services() as services:
        services.peers.add_key(name, *_parse_key(key))


@peer_key.command("remove")
@click.argument("name")
@click.argument("key_id")
def remove_peer_key(name: str, key_id: str) -> None:
    """Take signatures by this key no more."""
    with _services() as services:
        services.peers.remove_key(name, key_id)


def _parse_key(text: str) -> tuple[str, bytes]:
    """Raises: InvalidParameter."""
    key_id, _, key_b64 = text.partition("=")
    key = parse_public_key(key_b64)
    if key is None:
        raise InvalidParameter("A key reads ed25519:<version>=<43 characters of base64>")
    return parse_key_id(key_id), key


def _check_keys(config: Config, peer: Peer) -> None:
    """Raises: SetupError unless the peer publishes each of the keys."""
    # It loads what no other command needs.
    from identity.check.network import fetch_public_key  # noqa: PLC0415

    tls = tls_context(config.federation)
    for key_id, key in peer.keys.items():
        published = fetch_public_key(peer.url, key_id, tls)
        if published is None or parse_public_key(published) != key:
            what = "no such key" if published is None else "another key"
            raise SetupError(f"{peer.url} publishes {what} as {key_id}; see --no-check")


def _report_line(report: Report) -> dict[str, Any]:
    return {
        "name": report.name,
        "protocol": report.protocol,
        "cursor": report.sending.acknowledged_id,
        "lag": report.lag,
        "lag_s": report.lag_ms // 1_000,
        "failures": report.sending.failures,
        "last_success_at_ms": report.sending.last_success_at_ms,
        "last_error": report.sending.last_error,
        "last_error_at_ms": report.sending.last_error_at_ms,
        "suspended_at_ms": report.sending.suspended_at_ms,
        "must_answer": report.sending.must_answer,
        "received": report.received_id,
        "quarantined": dict(report.refused),
        "alarms": {
            kind: {"count": count, "last_at_ms": last_at_ms}
            for kind, (count, last_at_ms) in report.alarms.items()
        },
    }


def _peers_table(reports: Sequence[Report]) -> Table:
    table = Table("Peer", "Protocol")
    for title in ("Cursor", "Lag", "Received"):
        table.add_column(title, justify="right")
    for title in ("Last success", "Last error", "Quarantined", "Alarms"):
        table.add_column(title)
    for report in reports:
        sending = report.sending
        error = f"{_instant(sending.last_error_at_ms)}: {sending.last_error}"
        table.add_row(
            report.name + (" (suspended)" if sending.suspended_at_ms else ""),
            report.protocol,
            str(sending.acknowledged_id),
            f"{report.lag}, {report.lag_ms // 1_000} s" if report.lag else "0",
            str(report.received_id),
            _instant(sending.last_success_at_ms),
            error if sending.last_error else "-",
            ", ".join(f"{count} {reason}" for reason, count in report.refused.items()) or "-",
            ", ".join(f"{count} {kind}" for kind, (count, _) in report.alarms.items()) or "-",
        )
    return table


def _instant(at_ms: int | None) -> str:
    if at_ms is None:
        return "never"
    return datetime.fromtimestamp(at_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


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


@main.command("import-sydent")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing.")
def import_sydent(file: Path, dry_run: bool) -> None:
    """Take over a Sydent: FILE is its sydent.conf, or the database beside that."""
    from identity.sydent_import.service import SydentImport  # noqa: PLC0415 - seldom needed

    with _progress("Rows") as bar:
        report = SydentImport(_config(), SystemClock()).run(file, bar, dry_run=dry_run)
    for line in report.lines():
        click.echo(line)
    if dry_run:
        click.echo("nothing was changed")


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


def _about_sms(server: dict[str, Any], status: Status) -> Iterator[tuple[str, str]]:
    yield "Providers", ", ".join(server["providers"]) or "none"
    of_limit = f" of {server['messages_per_day']}" if server["messages_per_day"] else ""
    yield "Sent today", f"{server['messages_today']}{of_limit}"
    of_cap = f" of {server['spend_per_day']:g}" if server["spend_per_day"] else ""
    yield "Spent today", f"{server['spent_today']:g}{of_cap}"
    yield "Alarm", "on " + _until(server["alarm_until_ms"]) if server["alarm_until_ms"] else "off"
    yield "Paused by hand", ", ".join(f"+{code}" for code in status.paused_codes) or "nothing"
    blocks = (f"{count} of {country}" for country, count in status.paused_blocks.items())
    yield "Paused blocks", ", ".join(blocks) or "none"


def _countries_table(countries: Sequence[dict[str, Any]]) -> Table:
    table = Table("Country", "Share", caption="Today, and (…) in the window that is judged next")
    for title in ("Messages", "Codes", "Proved", "Rate", "Paused"):
        table.add_column(title, justify="right")
    for line in countries:
        table.add_row(
            line["country"],
            line["share"],
            str(line["messages_today"]),
            f"{line['codes_today']} ({line['codes_in_window']})",
            f"{line['proved_today']} ({line['proved_in_window']})",
            f"{_percent(line['rate_today'])} ({_percent(line['rate_in_window'])})",
            _until(line["paused_until_ms"]) if line["paused_until_ms"] else "no",
        )
    return table


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.0%}"


def _until(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1_000, UTC).strftime("until %H:%M UTC")


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
