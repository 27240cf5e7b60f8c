"""Drives matrix-js-sdk in a real browser, from another origin than this server's: `make test-jssdk`.

    .venv/bin/python tests/interop/jssdk/run.py

Needs Chromium and npm. The first run installs the SDK and a bundler beside this file, as
package-lock.json pins them; after that only loopback is used. Exit status 0 if every step
passed; else the logs are kept, and named.
"""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(1, str(HERE.parents[1]))  # as pytest does: for parts

from parts.browser import Browser, find_chromium  # noqa: E402 - the path comes first
from parts.homeserver import FakeHomeserver  # noqa: E402
from parts.processes import RunningServer  # noqa: E402
from website import listening, website  # noqa: E402

INSTALL_S = 300
BUNDLE_S = 60
RUN_S = 180
LOOKUP = "/_matrix/identity/v2/lookup"
TERMS = """\
docs:
  terms: {version: "1", langs: {en: {name: Terms, url: "https://example.org/terms-1"}}}
  privacy: {version: "2", langs: {en: {name: Privacy, url: "https://example.org/privacy-2"}}}
"""


class Score:
    def __init__(self) -> None:
        self.passed = self.failed = 0

    def add(self, name: str, error: str | None) -> None:
        if error is None:
            self.passed += 1
            print(f"ok    {name}", flush=True)
        else:
            self.failed += 1
            print(f"FAIL  {name}: {error}", flush=True)


def main() -> int:
    # Ended from outside, it stops what it has started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    chromium = find_chromium()
    if chromium is None:
        sys.exit("Chromium is not there: apt-get install chromium")
    if shutil.which("npm") is None:
        sys.exit("npm is not there: apt-get install npm")
    install()
    folder = Path(tempfile.mkdtemp(prefix="test-jssdk-"))
    score = Score()
    with contextlib.ExitStack() as running:
        bundle = folder / "client.js"
        make_bundle(bundle)
        homeserver = running.enter_context(FakeHomeserver())
        server = server_for(folder, homeserver)
        running.callback(server.close)
        server.start()
        site = website(
            bundle,
            server.settings["SERVER__PUBLIC_URL"],
            server.settings["SERVER__NAME"],
            homeserver,
            server.folder / "data" / "outbox",
        )
        origin = running.enter_context(listening(site))
        browser = running.enter_context(Browser(chromium, folder))
        browser.open(origin)
        print(f"matrix-js-sdk {sdk_version()}, {browser.evaluate('navigator.userAgent')}")
        watch(browser, score)
        judge_preflights(requests_in(server.log), browser.evaluate("report.calls"), score)
    if score.failed:
        print(f"logs: {server.log_file} {folder / 'chromium.log'}")
    else:
        shutil.rmtree(folder)
    print(f"{score.passed} passed, {score.failed} failed")
    return 1 if score.failed else 0


def install() -> None:
    """As the lock says, unless that is done already."""
    done, lock = HERE / "node_modules" / ".package-lock.json", HERE / "package-lock.json"
    if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
        subprocess.run(["npm", "ci", "--silent"], cwd=HERE, check=True, timeout=INSTALL_S)


def sdk_version() -> str:
    package = HERE / "node_modules" / "matrix-js-sdk" / "package.json"
    return json.loads(package.read_text())["version"]


def make_bundle(path: Path) -> None:
    esbuild = HERE / "node_modules" / ".bin" / "esbuild"
    options = ["--bundle", "--format=esm", "--log-level=warning", f"--outfile={path}"]
    subprocess.run([esbuild, "client.js", *options], cwd=HERE, check=True, timeout=BUNDLE_S)


def server_for(folder: Path, homeserver: FakeHomeserver) -> RunningServer:
    terms = folder / "terms.yaml"
    terms.write_text(TERMS)
    server = RunningServer(
        folder / "identity",
        {
            "SERVER__NAME": "localhost",
            "TERMS__FILE": str(terms),
            "FEDERATION__CA_FILE": str(homeserver.ca_file),
            "FEDERATION__ALLOW_PRIVATE_ADDRESSES": "true",
            # Tells of every request, preflights too.
            "LOGGING__LEVEL": "debug",
            "LOGGING__FORMAT": "json",
        },
    )
    # Another host than the site's, and another port.
    server.settings["SERVER__PUBLIC_URL"] = f"http://localhost:{server.port}"
    return server


def watch(browser: Browser, score: Score) -> None:
    """Count the steps as they are done."""
    deadline = time.monotonic() + RUN_S
    seen = 0
    while True:
        report = browser.evaluate("report")
        for step in report["steps"][seen:]:
            score.add(step["name"], step.get("error"))
        seen = len(report["steps"])
        if report["finished"]:
            return
        if time.monotonic() > deadline:
            score.add("the page comes to its end", f"not within {RUN_S} s")
            return
        time.sleep(0.1)


def requests_in(log: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in log.splitlines() if line.startswith("{"))
    return [line for line in lines if line.get("event") == "request"]


def judge_preflights(
    requests: list[dict[str, Any]], calls: list[dict[str, str]], score: Score
) -> None:
    """requests: what the server saw. calls: what the page made."""
    preflights = [request for request in requests if request["method"] == "OPTIONS"]
    refused = [request for request in preflights if not 200 <= request["status"] < 300]
    name = f"{len(preflights)} preflights for {len(calls)} calls of the SDK, all answered 2xx"
    score.add(name, None if preflights and not refused else f"but {refused}")

    asked = sum(request["route"] == LOOKUP for request in preflights)
    called = sum(call["path"] == LOOKUP for call in calls)
    name = f"{asked} preflight for {called} calls of lookup"
    score.add(name, None if asked == 1 else "one is enough")


if __name__ == "__main__":
    sys.exit(main())
