"""The configuration as types: a section is a class, a key an attribute, a default its value.

The one place that says which keys exist. Nothing here reads a file or the environment; the
loader does, and passes the folder that relative paths start from as the validation context.
Sections are frozen. Keys are added with safe defaults, never renamed or removed.
"""

from collections.abc import Mapping
from datetime import timedelta
from email.headerregistry import Address
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    Strict,
    ValidationInfo,
    model_validator,
)

from identity.config import values
from identity.config.faults import Contradiction
from identity.limits.gcra import Rate
from identity.mxid import ServerName

ZERO: Final = timedelta(0)


def _base(info: ValidationInfo) -> Path:
    """Where relative paths start: the folder of the file, else as they are."""
    context = info.context
    return context["base"] if isinstance(context, dict) else Path()


def _path(value: object, info: ValidationInfo) -> Path | None:
    return values.parse_path(value, _base(info))


def _folder(value: object, info: ValidationInfo) -> Path:
    path = _path(value, info)
    if path is None:
        raise values.Rejected("is empty", "a path")
    return path


def _database_url(value: SecretStr, info: ValidationInfo) -> SecretStr:
    return SecretStr(values.parse_database_url(value.get_secret_value(), _base(info)))


def _redis_url(value: SecretStr) -> SecretStr:
    return SecretStr(values.parse_redis_url(value.get_secret_value()))


def _password(value: SecretStr) -> SecretStr:
    return SecretStr(values.parse_password(value.get_secret_value()))


def _header_value(value: SecretStr) -> SecretStr:
    return SecretStr(values.parse_header_value(value.get_secret_value()))


def _is_postgresql(url: SecretStr) -> bool:
    return url.get_secret_value().startswith(("postgresql://", "postgres://"))


def _is_public(host: str) -> bool:
    try:
        return ip_address(host).is_global
    except ValueError:
        return False  # a name, which says nothing until it is resolved


def _one_or_several(value: object) -> object:
    """A lone provider may be written without the list, and "" is no provider."""
    if isinstance(value, str):
        return [value] if value else []
    return value


Text = Annotated[str, PlainValidator(values.parse_text)]
Duration = Annotated[timedelta, BeforeValidator(values.parse_duration)]
Size = Annotated[int, BeforeValidator(values.parse_size)]
OptionalPath = Annotated[Path | None, PlainValidator(_path)]
Folder = Annotated[Path, PlainValidator(_folder)]
RequiredListen = Annotated[values.Listen, PlainValidator(values.parse_required_listen)]
OptionalListen = Annotated[values.Listen | None, PlainValidator(values.parse_listen)]
Host = Annotated[str, PlainValidator(values.parse_host)]
Name = Annotated[ServerName, PlainValidator(values.parse_server_name)]
DomainPattern = Annotated[str, PlainValidator(values.parse_domain_pattern)]
Network = Annotated[IPv4Network | IPv6Network, PlainValidator(values.parse_network)]
PublicUrl = Annotated[str, PlainValidator(values.parse_public_url)]
Endpoint = Annotated[str, PlainValidator(values.parse_endpoint)]
Mailbox = Annotated[Address, PlainValidator(values.parse_mailbox)]
Rates = Annotated[tuple[Rate, ...], PlainValidator(values.parse_rates)]
LimitName = Annotated[str, PlainValidator(values.parse_limit_name)]
Originator = Annotated[str, PlainValidator(values.parse_originator)]
CallingCode = Annotated[str, PlainValidator(values.parse_calling_code)]
CallingCodeOrAll = Annotated[str, PlainValidator(values.parse_calling_code_or_all)]
CallingCodeOrDefault = Annotated[str, PlainValidator(values.parse_calling_code_or_default)]
Room = Annotated[str, PlainValidator(values.parse_room)]
Keyword = Annotated[str, PlainValidator(values.parse_keyword)]
Brand = Annotated[str, PlainValidator(values.parse_brand)]
HeaderName = Annotated[str, PlainValidator(values.parse_header_name)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]
RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
Password = Annotated[SecretStr, AfterValidator(_password)]
HeaderValue = Annotated[SecretStr, AfterValidator(_header_value)]
SmsProvider = Literal["twilio", "http", "file"]

# TOML has lists, the server gets tuples. The items stay strict.
AnyList: Final = Strict(strict=False)
Names = Annotated[tuple[Name, ...], AnyList]


class Section(BaseModel):
    """What all sections share: unknown keys are errors, types are not guessed, no changes."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )


class Server(Section):
    name: Name = ServerName.parse("localhost")
    public_url: PublicUrl = "http://localhost:8090"
    listen: RequiredListen = values.Listen("127.0.0.1", 8090)
    # The default is relative as well, so it takes the same way as a value from the file.
    data_dir: Folder = Field(default=Path("data"), validate_default=True)
    workers: int = Field(default=0, ge=0, le=1024)
    threads: int = Field(default=8, ge=1, le=1024)
    trusted_proxies: int = Field(default=0, ge=0, le=32)
    request_body_limit: Size = Field(default=2**20, ge=2**10, le=2**26)
    aliases: Names = ()


class Database(Section):
    url: DatabaseUrl = SecretStr("")
    read_url: DatabaseUrl = SecretStr("")
    pool_size: int = Field(default=10, ge=1, le=1000)

    @model_validator(mode="after")
    def _replicas_need_postgresql(self) -> Self:
        if self.read_url and not (_is_postgresql(self.url) and _is_postgresql(self.read_url)):
            allowed = "postgresql:// here and in url"
            raise Contradiction(("read_url", "only PostgreSQL has replicas", allowed))
        return self


class Keys(Section):
    signing_keys: OptionalPath = None
    storage_keys: OptionalPath = None


class Email(Section):
    backend: Literal["", "smtp", "file"] = ""
    from_: Mailbox = Field(default=Address("Matrix Identity", "noreply", "localhost"), alias="from")
    smtp_host: Host = ""
    smtp_port: int = Field(default=587, ge=1, le=65535)
    tls: Literal["none", "starttls", "tls"] = "starttls"
    smtp_ca_file: OptionalPath = None
    smtp_username: Text = ""
    smtp_password: Password = SecretStr("")
    timeout: Duration = Field(default=timedelta(seconds=10), gt=ZERO, le=timedelta(minutes=5))
    templates: OptionalPath = None
    default_brand: Brand = "default"
    default_web_client: PublicUrl = "https://app.element.io"
    allowed_domains: Annotated[tuple[DomainPattern, ...], AnyList] = ()
    denied_domains: Annotated[tuple[DomainPattern, ...], AnyList] = ()

    @model_validator(mode="after")
    def _smtp_is_whole(self) -> Self:
        faults = []
        if self.backend == "smtp" and not self.smtp_host:
            faults.append(("smtp_host", "is empty, but backend is smtp", "the SMTP server's name"))
        if self.smtp_username and not self.smtp_password:
            faults.append(("smtp_password", "is empty, smtp_username is not", "both or none"))
        if self.smtp_password and not self.smtp_username:
            faults.append(("smtp_username", "is empty, smtp_password is not", "both or none"))
        if self.smtp_port == 465 and self.tls != "tls":
            # RFC 8314 section 3.3: on this port TLS comes before the first word of SMTP.
            faults.append(("tls", f'"{self.tls}" does not work on port 465', '"tls", or port 587'))
        if faults:
            raise Contradiction(*faults)
        return self


class Twilio(Section):
    account_sid: Text = ""
    auth_token: Password = SecretStr("")
    messaging_service_sid: Text = ""
    api_base_url: Endpoint = ""


class Http(Section):
    url: Endpoint = ""
    headers: Mapping[HeaderName, HeaderValue] = Field(default={})


class Sms(Section):
    provider: Annotated[tuple[SmsProvider, ...], AnyList, BeforeValidator(_one_or_several)] = ()
    from_: Originator = Field(default="", alias="from")
    originators: Mapping[CallingCodeOrDefault, Originator] = Field(default={})
    allowed_calling_codes: Annotated[tuple[CallingCodeOrAll, ...], AnyList] = ()
    denied_calling_codes: Annotated[tuple[CallingCode, ...], AnyList] = ()
    daily_limit: int = Field(default=0, ge=0)
    price: float = Field(default=0.0, ge=0)
    spend_per_day: float = Field(default=0.0, ge=0)
    twilio: Twilio = Twilio()
    http: Http = Http()

    @model_validator(mode="after")
    def _providers_are_whole(self) -> Self:
        faults = []
        if len(set(self.provider)) < len(self.provider):
            faults.append(("provider", "names one provider twice", "each once"))
        if "twilio" in self.provider:
            if not self.twilio.account_sid:
                faults.append(("twilio.account_sid", "is empty, but twilio is used", "AC…"))
            if not self.twilio.auth_token:
                faults.append(("twilio.auth_token", "is empty, but twilio is used", "the token"))
            if not (self.from_ or self.originators or self.twilio.messaging_service_sid):
                allowed = "from, originators or twilio.messaging_service_sid"
                faults.append(("from", "is empty, and Twilio needs a sender", allowed))
        if "http" in self.provider and not self.http.url:
            faults.append(("http.url", "is empty, but http is used", "the gateway's URL"))
        if self.spend_per_day and not self.price:
            faults.append(("price", "is 0, and spend_per_day would have no effect", "above 0"))
        if faults:
            raise Contradiction(*faults)
        return self


class Validation(Section):
    session_lifetime: Duration = Field(default=timedelta(hours=24), gt=ZERO)
    max_wrong_tokens: int = Field(default=5, ge=1, le=100)
    confirm_page: bool = True
    next_link_hosts: Annotated[tuple[Host, ...], AnyList] = ()


class Lookup(Section):
    algorithms: Annotated[tuple[Literal["sha256", "none"], ...], AnyList] = ("sha256",)
    max_addresses: int = Field(default=10_000, ge=1, le=100_000)
    pepper_rotation: Duration = ZERO
    pepper_grace: Duration = timedelta(hours=24)

    @model_validator(mode="after")
    def _sha256_is_offered(self) -> Self:
        # LOOK-01: a client may rely on sha256.
        if self.algorithms.count("sha256") != 1 or self.algorithms.count("none") > 1:
            allowed = '["sha256"] or ["sha256", "none"]'
            raise Contradiction(("algorithms", "must hold sha256, each name once", allowed))
        return self


class Invites(Section):
    lifetime: Duration = Field(default=timedelta(days=90), gt=ZERO)
    web_clients: Annotated[tuple[PublicUrl, ...], AnyList] = ()
    allow_msisdn: bool = True
    blocked_homeservers: Names = ()
    blocked_rooms: Annotated[tuple[Room, ...], AnyList] = ()
    blocked_keywords: Annotated[tuple[Keyword, ...], AnyList] = ()


class Terms(Section):
    file: OptionalPath = None


class Federation(Section):
    verify_certificates: bool = True
    ca_file: OptionalPath = None
    allow_private_addresses: bool = False
    denied_networks: Annotated[tuple[Network, ...], AnyList] = ()
    allowed_homeservers: Names = ()
    timeout: Duration = Field(default=timedelta(seconds=10), gt=ZERO, le=timedelta(minutes=5))


class Replication(Section):
    listen: OptionalListen = None
    certificate: OptionalPath = None
    private_key: OptionalPath = None
    ca_file: OptionalPath = None
    batch_size: int = Field(default=1000, ge=1, le=1000)

    @model_validator(mode="after")
    def _certificate_is_whole(self) -> Self:
        reason = f"listens on {self.listen}" if self.listen else "has the other half of the pair"
        wanted = bool(self.listen or self.certificate or self.private_key)
        faults = [
            (key, f"is empty, but replication {reason}", f"the path of a {what} in PEM")
            for key, path, what in (
                ("certificate", self.certificate, "certificate"),
                ("private_key", self.private_key, "private key"),
            )
            if wanted and path is None
        ]
        if faults:
            raise Contradiction(*faults)
        return self


class Internal(Section):
    listen: OptionalListen = None

    @model_validator(mode="after")
    def _not_for_everyone(self) -> Self:
        # Nobody is asked for a token there, so a public address would hand the directory over.
        if self.listen is not None and _is_public(self.listen.host):
            allowed = "loopback or a private network"
            raise Contradiction(("listen", f"{self.listen} is public", allowed))
        return self


class LegacyApi(Section):
    core: bool = True
    open: bool = False


class RateLimits(Section):
    enabled: bool = True
    storage: RedisUrl = SecretStr("")
    limits: Mapping[LimitName, Rates] = Field(default={})


class Notices(Section):
    enabled: bool = False


class Logging(Section):
    level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    format: Literal["console", "json"] = "console"


class Metrics(Section):
    listen: OptionalListen = None


class Retention(Section):
    sessions: Duration = timedelta(days=7)
    access_tokens_unused: Duration = timedelta(days=180)
    audit: Duration = timedelta(days=365)
    revocations: Duration = timedelta(days=30)
