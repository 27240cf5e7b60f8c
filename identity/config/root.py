"""The whole configuration: its sections, what follows from them, and what looks unwise.

A fault stops the server; a warning does not, because each has a set-up in which it is right.
"""

import os
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, Self
from urllib.parse import quote, urlsplit

from pydantic import model_validator

from identity.config import sections
from identity.config.faults import Contradiction


class Config(sections.Section):
    """Everything an operator can set."""

    server: sections.Server = sections.Server()
    database: sections.Database = sections.Database()
    keys: sections.Keys = sections.Keys()
    email: sections.Email = sections.Email()
    sms: sections.Sms = sections.Sms()
    validation: sections.Validation = sections.Validation()
    lookup: sections.Lookup = sections.Lookup()
    invites: sections.Invites = sections.Invites()
    terms: sections.Terms = sections.Terms()
    federation: sections.Federation = sections.Federation()
    replication: sections.Replication = sections.Replication()
    internal: sections.Internal = sections.Internal()
    legacy_api: sections.LegacyApi = sections.LegacyApi()
    rate_limits: sections.RateLimits = sections.RateLimits()
    notices: sections.Notices = sections.Notices()
    logging: sections.Logging = sections.Logging()
    metrics: sections.Metrics = sections.Metrics()
    retention: sections.Retention = sections.Retention()

    @property
    def database_url(self) -> str:
        """A secret: it may hold a password. SQLAlchemy's form for SQLite, libpq's otherwise."""
        # SQLAlchemy decodes percent signs in the path.
        default = f"sqlite:///{quote(str(self.server.data_dir / 'identity.db'))}"
        return self.database.url.get_secret_value() or default

    @property
    def signing_keys_path(self) -> Path:
        return self.keys.signing_keys or self.server.data_dir / "signing.keys"

    @property
    def storage_keys_path(self) -> Path:
        return self.keys.storage_keys or self.server.data_dir / "storage.keys"

    @property
    def outbox_path(self) -> Path:
        """Where mail and SMS lie that are written to files instead of being sent."""
        return self.server.data_dir / "outbox"

    @property
    def worker_count(self) -> int:
        return self.server.workers or os.cpu_count() or 1

    @property
    def email_backend(self) -> Literal["smtp", "file"]:
        return self.email.backend or ("smtp" if self.email.smtp_host else "file")

    @property
    def sms_providers(self) -> tuple[sections.SmsProvider, ...]:
        """In the order in which they are tried; empty means that there is no SMS."""
        return self.sms.provider or (("file",) if self.email_backend == "file" else ())

    def warnings(self) -> list[str]:
        """What looks unwise, a line each; nothing of it keeps the server from running."""
        return [
            *_warnings_of_the_name(self),
            *_warnings_of_sending(self),
            *_warnings_of_access(self),
        ]

    @model_validator(mode="after")
    def _addresses_are_free(self) -> Self:
        taken = {self.server.listen: "server"}
        faults = []
        for section in ("replication", "internal", "metrics"):
            listen = getattr(self, section).listen
            if listen is None or listen.port == 0:
                continue
            if listen in taken:
                problem = f"{listen} is taken by [{taken[listen]}] listen"
                faults.append((f"{section}.listen", problem, "another port"))
            taken.setdefault(listen, section)
        if faults:
            raise Contradiction(*faults)
        return self


def _warnings_of_the_name(config: Config) -> Iterator[str]:
    name, url = config.server.name, urlsplit(config.server.public_url)
    host = url.hostname or ""
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    if name.host != host or name.port not in (None, port):
        # SIGN-06: Dendrite looks for the signature of the host that it called.
        yield (
            f"[server] public_url: homeservers that call {url.netloc} expect signatures by that "
            f"name, but [server] name is {name}"
        )
    if url.scheme == "http" and not _is_local(host):
        yield "[server] public_url: http shows tokens to everyone on the way; use https"
    if url.scheme == "https" and config.server.trusted_proxies == 0:
        yield (
            "[server] trusted_proxies: https means that a proxy is in front, but 0 are trusted, so "
            "that all clients together count as one address in the rate limits"
        )


def _warnings_of_sending(config: Config) -> Iterator[str]:
    public = not _is_local(urlsplit(config.server.public_url).hostname or "")
    if public and config.email_backend == "file":
        yield "[email] backend: mail is written to files, nobody receives it"
    if config.email_backend == "smtp" and config.email.from_.domain == "localhost":
        yield "[email] from: mail from @localhost is refused by most servers"
    if (
        config.email_backend == "smtp"
        and config.email.tls == "none"
        and not _is_local(config.email.smtp_host)
    ):
        yield "[email] tls: none shows every validation token to the network"
    yield from _warnings_of_texts(config)


def _warnings_of_texts(config: Config) -> Iterator[str]:
    sms, providers = config.sms, config.sms_providers
    if set(providers) - {"file"} and not sms.allowed_calling_codes:
        yield "[sms] allowed_calling_codes: none are listed, so no SMS is sent"
    for_all = sms.twilio.messaging_service_sid or sms.originators.get("default") or sms.from_
    if "twilio" in providers and not for_all:
        without = [code for code in sms.allowed_calling_codes if not sms.originators.get(code)]
        if without:
            codes = ", ".join(without).replace("*", "all others")
            yield f"[sms] originators: none for {codes}, so Twilio sends nothing there"
    gateway = urlsplit(sms.http.url)
    if "http" in providers and gateway.scheme == "http" and not _is_local(gateway.hostname or ""):
        yield "[sms.http] url: http shows every code to the network; use https"


def _warnings_of_access(config: Config) -> Iterator[str]:
    if not config.rate_limits.enabled:
        yield "[rate_limits] enabled: false lets anyone guess, list and send without end"
    if not config.federation.verify_certificates:
        yield "[federation] verify_certificates: false lets the network claim any account"
    if config.federation.allow_private_addresses:
        yield "[federation] allow_private_addresses: true lets strangers probe your own network"
    if config.legacy_api.open:
        yield "[legacy_api] open: true lets anyone look up addresses without an account"
    if "none" in config.lookup.algorithms:
        yield "[lookup] algorithms: none sends addresses in the clear"
    if config.internal.listen is not None and _is_every_interface(config.internal.listen.host):
        yield "[internal] listen: binds for whoever reaches the port, on every interface"


def _is_local(host: str) -> bool:
    """Whether a host name can only mean this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_every_interface(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False
