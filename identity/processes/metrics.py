"""Metrics for Prometheus: how the database and the peers are.

All of it lies in the database, so that one process of a host answers for all. Labels are names of
servers and fixed words, never of people.
"""

from collections.abc import Iterator
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from identity.clock import SECOND_MS
from identity.config.values import Listen
from identity.errors import SetupError, StorageUnavailable
from identity.replication.peers import Peers, Report

log = structlog.get_logger(__name__)

_PEER: Final = ["peer"]


class ReplicationMetrics(Collector):
    """Asked each time that somebody scrapes."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def collect(self) -> Iterator[Metric]:
        reports = self._find_reports()
        is_up = float(reports is not None)
        yield GaugeMetricFamily("identity_database_up", "Whether the database answers.", is_up)
        if reports is not None:
            yield from _gauges(reports)
            yield from _counts(reports)

    def _find_reports(self) -> list[Report] | None:
        try:
            return self._peers.report()
        except StorageUnavailable:
            return None


def serve_metrics(listen: Listen, peers: Peers) -> None:
    """Answer `GET /metrics`, in threads that end with the process. Raises: SetupError."""
    registry = CollectorRegistry()
    registry.register(ReplicationMetrics(peers))
    try:
        server, _ = start_http_server(listen.port, listen.host, registry)
    except OSError as error:
        raise SetupError(f"[metrics] listen: {listen}: {error.strerror}") from None
    log.info("listening", section="metrics", address=str(Listen(listen.host, server.server_port)))


def _gauges(reports: list[Report]) -> Iterator[Metric]:
    lag = GaugeMetricFamily(
        "identity_peer_lag_statements", "Our statements that the peer lacks.", labels=_PEER
    )
    lag_seconds = GaugeMetricFamily(
        "identity_peer_lag_seconds", "How long ago the first of them was made.", labels=_PEER
    )
    failures = GaugeMetricFamily(
        "identity_peer_failures", "Failed pushes since the last good one.", labels=_PEER
    )
    success = GaugeMetricFamily(
        "identity_peer_last_success_timestamp_seconds", "When a push succeeded.", labels=_PEER
    )
    received = GaugeMetricFamily(
        "identity_peer_received_id", "The last id that is held of the peer.", labels=_PEER
    )
    for report in reports:
        peer = [report.name]
        lag.add_metric(peer, report.lag)
        lag_seconds.add_metric(peer, report.lag_ms / SECOND_MS)
        failures.add_metric(peer, report.sending.failures)
        received.add_metric(peer, report.received_id)
        if report.sending.last_success_at_ms is not None:
            success.add_metric(peer, report.sending.last_success_at_ms / SECOND_MS)
    yield from (lag, lag_seconds, failures, success, received)


def _counts(reports: list[Report]) -> Iterator[Metric]:
    refused = GaugeMetricFamily(
        "identity_peer_refused_statements",
        "Statements of the peer that are in quarantine.",
        labels=["peer", "reason"],
    )
    alarms = CounterMetricFamily(
        "identity_peer_alarms", "Alarms about the peer.", labels=["peer", "kind"]
    )
    for report in reports:
        for reason, count in report.refused.items():
            refused.add_metric([report.name, reason], count)
        for kind, (count, _) in report.alarms.items():
            alarms.add_metric([report.name, kind], count)
    yield from (refused, alarms)
