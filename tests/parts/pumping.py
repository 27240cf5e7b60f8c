"""A fraudster who has messages sent to numbers of one block, and people who want to be found.

The fraudster has many accounts, half of them of a homeserver that is known here, with an address of
their own each. Nobody reads those messages. The people have one account and one number each, some
in the same country, and submit the code that they get.
"""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

ACCOUNTS = 500
PEOPLE = 100
# With ten messages of the fraudster they are what a country's share for known homeservers holds.
IN_SAME_COUNTRY = 40
# 10,000 numbers of the United Kingdom.
BLOCK = "44740012"
PRICE = 0.05
CAP = 120
SETTINGS = {
    "SERVER__TRUSTED_PROXIES": "1",  # whose report is the address of a client
    "SMS__PRICE": str(PRICE),
    "SMS__SPEND_PER_DAY": str(PRICE * CAP),
    "FEDERATION__ALLOWED_HOMESERVERS": '["known.evil.test", "a.test", "b.test", "c.test", "d.test"]',
}
_THREADS = 16


@dataclass(frozen=True)
class Person:
    user_id: str
    number: str
    ip: str


def fraudsters() -> list[Person]:
    return [
        Person(
            f"@f{index}:{('known', 'fresh')[index % 2]}.evil.test",
            f"{BLOCK}{index:04}",
            f"192.0.{index // 250}.{index % 250}",
        )
        for index in range(ACCOUNTS)
    ]


def people() -> list[Person]:
    """Of four homeservers that are known; each number is of a block of its own."""
    return [
        Person(f"@p{index}:{'abcd'[index % 4]}.test", _number(index), f"198.51.100.{index}")
        for index in range(PEOPLE)
    ]


def _number(index: int) -> str:
    if index < IN_SAME_COUNTRY:
        return f"447500{index:02}1234"
    return (f"49151{index:04}5678", f"3361{index:03}5678", f"1202{200 + index}0123")[index % 3]


@dataclass(frozen=True)
class Server:
    """`post(person, path, body)`: status and JSON, by that person's account and from their address.
    `code_for(number)`: the newest one sent to it. `sent()`: the numbers of all messages."""

    post: Callable[[Person, str, dict[str, Any]], tuple[int, dict[str, Any]]]
    code_for: Callable[[str], str]
    sent: Callable[[], list[str]]


@dataclass(frozen=True)
class Outcome:
    """`answers`: status to how often the fraudster got it; `failures`: what people got instead."""

    to_block: int
    messages: int
    proved: int
    answers: Counter[int]
    failures: list[Any]

    def __str__(self) -> str:
        return (
            f"{sum(self.answers.values())} requests, {ACCOUNTS} accounts: {self.to_block} messages "
            f"to the block, {self.proved} of {PEOPLE} people {self.failures or ''}, "
            f"spent {self.messages * PRICE:.2f}"
        )

    @property
    def passed(self) -> bool:
        """E22."""
        return self.to_block <= 50 and self.proved == PEOPLE and self.messages <= CAP


def pump(server: Server, requests: int) -> Outcome:
    """So many requests of the fraudster; the people come evenly among them."""
    frauds, crowd = fraudsters(), people()
    every = requests // PEOPLE

    def request(index: int) -> int:
        person = frauds[index % ACCOUNTS]
        number = f"{BLOCK}{index % 10_000:04}"
        return _request_code(server, person, number, f"secret{index}")[0]

    with ThreadPoolExecutor(_THREADS) as threads:
        answers, proofs = [], []
        for index in range(requests):
            answers.append(threads.submit(request, index))
            if index % every == 0 and len(proofs) < PEOPLE:
                proofs.append(threads.submit(_prove, server, crowd[len(proofs)]))
    numbers = server.sent()
    return Outcome(
        to_block=sum(number.startswith(BLOCK) for number in numbers),
        messages=len(numbers),
        proved=sum(proof.result() is None for proof in proofs),
        answers=Counter(answer.result() for answer in answers),
        failures=[proof.result() for proof in proofs if proof.result() is not None],
    )


def _request_code(
    server: Server, person: Person, number: str, client_secret: str
) -> tuple[int, dict[str, Any]]:
    body = {"country": "", "client_secret": client_secret, "send_attempt": 1}
    return server.post(
        person, "/validate/msisdn/requestToken", {**body, "phone_number": f"+{number}"}
    )


def _prove(server: Server, person: Person) -> Any:
    """None, or the answer that kept them from it."""
    status, answer = _request_code(server, person, person.number, "secret")
    if status != 200:
        return status, answer
    body = {"sid": answer["sid"], "client_secret": "secret"}
    body["token"] = server.code_for(person.number)
    submitted = server.post(person, "/validate/msisdn/submitToken", body)
    return None if submitted == (200, {"success": True}) else submitted
