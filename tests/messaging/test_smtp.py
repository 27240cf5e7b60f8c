import socket
import threading
import time
import traceback
from contextlib import contextmanager, nullcontext, suppress
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8

import pytest
from parts.clock import FakeClock
from parts.mailserver import MailServer
from structlog.testing import capture_logs

from identity.config import Config
from identity.errors import EmailNotSent, SetupError
from identity.messaging.smtp import SmtpSender

ALICE = "alice@example.org"
# For servers that never answer in time, and for those that do so on a busy machine.
SHORT, FAIR = "250ms", "750ms"


def make_sender(server, tls="none", *, clock=None, threads=32, connect=None, **email):
    settings = {
        "backend": "smtp",
        "smtp_host": "localhost",
        "smtp_port": server.port,
        "smtp_ca_file": str(server.ca_file),
        "tls": tls,
        "from": "Matrix Identity <noreply@id.example.org>",
        **email,
    }
    config = Config.model_validate({"email": settings, "server": {"threads": threads}})
    options = {"connect": connect} if connect else {}
    return SmtpSender(config, clock or FakeClock(), **options)


def make_mail(to=ALICE, body="Hello\n.\n..two dots\nthe end\n"):
    mail = EmailMessage(policy=SMTP if to.isascii() else SMTPUTF8)
    mail["From"] = "Matrix Identity <noreply@id.example.org>"
    mail["To"] = to
    mail["Subject"] = "Hello"
    mail.set_content(body)
    return mail


@contextmanager
def not_sent(reason, code=None):
    """The block fails with EmailNotSent, and the log says why without saying who."""
    with capture_logs() as logs, pytest.raises(EmailNotSent) as caught:
        yield
    assert [entry["reason"] for entry in logs] == [reason]
    assert logs[0]["smtp_code"] == code or code is None
    told = repr(logs) + "".join(traceback.format_exception(caught.value))
    assert "alice@" not in told


@pytest.mark.parametrize("tls", ["none", "starttls", "tls"])
@pytest.mark.requirement("MAIL-10")
def test_smtp_with_each_kind_of_tls_delivers_the_mail_with_crlf(tls):
    with MailServer(tls=tls) as server:
        make_sender(server, tls).send(make_mail(), ALICE)
        (mail,) = server.wait_for_mails(1)
        server.wait_for(lambda: server.commands[-1] == "QUIT")
    assert (mail.mail_from, mail.rcpt_tos) == ("noreply@id.example.org", [ALICE])
    assert mail.message["To"] == ALICE
    assert mail.raw.replace(b"\r\n", b"").count(b"\n") == 0
    assert mail.raw.replace(b"\r\n", b"").count(b"\r") == 0
    assert mail.message.get_content() == "Hello\r\n.\r\n..two dots\r\nthe end\r\n"


def test_smtp_with_login_authenticates_after_starttls():
    with MailServer(tls="starttls", login=("me", "p%ss wörd")) as server:
        # smtplib can only say ASCII passwords.
        sender = make_sender(server, "starttls", smtp_username="me", smtp_password="p%ss wörd")
        with not_sent("UnicodeEncodeError"):
            sender.send(make_mail(), ALICE)
    with MailServer(tls="starttls", login=("me", "p%ss")) as server:
        make_sender(server, "starttls", smtp_username="me", smtp_password="p%ss").send(
            make_mail(), ALICE
        )
        server.wait_for_mails(1)
        assert server.commands.index("STARTTLS") < server.commands.index("AUTH")


def test_smtp_with_wrong_password_is_not_sent():
    with MailServer(tls="starttls", login=("me", "right")) as server:
        sender = make_sender(server, "starttls", smtp_username="me", smtp_password="wrong")
        with not_sent("SMTPAuthenticationError"):
            sender.send(make_mail(), ALICE)
        assert server.mails == []


def test_smtp_without_login_where_one_is_needed_is_not_sent():
    with MailServer(tls="starttls", login=("me", "right")) as server:
        with not_sent("SMTPSenderRefused"):
            make_sender(server, "starttls").send(make_mail(), ALICE)
        assert server.mails == []


@pytest.mark.parametrize("tls", ["starttls", "tls"])
@pytest.mark.parametrize(
    "certificate",
    [{"names": ["other.test"]}, {"expired": True}, {"trusted": False}],
    ids=["wrong name", "expired", "unknown authority"],
)
def test_smtp_server_that_cannot_prove_its_name_gets_nothing(tls, certificate):
    """Threat 23."""
    options = dict(certificate)
    with MailServer(*options.pop("names", ()), tls=tls, **options) as server:
        sender = make_sender(server, tls, smtp_username="me", smtp_password="secret")
        with not_sent("SSLCertVerificationError"):
            sender.send(make_mail(), ALICE)
        server.wait_until_idle()
        assert server.mails == []
        assert set(server.commands) <= {"EHLO", "STARTTLS"}


def test_smtp_with_an_authority_that_is_not_configured_is_not_sent():
    """Threat 23: the extra authority is trusted because smtp_ca_file names it, and only then."""
    with MailServer(tls="tls") as server:
        with not_sent("SSLCertVerificationError"):
            make_sender(server, "tls", smtp_ca_file="").send(make_mail(), ALICE)
        make_sender(server, "tls").send(make_mail(), ALICE)


@pytest.mark.parametrize("login", [{}, {"smtp_username": "me", "smtp_password": "secret"}])
def test_smtp_server_that_does_not_offer_starttls_gets_nothing(login):
    """Threat 23: whoever strips STARTTLS from the greeting sees no mail and no password."""
    with MailServer(tls="none") as server:
        sender = make_sender(server, "starttls", **login)
        with not_sent("SMTPNotSupportedError"):
            sender.send(make_mail(), ALICE)
        server.wait_until_idle()
        assert server.commands == ["EHLO"]


@pytest.mark.parametrize(
    ("switch", "reply", "reason", "code"),
    [
        ("rcpt_reply", "550 no such user alice@example.org", "SMTPRecipientsRefused", 550),
        ("rcpt_reply", "450 later, alice@example.org", "SMTPRecipientsRefused", 450),
        ("data_reply", "451 later, alice@example.org", "SMTPDataError", 451),
        ("data_reply", "554 no, alice@example.org", "SMTPDataError", 554),
    ],
)
def test_smtp_mail_that_the_server_refuses_is_not_sent(switch, reply, reason, code):
    with MailServer() as server:
        setattr(server, switch, reply)
        with not_sent(reason, code):
            make_sender(server).send(make_mail(), ALICE)
        setattr(server, switch, None)
        make_sender(server).send(make_mail(), ALICE)
        assert len(server.wait_for_mails(1)) == 1


@pytest.mark.parametrize("stage", ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA"])
def test_smtp_connection_that_breaks_is_not_sent(stage):
    with MailServer() as server:
        server.drop_at = stage
        started = time.monotonic()
        with not_sent("SMTPServerDisconnected"):
            make_sender(server).send(make_mail(), ALICE)
        assert time.monotonic() - started < 5
        assert server.mails == []


def test_smtp_server_that_does_not_listen_is_not_sent():
    with MailServer() as server:
        sender = make_sender(server)
    with not_sent("ConnectionRefusedError"):
        sender.send(make_mail(), ALICE)


@pytest.mark.parametrize(
    ("stage", "tls"),
    [
        ("CONNECT", "none"),
        ("CONNECT", "tls"),
        ("EHLO", "starttls"),
        ("STARTTLS", "starttls"),
        ("MAIL", "none"),
        ("DATA", "tls"),
    ],
)
def test_smtp_server_that_hangs_ends_within_the_timeout(stage, tls):
    with MailServer(tls=tls) as server:
        server.hang_at = stage
        sender = make_sender(server, tls, timeout=SHORT)
        started = time.monotonic()
        with not_sent("time_out"):
            sender.send(make_mail(), ALICE)
        assert time.monotonic() - started < 4
        # The conversation is over as well, which frees its thread.
        server.wait_until_idle()
        assert server.mails == []


@pytest.mark.parametrize("tls", ["none", "starttls", "tls"])
def test_smtp_server_that_drips_ends_within_the_timeout(tls):
    with MailServer(tls=tls) as server:
        server.drip_s = 0.05
        sender = make_sender(server, tls, timeout=SHORT)
        started = time.monotonic()
        with not_sent("time_out"):
            sender.send(make_mail(), ALICE)
        assert time.monotonic() - started < 4
        server.wait_until_idle()
        assert server.mails == []


def test_smtp_server_that_never_says_farewell_has_the_mail():
    with MailServer() as server:
        server.hang_at = "QUIT"
        make_sender(server).send(make_mail(), ALICE)
        assert len(server.mails) == 1
        server.wait_until_idle()


def test_smtp_connection_that_comes_too_late_sends_nothing():
    """What was reported as not sent is not sent: the token in it is dead."""
    late = threading.Event()

    def connect(address, timeout_s):
        assert late.wait(5)
        return socket.create_connection(address, timeout_s)

    with MailServer() as server:
        sender = make_sender(server, threads=4, connect=connect, timeout=SHORT)
        with not_sent("time_out"):
            sender.send(make_mail(), ALICE)
        with not_sent("busy"):  # threads // 4 is 1, and the first one still waits to connect
            sender.send(make_mail(), ALICE)
        late.set()
        server.wait_for(lambda: server.connections == 1)
        server.wait_until_idle()
        assert "MAIL" not in server.commands


def test_smtp_mails_one_after_the_other_find_the_only_place_free():
    with MailServer() as server:
        sender = make_sender(server, threads=1)
        for number in range(20):
            server.rcpt_reply = "550 no" if number % 2 else None
            with suppress(EmailNotSent) if number % 2 else nullcontext():
                sender.send(make_mail(), ALICE)
        assert len(server.mails) == 10
        assert server.commands.count("RCPT") == 20


@pytest.mark.parametrize(("threads", "places"), [(1, 1), (8, 2), (15, 3)])
def test_smtp_beyond_a_quarter_of_the_threads_is_refused_at_once(threads, places):
    with MailServer() as server:
        server.hang_at = "DATA"
        sender = make_sender(server, threads=threads, timeout="30s")

        def send():
            with suppress(EmailNotSent):  # when the server stops
                sender.send(make_mail(), ALICE)

        waiting = [threading.Thread(target=send) for _ in range(places)]
        for thread in waiting:
            thread.start()
        server.wait_for(lambda: server.commands.count("DATA") == places)
        started = time.monotonic()
        with not_sent("busy"):
            sender.send(make_mail(), ALICE)
        assert time.monotonic() - started < 1
        assert server.connections == places
    for thread in waiting:
        thread.join()


def test_smtp_after_three_timeouts_in_a_row_is_refused_for_ten_seconds():
    clock = FakeClock()
    with MailServer() as server:
        sender = make_sender(server, clock=clock, timeout=FAIR)
        sender.send(make_mail(), ALICE)
        server.hang_at = "EHLO"
        for _ in range(3):
            with not_sent("time_out"):
                sender.send(make_mail(), ALICE)
            server.wait_until_idle()
        server.hang_at = None
        seen = server.connections
        with not_sent("breaker_open"):
            sender.send(make_mail(), ALICE)
        assert server.connections == seen
        clock.advance(seconds=10)
        sender.send(make_mail(), ALICE)
        assert len(server.mails) == 2


def test_smtp_refusal_between_timeouts_keeps_the_breaker_closed():
    with MailServer() as server:
        sender = make_sender(server, timeout=FAIR)
        for stage in ("EHLO", "EHLO", None, "EHLO"):
            server.hang_at, server.rcpt_reply = stage, "550 no"
            with not_sent("time_out" if stage else "SMTPRecipientsRefused"):
                sender.send(make_mail(), ALICE)
            server.wait_until_idle()
        server.hang_at = server.rcpt_reply = None
        sender.send(make_mail(), ALICE)


@pytest.mark.requirement("MAIL-10")
def test_smtp_recipient_with_non_ascii_domain_is_sent_to_its_a_label():
    """Threat 22."""
    with MailServer(smtputf8=False) as server:
        make_sender(server).send(make_mail("bob@xn--pple-43d.com"), "bob@аpple.com")
        assert server.wait_for_mails(1)[0].rcpt_tos == ["bob@xn--pple-43d.com"]


def test_smtp_recipient_with_non_ascii_local_part_needs_smtputf8():
    recipient = "jürgen@bücher.example"
    with MailServer() as server:
        make_sender(server).send(make_mail("jürgen@xn--bcher-kva.example"), recipient)
        assert server.wait_for_mails(1)[0].rcpt_tos == ["jürgen@xn--bcher-kva.example"]
    with MailServer(smtputf8=False) as server, not_sent("SMTPNotSupportedError"):
        make_sender(server).send(make_mail("jürgen@xn--bcher-kva.example"), recipient)


@pytest.mark.parametrize(
    "recipient", ["a\r\nRCPT TO:<eve@example.org>@example.org", "=?utf-8?q?=0a?=@example.org", "x"]
)
def test_smtp_recipient_that_mail_cannot_carry_is_not_sent(recipient):
    """Threat 18."""
    with MailServer() as server:
        with pytest.raises(EmailNotSent):
            make_sender(server).send(make_mail(), recipient)
        assert server.connections == 0


def test_smtp_ca_file_that_is_none_is_a_fault_of_the_setup(tmp_path):
    with MailServer() as server:
        with pytest.raises(SetupError, match="smtp_ca_file"):
            make_sender(server, smtp_ca_file=str(tmp_path / "missing.pem"))
        (tmp_path / "empty.pem").write_text("nothing\n")
        with pytest.raises(SetupError, match="smtp_ca_file"):
            make_sender(server, smtp_ca_file=str(tmp_path / "empty.pem"))
