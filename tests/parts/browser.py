"""A headless Chromium, driven by the DevTools protocol over a pair of pipes.

with Browser(executable, folder) as browser:
    browser.open("http://localhost:8090/")
    browser.press("button")
    browser.wait_for("location.pathname == '/done'")

It has a profile of its own in `folder`, resolves no name but localhost, and talks to nobody of
its own accord.
"""

import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Self

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--metrics-recording-only",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
)
# Where Chromium reads commands and writes answers and events.
_COMMANDS, _ANSWERS = 3, 4
_TIMEOUT_S = 30.0


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
    """One page. Every wait is bounded; what does not come raises TimeoutError."""

    def __init__(self, executable: str, folder: Path) -> None:
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self._received = b""
        # High numbers: the child puts them where Chromium looks, and they must not be there yet.
        pipes = [*os.pipe(), *os.pipe()]
        theirs_in, self._out, self._in, theirs_out = map(_out_of_the_way, pipes)
        log = os.open(folder / "chromium.log", os.O_WRONLY | os.O_CREAT, 0o600)
        self._pid = os.posix_spawn(
            executable,
            [executable, *_FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
            {**os.environ, "HOME": str(folder)},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs_in, _COMMANDS),
                (os.POSIX_SPAWN_DUP2, theirs_out, _ANSWERS),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setpgroup=0,
        )
        for descriptor in (theirs_in, theirs_out, log):
            os.close(descriptor)

    def __enter__(self) -> Self:
        try:
            target = self._call("Target.createTarget", url="about:blank")["targetId"]
            attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        except (LookupError, TimeoutError):
            self.__exit__()
            raise
        self._session = attached["sessionId"]
        return self

    def __exit__(self, *_: object) -> None:
        # The whole group: Chromium is several processes.
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._out)
        os.close(self._in)

    def open(self, url: str) -> None:
        """Go there and wait for the page to be complete."""
        answer = self._call("Page.navigate", url=url)
        assert "errorText" not in answer, answer["errorText"]
        self.wait_for(f"location.href != 'about:blank' && {_COMPLETE}")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, selector: str) -> None:
        """Press the mouse over the element, as a person does."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{element}.scrollIntoView()")
        box = self.evaluate(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
            f"({element}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=box[0],
                y=box[1],
                button="left",
                clickCount=1,
            )

    def wait_for(self, condition: str) -> None:
        """Until the expression holds, in whichever page is open by then."""
        deadline = time.monotonic() + _TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                if self.evaluate(condition):
                    return
            except LookupError:  # between two pages
                pass
            time.sleep(0.02)
        raise TimeoutError(f"{condition}; at {self.evaluate('location.href')}")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == number:
                if "error" in answer:
                    raise LookupError(answer["error"]["message"])
                return answer["result"]

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._in], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("Chromium does not answer")
            received = os.read(self._in, 65_536)
            if not received:
                raise TimeoutError("Chromium has ended")
            self._received += received
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)


_COMPLETE = "document.readyState == 'complete'"


def _out_of_the_way(descriptor: int) -> int:
    """The same pipe end under a number from 10 on, not inherited."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved
