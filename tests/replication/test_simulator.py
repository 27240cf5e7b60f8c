"""Any schedule of faults ends with all servers holding the same (E11).

The rest of the 10,000 seeds is run by `make experiments E=e11`.
"""

from dataclasses import fields, replace

import pytest
from parts.simulator import Rules, how_to_repeat, simulate

SEEDS = 500
CHUNK = 50


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_schedule_of_any_seed_ends_in_one_state(first):
    problems = {
        seed: problem
        for seed in range(first, first + CHUNK)
        if (problem := simulate(seed)) is not None
    }
    assert not problems, "\n".join(how_to_repeat(*one) for one in problems.items())


@pytest.mark.parametrize("rule", [field.name for field in fields(Rules)])
def test_broken_rule_is_noticed_by_some_seed(rule):
    """The control: a simulator that notices nothing proves nothing."""
    broken = replace(Rules(), **{rule: False})
    assert any(simulate(seed, broken) is not None for seed in range(SEEDS))


def test_seed_run_twice_has_the_same_schedule():
    traces: list[list[str]] = [[], []]
    for trace in traces:
        simulate(12, trace=trace.append)
    assert traces[0] == traces[1]
    assert len(traces[0]) > 200
