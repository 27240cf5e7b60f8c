"""The origin of the page: a web client's site, and as much of a homeserver as that client calls.

It holds one kind of state: which keys may sign for an invitation. Who joins by one shows the
signature of such a key, and it is checked here as homeservers do.
"""

import email
import email.policy
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flask import Flask, Response, request
from parts.homeserver import FakeHomeserver
from signedjson.key import decode_verify_key_bytes
from signedjson.sign import SignatureVerifyException, verify_signed_json
from unpaddedbase64 import decode_base64
from werkzeug.serving import WSGIRequestHandler, make_server

CLIENT = "/_matrix/client/v3"
PAGE = """<!DOCTYPE html>
<meta charset="utf-8">
<title>A web client</title>
<script>
const report = { steps: [], calls: [], finished: false };
addEventListener("error", (event) => {
  report.steps.push({ name: "the page loads", error: event.message });
  report.finished = true;
});
</script>
<script type="module" src="client.js"></script>
"""


def website(
    bundle: Path, identity_url: str, server_name: str, homeserver: FakeHomeserver, outbox: Path
) -> Flask:
    """`server_name`: the identity server's. `homeserver` is the same one, as servers call it."""
    app = Flask(__name__, static_folder=None)
    name = f"localhost:{homeserver.port}"
    invite_keys: dict[str, list[str]] = {}  # by token

    @app.get("/")
    def page() -> Response:
        return Response(PAGE, mimetype="text/html")

    @app.get("/client.js")
    def client() -> Response:
        return Response(bundle.read_bytes(), mimetype="text/javascript")

    @app.get("/settings.json")
    def settings() -> dict[str, Any]:
        return {"identityUrl": identity_url, "homeserver": name}

    @app.get("/mails/<address>")
    def mails(address: str) -> list[str]:
        return mails_to(address, outbox)

    @app.get("/_matrix/client/versions")
    def versions() -> dict[str, Any]:
        return {"versions": ["v1.1", "v1.12"]}

    @app.post(f"{CLIENT}/user/<user_id>/openid/request_token")
    def openid(user_id: str) -> dict[str, Any]:
        token = secrets.token_urlsafe()
        homeserver.openid_users[token] = user_id
        return {
            "access_token": token,
            "token_type": "Bearer",
            "matrix_server_name": name,
            "expires_in": 3600,
        }

    @app.put(f"{CLIENT}/rooms/<room>/state/m.room.third_party_invite/<token>")
    def invite(room: str, token: str) -> dict[str, Any]:
        invite_keys[token] = [item["public_key"] for item in request.json["public_keys"]]
        return {"event_id": "$event"}

    @app.post(f"{CLIENT}/join/<room>")
    def join(room: str) -> Any:
        user_id = f"@{request.headers['Authorization'].removeprefix('Bearer ')}:{name}"
        signed = request.json["third_party_signed"]
        keys = invite_keys.get(signed["token"], [])
        if signed["mxid"] == user_id and any(
            is_signed_by(key, signed, server_name) for key in keys
        ):
            return {"room_id": room}
        return {"errcode": "M_FORBIDDEN", "error": "This opens no invitation"}, 403

    return app


def is_signed_by(public_key_b64: str, signed: dict[str, Any], server_name: str) -> bool:
    for key_id in signed["signatures"][server_name]:
        key = decode_verify_key_bytes(key_id, decode_base64(public_key_b64))
        try:
            verify_signed_json(signed, server_name, key)
        except SignatureVerifyException:
            continue
        return True
    return False


def mails_to(address: str, outbox: Path) -> list[str]:
    """Their text, oldest first."""
    messages = [
        email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
        for path in sorted(outbox.glob("*.eml"))
    ]
    return [
        message.get_body(("plain",)).get_content()
        for message in messages
        if message["To"] == address
    ]


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


@contextmanager
def listening(app: Flask) -> Iterator[str]:
    """On a loopback port of its own; yields the origin."""
    http = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
