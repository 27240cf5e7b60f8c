"""E10: one statement of a batch of 100 is bad for the receiver.

Pass: the 99 others are held after two rounds at most, the bad one is in quarantine, and the alarm
counter is 1. The sender counts it as delivered, and goes on.
"""

from cluster import NO_HOMESERVER, cluster
from parts.processes import wait_until

from identity.replication.peer import Scope

COUNT = 100
BAD = 50


def main() -> None:
    with cluster(2) as (sender, receiver):
        receiver.meet(sender.as_peer(scope=Scope.parse(domains=["example.org"])))
        # Nothing is sent before all are made, so that they are one batch.
        sender.running.inside.services.peers.remove(receiver.name)
        for number in range(COUNT):
            domain = "elsewhere.org" if number == BAD else "example.org"
            sender.bind(f"user{number}@{domain}", f"@a:{NO_HOMESERVER}")
        sender.meet(receiver.as_peer())
        wait_until(lambda: len(receiver.log()) == COUNT - 1)
        sender.bind("after@example.org", f"@a:{NO_HOMESERVER}")
        wait_until(lambda: len(receiver.log()) == COUNT)
        (cursor,) = sender.running.inside.rows("cursors")
        quarantined = receiver.running.inside.rows("quarantine")
        alarms = receiver.alarms()
    print(
        f"{COUNT - 1} of {COUNT} held, {len(quarantined)} quarantined ({quarantined[0]['reason']}), "
        f"alarms {alarms}; what was stated later was held too; {cursor['failures']} failures"
    )
    assert [(row["origin_id"], row["reason"]) for row in quarantined] == [(BAD + 1, "scope")]
    assert alarms == {(sender.name, "refused"): 1}
    # No round failed, so none was repeated.
    assert cursor["failures"] == 0
    assert cursor["last_error_at_ms"] is None


if __name__ == "__main__":
    main()
