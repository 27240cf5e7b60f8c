"""The page behind a mailed link, in a real browser: what it shows, does, and is kept from doing."""

import socket
import threading
from contextlib import contextmanager

import pytest
from parts.browser import Browser, find_chromium
from werkzeug.serving import WSGIRequestHandler
from werkzeug.serving import make_server as serve

EMAIL = "alice@example.com"


@pytest.fixture
def database_kind():
    return "sqlite"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    executable = find_chromium()
    if executable is None:
        pytest.skip("Chromium is not there")
    with Browser(executable, tmp_path_factory.mktemp("browser")) as browser:
        yield browser


class Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass


@contextmanager
def listening(make_app):
    """Serves `make_app(URL)` on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        app = make_app(f"http://localhost:{port}")
        http = serve(
            "127.0.0.1", port, app, threaded=True, request_handler=Quiet, fd=listener.fileno()
        )
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield app
        finally:
            http.shutdown()
            thread.join()
            http.server_close()


class Website:
    """Where next_link leads: it keeps what it was asked for, and by which page."""

    def __init__(self, url):
        self.url = url
        self.asked = []

    def __call__(self, environ, start_response):
        self.asked.append(
            (environ["PATH_INFO"], environ["QUERY_STRING"], environ.get("HTTP_REFERER"))
        )
        start_response("200 OK", [("Content-Type", "text/html")])
        return [b"<!DOCTYPE html><title>The app</title><h1>Welcome back</h1>"]


@pytest.fixture
def website():
    with listening(Website) as website:
        yield website


@pytest.fixture
def server(make_server):
    made = []

    def make(url):
        made.append(make_server({"SERVER__PUBLIC_URL": url}))
        return made[0].app

    with listening(make):
        yield made[0]


def validated(server):
    return [row["validated_at_ms"] is not None for row in server.rows("validation_sessions")]


@pytest.mark.requirement("MAIL-10")
def test_link_opened_in_a_browser_validates_by_the_button_only(server, browser, alice):
    """security.md, threats 12 and 13: a scanner that runs the page like a browser does nothing."""
    alice.request_token(EMAIL)
    for _ in range(3):
        browser.open(server.mailed()["link"])
        text = browser.evaluate("document.body.innerText")
        assert EMAIL in text
        assert alice.user_id in text
    assert validated(server) == [False]
    browser.press("button")
    browser.wait_for("document.title.startsWith('Confirmed')")
    assert EMAIL in browser.evaluate("document.body.innerText")
    assert validated(server) == [True]
    # Its style sheet is let through by its hash.
    assert browser.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") != "none"


@pytest.mark.requirement("MAIL-09")
def test_button_leads_on_to_next_link_without_telling_where_from(server, browser, alice, website):
    """Chromium holds the redirect after a form to the policy of the page too."""
    alice.request_token(EMAIL, next_link=f"{website.url}/done?a=b%2Fc#room")
    browser.open(server.mailed()["link"])
    browser.press("button")
    browser.wait_for("document.title == 'The app'")
    assert browser.evaluate("location.href") == f"{website.url}/done?a=b%2Fc#room"
    assert browser.evaluate("document.referrer") == ""
    visits = [visit for visit in website.asked if visit[0] == "/done"]
    assert visits == [("/done", "a=b%2Fc", None)]
    assert validated(server) == [True]


@pytest.mark.requirement("MAIL-09")
def test_link_that_expired_says_so_in_a_browser(server, browser, clock, alice):
    alice.request_token(EMAIL)
    browser.open(server.mailed()["link"])
    clock.advance(hours=24, seconds=1)
    browser.press("button")
    browser.wait_for("document.title.includes('expired')")
    assert validated(server) == [False]


@pytest.mark.requirement("MAIL-10")
def test_page_cannot_run_or_send_or_load_anything_else(server, browser, alice, website):
    """security.md, threat 21: should markup ever slip in, the policy keeps it from acting."""
    alice.request_token(EMAIL)
    browser.open(server.mailed()["link"])
    browser.evaluate(
        f"""(() => {{
            window.blocked = [];
            document.addEventListener(
                'securitypolicyviolation', event => blocked.push(event.effectiveDirective)
            );
            const put = html => document.body.insertAdjacentHTML('beforeend', html);
            put('<img src="{website.url}/image">');
            put('<img src="data:," onerror="document.title = `taken over`">');
            put('<style>body {{ display: none }}</style>');
            put('<iframe src="{website.url}/frame"></iframe>');
            const script = document.createElement('script');
            script.textContent = 'document.title = "taken over"';
            document.body.append(script);
            document.forms[0].action = '{website.url}/form';
        }})()"""
    )
    browser.press("button")
    for directive in (
        "img-src",
        "script-src-attr",
        "script-src-elem",
        "style-src-elem",
        "frame-src",
        "form-action",
    ):
        browser.wait_for(f"blocked.includes('{directive}')")
    assert "taken over" not in browser.evaluate("document.title")
    assert browser.evaluate("getComputedStyle(document.body).display") != "none"
    assert website.asked == []
    assert validated(server) == [False]
