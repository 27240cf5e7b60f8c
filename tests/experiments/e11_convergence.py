"""E11: any schedule of faults ends with all servers holding the same.

10,000 seeds over the real code that decides about statements, batches and cursors; each rule of it
that is broken on purpose must be noticed within 500. `--seed N` runs one and says what happens.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1]))

from parts.simulator import Rules, how_to_repeat, simulate

SEEDS = 10_000
QUICK_SEEDS = 200
SEEDS_FOR_A_BROKEN_RULE = 500


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()
    if arguments.seed is not None:
        print(simulate(arguments.seed, trace=print) or "all hold the same")
        return
    seeds = range(QUICK_SEEDS if arguments.quick else SEEDS)
    rules = [field.name for field in fields(Rules)]
    with ProcessPoolExecutor() as processes:
        caught = dict(zip(rules, processes.map(first_seed_that_notices, rules), strict=True))
        problems = list(processes.map(simulate, seeds, chunksize=50))
    failed = {seed: problem for seed, problem in zip(seeds, problems, strict=True) if problem}
    for seed, problem in failed.items():
        print(how_to_repeat(seed, problem))
    noticed = ", ".join(f"{rule} by seed {seed}" for rule, seed in caught.items())
    print(f"{len(seeds)} seeds, {len(failed)} did not converge; broken rules noticed: {noticed}")
    assert not failed
    assert None not in caught.values()


def first_seed_that_notices(rule: str) -> int | None:
    broken = replace(Rules(), **{rule: False})
    seeds = range(SEEDS_FOR_A_BROKEN_RULE)
    return next((seed for seed in seeds if simulate(seed, broken) is not None), None)


if __name__ == "__main__":
    main()
