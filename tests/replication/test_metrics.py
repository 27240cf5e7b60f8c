"""What Prometheus reads of replication."""

from parts.peer import FakePeer
from parts.processes import free_port
from prometheus_client import CollectorRegistry

from identity.database import Database
from identity.processes.metrics import ReplicationMetrics
from identity.replication.peers import Peers


def read(peers):
    """The samples that a scrape would get, by name and labels."""
    registry = CollectorRegistry()
    registry.register(ReplicationMetrics(peers))
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def test_metrics_say_what_a_peer_lacks_and_what_was_refused_of_it(server, clock):
    peer = FakePeer()
    peer.join(server)
    for number in range(3):
        server.bind_directly(f"user{number}@example.com", "@user:hs.test")
    peer.state("alice@example.com", "@alice:hs.test", clock.now_ms())
    peer.add({**peer.log[1], "mxid": "@eve:hs.test"})
    peer.push(server)
    clock.advance(minutes=11)
    samples = read(server.services.peers)
    assert samples["identity_database_up",] == 1
    assert samples["identity_peer_lag_statements", "peer.test"] == 3
    assert samples["identity_peer_lag_seconds", "peer.test"] == 660
    assert samples["identity_peer_received_id", "peer.test"] == 2
    assert samples["identity_peer_refused_statements", "peer.test", "signature"] == 1
    assert samples["identity_peer_alarms_total", "peer.test", "refused"] == 1
    # It was never pushed to with success, and no time is made up for that.
    assert ("identity_peer_last_success_timestamp_seconds", "peer.test") not in samples
    named = {label for _, *labels in samples for label in labels}
    assert not any("@" in label or "example" in label for label in named)


def test_metrics_while_the_database_is_away_say_so(server, clock):
    nowhere = f"postgresql://nobody@127.0.0.1:{free_port()}/nothing"
    away = Database(nowhere, server.database.keys)
    assert read(Peers(away, "id.test", clock)) == {("identity_database_up",): 0}
    away.close()
