"""`identity serve` with `[metrics] listen`."""

import urllib.error
import urllib.request

import pytest
from parts.processes import free_port, wait_until
from prometheus_client.parser import text_string_to_metric_families


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_server_is_scraped_where_metrics_listen(make_running):
    port = free_port()
    server = make_running({"METRICS__LISTEN": f"127.0.0.1:{port}"})
    server.start()

    def scrape():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return answer.read().decode()
        except urllib.error.URLError:
            return ""

    wait_until(scrape)
    (up,) = [
        family
        for family in text_string_to_metric_families(scrape())
        if family.name == "identity_database_up"
    ]
    assert [sample.value for sample in up.samples] == [1.0]
