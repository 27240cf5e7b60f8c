"""matrix-js-sdk in a real browser against `identity serve`, from another origin.

    python tests/interop/jssdk/run.py

Needs npm (the SDK and a bundler are installed beside this file, as package-lock.json pins them)
and Chromium. Prints one line a step and the score; exit status 1 if a step failed.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1])]

from parts.browser import Browser, find_chromium  # noqa: E402 - found by the line above
from parts.homeserver import FakeHomeserver  # noqa: E402
from parts.processes import RunningServer  # noqa: E402
from website import listening, requests_in, website  # noqa: E402

INSTALL_S = 300
BUNDLE_S = 60
RUN_S = 180
TERMS = """
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
        else:
            self.failed += 1
        print(f"ok    {name}" if error is None else f"FAIL  {name}: {error}", flush=True)


def main() -> None:
    chromium = find_chromium()
    if chromium is None:
        sys.exit("Chromium is not there: apt-get install chromium")
    if shutil.which("npm") is None:
        sys.exit("npm is not there: apt-get install npm")
    install()
    score = Score()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundle = folder / "client.js"
        make_bundle(bundle)
        homeserver = stack.enter_context(FakeHomeserver())
        server = running_server(folder, homeserver)
        stack.callback(server.close)
        server.start()
        site = website(
            bundle,
            server.settings["SERVER__PUBLIC_URL"],
            server.settings["SERVER__NAME"],
            homeserver,
            server.folder / "data" / "outbox",
        )
        origin = stack.enter_context(listening(site))
        browser = stack.enter_context(Browser(chromium, folder))
        browser.open(origin)
        watch(browser, score)
        calls = browser.evaluate("report.calls")
        judge_preflights(requests_in(server.log), calls or [], score)
    print(f"{score.passed} passed, {score.failed} failed")
    sys.exit(1 if score.failed else 0)


def install() -> None:
    """As the lock says, unless that is done already."""
    stamp = HERE / "node_modules" / ".package-lock.json"
    lock = HERE / "package-lock.json"
    if not stamp.exists() or stamp.stat().st_mtime < lock.stat().st_mtime:
        subprocess.run(["npm", "ci", "--silent"], cwd=HERE, check=True, timeout=INSTALL_S)


def make_bundle(path: Path) -> None:
    esbuild = HERE / "node_modules" / ".bin" / "esbuild"
    options = ["--bundle", "--format=esm", "--log-level=warning", f"--outfile={path}"]
    subprocess.run([esbuild, "client.js", *options], cwd=HERE, check=True, timeout=BUNDLE_S)


def running_server(folder: Path, homeserver: FakeHomeserver) -> RunningServer:
    terms = folder / "terms.yaml"
    terms.write_text(TERMS)
    server = RunningServer(
        folder / "server",
        {
            "TERMS__FILE": str(terms),
            "FEDERATION__CA_FILE": str(homeserver.ca_file),
            "FEDERATION__ALLOW_PRIVATE_ADDRESSES": "true",
            # Tells of every request, preflights too.
            "LOGGING__LEVEL": "debug",
            "LOGGING__FORMAT": "json",
        },
    )
    server.settings["SERVER__NAME"] = "localhost"
    server.settings["SERVER__PUBLIC_URL"] = f"http://localhost:{server.port}"
    return server


def watch(browser: Browser, score: Score) -> None:
    """Count the steps as they are done."""
    deadline = time.monotonic() + RUN_S
    seen = 0
    while True:
        report: dict[str, Any] = browser.evaluate("report")
        for step in report["steps"][seen:]:
            score.add(step["name"], step.get("error"))
        seen = len(report["steps"])
        if report["finished"]:
            return
        if time.monotonic() > deadline:
            score.add("the page comes to its end", f"not after {RUN_S} s")
            return
        time.sleep(0.1)


def judge_preflights(requests: list[dict[str, Any]], calls: list[str], score: Score) -> None:
    preflights = [request for request in requests if request["method"] == "OPTIONS"]
    refused = [request for request in preflights if not 200 <= request["status"] < 300]
    name = f"{len(preflights)} preflights for {len(calls)} calls, all answered 2xx"
    score.add(name, f"refused: {refused}" if refused or not preflights else None)

    path = "/_matrix/identity/v2/lookup"
    asked = sum(request["route"] == path for request in preflights)
    called = calls.count(f"POST {path}")
    name = f"a preflight is kept: {asked} for {called} lookups"
    score.add(name, None if asked < called else "each call had its own")


if __name__ == "__main__":
    main()
