"""The whole check: first the configuration, then, if it is sound, everything that it names."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from identity.check import files, network
from identity.check.report import Line, Probe, fail, ok, run_probes, warn
from identity.clock import Clock, SystemClock
from identity.config import Config, ConfigError, load
from identity.errors import SetupError

# For all probes together, which run side by side.
DEADLINE_SECONDS: Final = 15


def run_check(
    config_path: Path | None, environ: Mapping[str, str], clock: Clock | None = None
) -> tuple[list[Line], bool]:
    """What there is to say, and whether the server would run: True when nothing failed.

    `config_path`: as `find_path` gave it. Takes at most 15 seconds, changes nothing.
    """
    try:
        config = load(config_path, environ)
    except ConfigError as error:
        return [fail(str(fault)) for fault in error.faults], False
    lines = [ok(f"configuration: {config_path or 'no file; defaults for development'}")]
    lines += [warn(text) for text in config.warnings()]
    lines += files.probe_secret_files(config_path, environ)
    now_ms = (clock or SystemClock()).now_ms()
    lines += run_probes(_probes(config, now_ms), deadline_s=DEADLINE_SECONDS)
    return lines, all(line.level != "FAIL" for line in lines)


def _probes(config: Config, now_ms: int) -> list[Probe]:
    data_dir = config.server.data_dir
    probes: list[Probe] = [
        ("[server] data_dir", lambda: files.probe_folder("[server] data_dir", data_dir)),
        ("[database]", lambda: _probe_database(config)),
    ]
    if read_url := config.database.read_url.get_secret_value():
        probes.append(
            ("[database] read_url", lambda: network.probe_postgresql("read_url", read_url))
        )
    if storage := config.rate_limits.storage.get_secret_value():
        probes.append(("[rate_limits] storage", lambda: network.probe_redis(storage)))
    if config.email_backend == "smtp":
        probes.append(("[email] smtp_host", lambda: network.probe_smtp(config)))
    else:
        outbox = config.outbox_path
        probes.append(
            ("[email] backend", lambda: files.probe_folder("[email] backend: file", outbox))
        )
    return [
        *probes,
        ("[email] templates", lambda: files.probe_templates(config)),
        ("[sms] provider", lambda: network.probe_sms(config)),
        ("[terms] file", lambda: files.probe_terms(config)),
        ("certificates", lambda: files.probe_certificates(config, now_ms)),
        ("[server] public_url", lambda: network.probe_public_url(config)),
    ]


def _probe_database(config: Config) -> Iterable[Line]:
    """The database, and the keys, whose absence means something else once there is one."""
    try:
        file = network.find_sqlite_file(config)
    except SetupError as error:
        yield fail(f"[database] url: {error}")
        return
    if file is not None:
        yield from files.probe_keys(config, database_exists=file.exists())
        yield from network.probe_sqlite(file)
    else:
        yield from files.probe_keys(config, database_exists=None)
        yield from network.probe_postgresql("url", config.database_url)
