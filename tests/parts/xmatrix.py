"""Requests as homeservers sign them, made independently of the code that checks them.

    headers = as_synapse(homeserver, "/_matrix/identity/v2/3pid/unbind", body, "id.test")

Each is a list of values for `Authorization`, one for each of the homeserver's signing keys.
"""

from typing import Any

from parts.homeserver import FakeHomeserver
from signedjson.sign import sign_json


def signatures(
    homeserver: FakeHomeserver, uri: str, content: Any, method: str = "POST", **destination: str
) -> dict[str, str]:
    """By key id; `destination` is the fifth key of what is signed, under either of its names."""
    request = {
        "method": method,
        "uri": uri,
        "origin": homeserver.server_name,
        "content": content,
        **destination,
    }
    for key in homeserver.signing_keys:
        request = sign_json(request, homeserver.server_name, key)
    return request["signatures"][homeserver.server_name]


def as_synapse(
    homeserver: FakeHomeserver, uri: str, content: Any, destination: str, method: str = "POST"
) -> list[str]:
    """`destination` is the `id_server` of the client, character by character."""
    signed = signatures(homeserver, uri, content, method, destination_is=destination)
    return [
        f'X-Matrix origin="{homeserver.server_name}",key="{key_id}",sig="{signature}",'
        f'destination="{destination}"'
        for key_id, signature in signed.items()
    ]


def as_specified(
    homeserver: FakeHomeserver, uri: str, content: Any, destination: str, method: str = "POST"
) -> list[str]:
    signed = signatures(homeserver, uri, content, method, destination=destination)
    return [
        f'X-Matrix origin="{homeserver.server_name}",destination="{destination}",'
        f'key="{key_id}",sig="{signature}"'
        for key_id, signature in signed.items()
    ]
