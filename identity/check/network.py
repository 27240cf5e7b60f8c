"""What lies elsewhere: the database, Redis, SMTP, SMS providers, our own public URL.

Each is used as the server would use it, up to the point where something would change.
"""

import json
import smtplib
import socket
import sqlite3
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import psycopg
import redis
import urllib3

from identity.check.files import probe_folder
from identity.check.report import Line, fail, ok, warn
from identity.config import Config, Email
from identity.database import create_engine
from identity.errors import SetupError
from identity.messaging.email import mail_host

# One step of a conversation; the deadline of the whole run bounds how many there can be.
STEP_SECONDS: Final = 5
MAX_ANSWER_BYTES: Final = 64 * 1024
TWILIO_URL: Final = "https://api.twilio.com"


def find_sqlite_file(config: Config) -> Path | None:
    """The file of an SQLite database, whether it exists or not. Raises: SetupError."""
    if not config.database_url.startswith("sqlite:"):
        return None
    # Nothing is opened: the engine reads the URL as it will for the server.
    return Path(create_engine(config.database_url).url.database or "")


def probe_sqlite(file: Path) -> Iterator[Line]:
    """The file is read, neither made nor changed."""
    where = "[database] url"
    if not file.exists():
        yield ok(f"{where}: {file} will be created")
        return
    # Without a log of writes nobody has it open, and reading it as it is leaves no trace.
    mode = "mode=ro" if Path(f"{file}-wal").exists() else "mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(f"file:{quote(str(file))}?{mode}", uri=True, timeout=3)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master")
        finally:
            connection.close()
    except sqlite3.Error as error:
        yield fail(f"{where}: {file}: {error}")
    else:
        yield ok(f"{where}: {file}")


def probe_postgresql(key: str, url: str) -> Iterator[Line]:
    """`key`: url, which must be writable, or read_url."""
    where = f"[database] {key}"
    try:
        with psycopg.connect(url, connect_timeout=STEP_SECONDS, autocommit=True) as connection:
            row = connection.execute("SHOW transaction_read_only").fetchone()
            host = connection.info.host
    except psycopg.Error as error:
        # libpq names hosts, user and database; never the password.
        yield fail(f"{where}: {' '.join(str(error).split())}")
        return
    if key == "url" and row and row[0] == "on":
        yield fail(f"{where}: PostgreSQL on {host} is read-only")
    else:
        yield ok(f"{where}: PostgreSQL on {host}")


def probe_redis(url: str) -> Iterator[Line]:
    where = "[rate_limits] storage"
    try:
        with redis.Redis.from_url(
            url, socket_timeout=STEP_SECONDS, socket_connect_timeout=STEP_SECONDS
        ) as client:
            client.ping()
    except (redis.RedisError, ValueError, OSError) as error:
        yield fail(f"{where}: {why(error)}")
    else:
        yield ok(f"{where}: Redis answers")


def probe_smtp(config: Config) -> Iterator[Line]:
    """Greeting, TLS, log-in, NOOP; no mail. What the server says is not quoted."""
    email = config.email
    where = f"[email] smtp_host: {email.smtp_host}:{email.smtp_port}"
    context = ssl.create_default_context()
    try:
        if email.smtp_ca_file:
            context.load_verify_locations(email.smtp_ca_file)
    except OSError:
        yield fail(f"{where}: not tried, because smtp_ca_file cannot be used")
        return
    try:
        smtp = _connect_smtp(email, context, mail_host(config.server.public_url))
        try:
            if email.smtp_username:
                smtp.login(email.smtp_username, email.smtp_password.get_secret_value())
            code, _ = smtp.noop()
            if code != 250:
                raise smtplib.SMTPResponseException(code, b"")
            smtp.quit()
        finally:
            smtp.close()
    except smtplib.SMTPAuthenticationError as error:
        yield fail(f"{where}: user name and password are refused ({error.smtp_code})")
    except smtplib.SMTPNotSupportedError as error:
        yield fail(f"{where}: {error}")
    except smtplib.SMTPResponseException as error:
        yield fail(f"{where}: answered {error.smtp_code}")
    except OSError as error:
        yield fail(f"{where}: {why(error)}")
    else:
        how = {"none": "without TLS", "starttls": "with STARTTLS", "tls": "with TLS"}[email.tls]
        logged_in = ", logged in" if email.smtp_username else ""
        yield ok(f"{where}: answers {how}{logged_in}")


def _connect_smtp(email: Email, context: ssl.SSLContext, own_host: str) -> smtplib.SMTP:
    """A greeted server. `own_host` is given because finding it out may hang."""
    if email.tls == "tls":
        return smtplib.SMTP_SSL(
            email.smtp_host, email.smtp_port, own_host, timeout=STEP_SECONDS, context=context
        )
    smtp = smtplib.SMTP(email.smtp_host, email.smtp_port, own_host, timeout=STEP_SECONDS)
    try:
        smtp.ehlo_or_helo_if_needed()
        if email.tls == "starttls":
            smtp.starttls(context=context)
    except OSError:
        smtp.close()
        raise
    return smtp


def probe_sms(config: Config) -> Iterator[Line]:
    """Each provider in turn; no message."""
    for provider in config.sms_providers:
        if provider == "file":
            yield from probe_folder("[sms] provider: file", config.outbox_path)
        elif provider == "http":
            yield probe_reachable("[sms.http] url", config.sms.http.url)
        else:
            yield probe_twilio(config)


def probe_reachable(where: str, url: str) -> Line:
    """Whether the host of a URL takes connections, with TLS where the URL says https."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    try:
        with socket.create_connection((host, port), timeout=STEP_SECONDS) as plain:
            if parts.scheme == "https":
                context = ssl.create_default_context()
                with context.wrap_socket(plain, server_hostname=host):
                    pass
    except OSError as error:
        return fail(f"{where}: {host}:{port}: {why(error)}")
    return ok(f"{where}: {host}:{port} takes connections")


def probe_twilio(config: Config) -> Line:
    """Reads the account, as its owner."""
    where, twilio = "[sms.twilio]", config.sms.twilio
    base = (twilio.api_base_url or TWILIO_URL).rstrip("/")
    credentials = f"{twilio.account_sid}:{twilio.auth_token.get_secret_value()}"
    try:
        status, account = _get_json(
            f"{base}/2010-04-01/Accounts/{quote(twilio.account_sid, safe='')}.json",
            urllib3.make_headers(basic_auth=credentials),
        )
    except (urllib3.exceptions.HTTPError, UnicodeError) as error:
        return fail(f"{where} api_base_url: {urlsplit(base).netloc}: {why(error)}")
    if status in (401, 403, 404):
        return fail(f"{where} auth_token: account_sid and auth_token are refused ({status})")
    if status != 200 or not isinstance(account, dict):
        return fail(f"{where} api_base_url: {urlsplit(base).netloc} answered {status}")
    if account.get("status") != "active":
        return fail(f"{where} account_sid: the account is not active")
    return ok(f"{where} account_sid: the account is active")


def probe_public_url(config: Config) -> Iterator[Line]:
    """Only ever a warning: the server, or the proxy before it, may not be running yet."""
    url = f"{config.server.public_url}/_matrix/identity/versions"
    where = f"[server] public_url: {url}"
    try:
        status, answer = _get_json(url, {})
    except urllib3.exceptions.HTTPError as error:
        yield warn(f"{where}: {why(error)} (is the server running?)")
        return
    if status == 200 and isinstance(answer, dict) and "versions" in answer:
        yield ok(f"{where}: answers")
    else:
        yield warn(f"{where}: answered {status}, not as an identity server does")


def fetch_public_key(url: str, key_id: str, tls: ssl.SSLContext) -> str | None:
    """What the identity server at `url` publishes under `key_id`; None if nothing.

    Raises: SetupError when it does not answer as an identity server does.
    """
    try:
        path = f"/_matrix/identity/v2/pubkey/{quote(key_id)}"
        status, answer = _get_json(url + path, {}, tls)
    except urllib3.exceptions.HTTPError as error:
        raise SetupError(f"{url}: {why(error)}") from None
    if status == 404:
        return None
    public_key = answer.get("public_key") if isinstance(answer, dict) else None
    if status != 200 or not isinstance(public_key, str):
        raise SetupError(f"{url} answered {status}, not as an identity server does")
    return public_key


def _get_json(
    url: str, headers: dict[str, str], tls: ssl.SSLContext | None = None
) -> tuple[int, Any]:
    """Status and decoded body, None where that is no JSON. Raises: urllib3's HTTPError."""
    with urllib3.PoolManager(ssl_context=tls or ssl.create_default_context()) as pool:
        response = pool.request(
            "GET",
            url,
            headers=headers,
            timeout=STEP_SECONDS,
            retries=False,
            redirect=False,
            preload_content=False,
        )
        try:
            body = response.read(MAX_ANSWER_BYTES, decode_content=True)
        finally:
            response.close()
    try:
        return response.status, json.loads(body)
    except (ValueError, RecursionError):
        return response.status, None


def why(error: BaseException) -> str:
    """The reason in a few words, from wherever in the chain of causes it is."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is refused: {cause.verify_message}"
        if isinstance(cause, TimeoutError):
            return f"no answer within {STEP_SECONDS} s"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__
