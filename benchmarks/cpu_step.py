"""Training steps on a CPU: the memory modes against masked execution, by the share blanked.

Time is the process's own, so that other programs on the machine do not count.
Run: python benchmarks/cpu_step.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from rich.table import Table

from harness.cases import Case, blanked_in_turn
from harness.results import Row, load, parser_of, save
from harness.tables import REFERENCE, console, with_ratios
from harness.timing import in_turns, step_times
from harness.workload import Workload

SHARES = (0.0, 0.25, 0.5, 0.75)
WAYS = (REFERENCE, "fast", "balanced", "lean")
CASE = Case(width=0.5, batch_size=8, image_size=(96, 96), precision="fp32", device="cpu")


def main(words: Sequence[str] | None = None) -> None:
    """Measure every share and print ratios."""
    parser = parser_of(__doc__, "cpu_step.json")
    parser.add_argument("--rounds", type=int, default=8, help="steps of each way (8)")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    if options.show is not None:
        rows = load(options.show)
    else:
        rows = [row for s in SHARES for row in measure(replace(CASE, blanked=s), options.rounds)]
        save(options.out, rows, options.commit)
    console.print(table(rows))


def measure(case: Case, rounds: int) -> list[Row]:
    """Take turns among the ways, so that a slow moment falls on all."""
    times = in_turns({name: _timed_step(replace(case, name=name)) for name in WAYS}, rounds + 1)
    return with_ratios(
        [
            {"name": name, "blanked": case.blanked, **step_times(taken[1:])}
            for name, taken in times.items()  # the first round warms up
        ]
    )


def _timed_step(case: Case) -> Callable[[], float]:
    work = Workload(case)
    loss, _ = work.loss(blanked_in_turn(case.batch_size, len(case.streams), case.blanked))

    def step_ms() -> float:
        start = time.process_time()
        work.step(loss)
        return (time.process_time() - start) * 1000

    return step_ms


def table(rows: Sequence[Row]) -> Table:
    """Set the ratios of each share in a line."""
    modes = WAYS[1:]
    found = Table("blanked", *modes, caption=f"time against {REFERENCE}")
    for share in dict.fromkeys(row["blanked"] for row in rows):
        ratios = {r["name"]: r["time_ratio"] for r in rows if r["blanked"] == share}
        found.add_row(f"{share:.0%}", *(f"{ratios[mode]:.2f}" for mode in modes))
    return found


if __name__ == "__main__":
    main()
