"""Memory and time of a training step: every memory mode beside what users run instead.

Each case runs in a fresh process. Run on a GPU: python benchmarks/memory.py --out FILE.json; a plot
of memory over the step goes beside it. With --small, tiny cases for a machine without one.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cases import BASELINES, HERE, THREE, TWO, case_of, wider
from manystream.memory.bench import (
    REFERENCE,
    Row,
    modes_and_baselines,
    plot,
    run_cases,
    save,
    table_of,
    with_ratios,
)
from manystream.memory.case import Case

VARYING_STEPS = 200
SHOWN_LAST = ("ResNet-18 B32", "ResNet-18 B128", "ResNet-50 B32")

Groups = dict[str, list[Case]]


def main() -> None:
    """Run all groups, save after each, and print a short table last."""
    options = _options()
    console, rows, started = Console(width=120), list[Row](), time.monotonic()
    changes = {"commit": options.commit} if options.commit else {}
    for group, cases in groups(options.small).items():
        if not re.search(options.only, group):
            continue
        left = options.seconds - (time.monotonic() - started)
        measured = [{"group": group, **row} for row in run_cases(cases, left)]
        measured = with_ratios(measured)
        rows += measured
        save(options.out, rows, **changes)
        console.print(_table(group, measured))
        if any("timeline_bytes" in row for row in measured):
            plot(options.out.with_suffix(".png"), measured, f"{group}: memory over a step")
    console.print(_last_table(rows))
    print(f"{time.monotonic() - started:.0f} s; {options.out}")


def groups(small: bool) -> Groups:
    """All cases by group; what compiles comes last, since it takes longest."""
    two = case_of(18, TWO, small)
    found: Groups = {
        "ResNet-18 B32": _all(replace(two, timeline=True)),
        "ResNet-18 B128": _all(replace(two, batch_size=4 * two.batch_size)),
        "ResNet-50 B32": _all(case_of(50, TWO, small)),
    }
    for share in (0.0, 0.5):
        found[f"ResNet-18 B32, {share:.0%} blanked"] = _modes(replace(two, blanked=share))
    found["ResNet-18 B32, fp32"] = _all(replace(two, precision="fp32"))
    found["ResNet-18 B32, three streams"] = _modes_and_reference(case_of(18, THREE, small))
    found["ResNet-18 B16, 416x544"] = _modes_and_reference(wider(two))
    varying = replace(two, varying=True, steps=4 if small else VARYING_STEPS)
    found["varying rows"] = _modes(varying)
    found["varying rows, expandable segments"] = _modes(replace(varying, expandable=True))
    if not small:
        compiled = [c for c in modes_and_baselines(two, BASELINES) if "compile" in c.name]
        found["ResNet-18 B32, compiled"] = _modes_and_reference(two)[:1] + compiled
    return found


def _all(case: Case) -> list[Case]:
    return [c for c in modes_and_baselines(case, BASELINES) if "compile" not in c.name]


def _modes(case: Case) -> list[Case]:
    return modes_and_baselines(case, None)


def _modes_and_reference(case: Case) -> list[Case]:
    return [c for c in _all(case) if c.baselines is None or c.name == REFERENCE]


def _table(group: str, rows: list[Row]) -> Table:
    return _varying_table(group, rows) if rows[0]["varying"] else table_of(rows, group)


def _varying_table(group: str, rows: list[Row]) -> Table:
    table = Table("", "reserved, MB", "allocated, MB", "ratio", title=group)
    for row in rows:
        table.add_row(row["name"], *_reserved_cells(row))
    return table


def _reserved_cells(row: Row) -> list[str]:
    if "peak_allocated_bytes" not in row:
        return [str(row.get("error", "-"))[:40]]
    reserved, allocated = row["peak_reserved_bytes"], row["peak_allocated_bytes"]
    return [f"{reserved / 1e6:.0f}", f"{allocated / 1e6:.0f}", f"{reserved / allocated:.3f}"]


def _last_table(rows: list[Row]) -> Table:
    """Memory and time against the reference, one column per main configuration."""
    table = Table("memory, time against " + REFERENCE, *SHOWN_LAST)
    names = dict.fromkeys(row["name"] for row in rows if row["group"] in SHOWN_LAST)
    for name in names:
        table.add_row(name, *(_ratios(rows, group, name) for group in SHOWN_LAST))
    for name, ratios in _blanked_ratios(rows):
        table.add_row(f"{name}: memory at 20%, 50% blanked / none", ratios)
    return table


def _ratios(rows: list[Row], group: str, name: str) -> str:
    row = _find(rows, group, name)
    return f"{row['memory_ratio']:.3f}, {row['time_ratio']:.2f}" if "memory_ratio" in row else "-"


def _blanked_ratios(rows: list[Row]) -> Iterator[tuple[str, str]]:
    main = "ResNet-18 B32"
    for name in ("fast", "balanced", "lean", "min"):
        found = [
            _find(rows, g, name) for g in (f"{main}, 0% blanked", main, f"{main}, 50% blanked")
        ]
        peaks = [row["activation_peak_bytes"] for row in found if "activation_peak_bytes" in row]
        if len(peaks) == len(found):
            none, fifth, half = peaks
            yield name, f"{fifth / none:.3f}, {half / none:.3f}"


def _find(rows: list[Row], group: str, name: str) -> dict[str, Any]:
    return next((r for r in rows if r["group"] == group and r["name"] == name), {})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "memory_h200.json")
    parser.add_argument("--seconds", type=float, default=340.0, help="stop measuring after these")
    parser.add_argument("--only", default="", help="groups whose name matches this pattern")
    parser.add_argument("--commit", help="where the machine has no git: what is measured")
    parser.add_argument("--small", action="store_true", help="tiny cases on the CPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
