"""The public keys that homeservers publish, as far as they count for requests made now.

Rules:
- an answer counts only for the server that was asked: it names it, and is signed by one of the
  keys in it;
- only `verify_keys` count, never `old_verify_keys`, and only until the answer's `valid_until_ts`,
  but no longer than seven days: an owner can always take a stolen key back;
- a server is asked at most once a minute, whatever comes of it. A failure does not make the keys
  forget that are still valid.

Source: Matrix server-server API, "Publishing Keys", GET /_matrix/key/v2/server.
"""

from dataclasses import dataclass
from typing import Any, Final

from identity import strict_json
from identity.clock import DAY_MS, MINUTE_MS, Clock
from identity.errors import HomeserverUnreachable, InvalidParameter, InvalidRequest
from identity.federation.homeserver import HomeserverClient
from identity.lru import LruCache
from identity.mxid import ServerName
from identity.signing import ALGORITHM, is_signed_by, parse_public_key

MAX_LIFETIME_MS: Final = 7 * DAY_MS
ASK_EVERY_MS: Final = MINUTE_MS
MAX_SERVERS: Final = 10_000

# Homeservers have one key or two. The bounds keep a full cache below 100 MB.
MAX_KEYS: Final = 16
MAX_KEY_ID_CHARACTERS: Final = 64

# By key id, 32 bytes each.
Keys = dict[str, bytes]


@dataclass(frozen=True, slots=True)
class _Known:
    """`failed`: the last question, that of `asked_at_ms`, had no usable answer."""

    keys: Keys
    expires_at_ms: int
    asked_at_ms: int
    failed: bool

    def valid_keys(self, now_ms: int) -> Keys:
        # A clock that was set back must not keep keys alive beyond their lifetime.
        return self.keys if self.asked_at_ms <= now_ms < self.expires_at_ms else {}


_NOTHING: Final = _Known({}, 0, 0, failed=False)


class HomeserverKeys:
    """Asks homeservers for their keys, and remembers the answers for this process. Thread-safe."""

    def __init__(self, homeservers: HomeserverClient, clock: Clock) -> None:
        self._homeservers = homeservers
        self._clock = clock
        self._known: LruCache[str, _Known] = LruCache(MAX_SERVERS)

    def get(self, server: ServerName) -> Keys:
        """The keys of `server` that are valid now; none where it published them for a past time.

        Raises: HomeserverUnreachable, HomeserversBusy.
        """
        known = self._known.find(str(server)) or _NOTHING
        return known.valid_keys(self._clock.now_ms()) or self.refresh(server)

    def refresh(self, server: ServerName) -> Keys:
        """As `get`, for one who needs a key that is not there: asks anew, once a minute.

        Raises: HomeserverUnreachable when the last question failed; HomeserversBusy.
        """
        name, now_ms = str(server), self._clock.now_ms()
        known = self._known.find(name) or _NOTHING
        if not 0 <= now_ms - known.asked_at_ms < ASK_EVERY_MS:
            known = self._ask(server, now_ms)
            self._known.put(name, known)
        if known.failed:
            raise HomeserverUnreachable
        return known.valid_keys(now_ms)

    def _ask(self, server: ServerName, now_ms: int) -> _Known:
        """Raises: HomeserversBusy, when nothing was asked."""
        try:
            body = self._homeservers.get_server_keys(server)
            keys, valid_until_ms = parse(body, str(server))
        except (HomeserverUnreachable, InvalidRequest):
            # Found anew: another thread may have had an answer in the meantime.
            known = self._known.find(str(server)) or _NOTHING
            return _Known(known.keys, known.expires_at_ms, now_ms, failed=True)
        return _Known(keys, min(valid_until_ms, now_ms + MAX_LIFETIME_MS), now_ms, failed=False)


def parse(body: bytes, server_name: str) -> tuple[Keys, int]:
    """The current Ed25519 keys in an answer of `server_name`, and its `valid_until_ts`.

    Raises: NotJson; InvalidParameter unless the answer is about that server, signed by one of
    those keys, and of sensible size.
    """
    answer = strict_json.decode(body)
    if not isinstance(answer, dict) or answer.get("server_name") != server_name:
        raise InvalidParameter("The keys are another server's")
    published, valid_until_ms = answer.get("verify_keys"), answer.get("valid_until_ts")
    if not isinstance(published, dict) or type(valid_until_ms) is not int:
        raise InvalidParameter("The keys are malformed")
    if len(published) > MAX_KEYS:
        raise InvalidParameter("There are too many keys")
    keys = {
        key_id: key
        for key_id, value in published.items()
        if key_id.startswith(f"{ALGORITHM}:") and len(key_id) <= MAX_KEY_ID_CHARACTERS
        if (key := _find_public_key(value)) is not None
    }
    if not is_signed_by(answer, server_name, keys):
        raise InvalidParameter("The keys are not signed by their server")
    return keys, valid_until_ms


def _find_public_key(value: Any) -> bytes | None:
    text = value.get("key") if isinstance(value, dict) else None
    return parse_public_key(text) if isinstance(text, str) else None
