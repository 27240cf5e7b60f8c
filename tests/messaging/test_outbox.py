import stat
import threading
from email import message_from_bytes
from email.policy import SMTPUTF8

import pytest
from parts.clock import FakeClock
from structlog.testing import capture_logs

from identity.config import Config
from identity.errors import EmailNotSent
from identity.messaging.brands import Brands
from identity.messaging.email import Composer
from identity.messaging.outbox import FileOutbox
from identity.messaging.sender import sender_from_config
from identity.messaging.smtp import SmtpSender
from identity.messaging.verification import verification_mail
from identity.threepid import ThreePid

ALICE = "alice@example.org"
LINK = "http://localhost:8090/_matrix/identity/v2/validate/email/confirm?sid=1&token=T" + "x" * 90


def make_mail():
    composer = Composer(Brands(None, "default"), Config(), FakeClock(1_800_000_000_042))
    return verification_mail(
        composer,
        ThreePid.email(ALICE),
        token="T0ken",
        link=LINK,
        requested_by="@alice:example.org",
        brand=None,
    )


def test_outbox_writes_each_mail_to_a_private_file_of_its_own(tmp_path):
    outbox = FileOutbox(tmp_path / "outbox", FakeClock(1_800_000_000_042))
    outbox.send(make_mail(), ALICE)
    outbox.send(make_mail(), ALICE)
    names = ["20270115T080000.042Z-0.eml", "20270115T080000.042Z-1.eml"]
    assert sorted(path.name for path in (tmp_path / "outbox").iterdir()) == names
    for name in names:
        assert stat.S_IMODE((tmp_path / "outbox" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "outbox").stat().st_mode) == 0o700


def test_outbox_mail_shows_a_person_the_link_and_a_program_the_mail(tmp_path):
    mail = make_mail()
    FileOutbox(tmp_path, FakeClock(1_800_000_000_042)).send(mail, ALICE)
    (path,) = tmp_path.iterdir()
    raw = path.read_bytes()
    assert f"\r\n{LINK}\r\n".encode() in raw
    written = message_from_bytes(raw, policy=SMTPUTF8)
    assert written.items()[:-1] == mail.items()[:-1]  # all but the boundary of the parts
    for kind in ("plain", "html"):
        sent = mail.get_body((kind,)).get_content()
        assert written.get_body((kind,)).get_content().replace("\r\n", "\n") == sent


def test_outbox_logs_the_path_and_no_address(tmp_path):
    with capture_logs() as logs:
        FileOutbox(tmp_path, FakeClock(1_800_000_000_042)).send(make_mail(), ALICE)
    (path,) = tmp_path.iterdir()
    assert logs == [{"event": "email_written", "path": str(path), "log_level": "info"}]


def test_outbox_of_several_writers_loses_no_mail(tmp_path):
    """Processes share the folder; each writer here has an outbox of its own."""
    mail = make_mail()

    def write():
        outbox = FileOutbox(tmp_path, FakeClock(1_800_000_000_042))
        for _ in range(10):
            outbox.send(mail, ALICE)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    expected = {f"20270115T080000.042Z-{number}.eml" for number in range(40)}
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert len({path.stat().st_size for path in tmp_path.iterdir()}) == 1


def test_outbox_that_cannot_be_written_is_not_sent(tmp_path):
    (tmp_path / "outbox").write_text("not a folder")
    with capture_logs() as logs, pytest.raises(EmailNotSent):
        FileOutbox(tmp_path / "outbox", FakeClock(1_800_000_000_042)).send(make_mail(), ALICE)
    assert [entry["reason"] for entry in logs] == ["FileExistsError"]


@pytest.mark.parametrize(
    ("email", "kind"),
    [
        ({}, FileOutbox),
        ({"smtp_host": "localhost"}, SmtpSender),
        ({"smtp_host": "localhost", "backend": "smtp"}, SmtpSender),
        ({"smtp_host": "localhost", "backend": "file"}, FileOutbox),
    ],
)
def test_sender_is_the_one_that_the_configuration_names(email, kind):
    assert (
        type(
            sender_from_config(
                Config.model_validate({"email": email}), FakeClock(1_800_000_000_042)
            )
        )
        is kind
    )


def test_sender_for_development_writes_below_the_data_folder(tmp_path):
    config = Config.model_validate({"server": {"data_dir": str(tmp_path)}})
    sender_from_config(config, FakeClock(1_800_000_000_042)).send(make_mail(), ALICE)
    assert len(list((tmp_path / "outbox").iterdir())) == 1
