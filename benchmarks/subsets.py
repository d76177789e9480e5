"""What a step costs that trains every subset of the streams at once, where all are present.

Each way runs in a fresh process: the step that sees every sample once, the one that sees it with
all subsets, with one norm for all of them and with a norm for each, and the same by a batch that
holds each subset as a sample of its own. Run on a GPU: python benchmarks/subsets.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from harness.cases import Case
from harness.groups import Groups, add_group_options, groups_of, run_groups
from harness.results import Row, device_tag, parser_of
from harness.tables import console, number, step, table_of
from harness.workers import run_cases

PUBLISHED_MODES = ("fast", "lean")

COLUMNS = {
    "seen": lambda row: row["seen"] + (", a norm each" if row["subset_norms"] else ""),
    "step, ms": step,
    "time": number("time_to_full", ".2f"),
    "reserved, MB": number("peak_reserved_bytes", ".0f", 1e-6),
    "memory": number("reserved_to_full", ".2f"),
    "kept": number("kept_to_full", ".2f"),
}


def main(words: Sequence[str] | None = None) -> None:
    """Measure all groups, and save after each."""
    parser = parser_of(__doc__, f"subsets_{device_tag()}.json")
    add_group_options(parser, steps=20)
    options = parser.parse_args(words)
    run_groups(groups_of(parser, options, published, all_of), options, measure, show)


def published(base: Case) -> Groups:
    """Return the ways by the network and batch size that they share."""
    three = replace(base, streams={"rgb": 3, "depth": 1, "infrared": 1})
    return {
        "ResNet-18 B128": all_of(replace(base, batch_size=128)),
        "ResNet-50 B32": all_of(replace(base, depth=50)),
        "ResNet-18 B32, three streams": all_of(three),
    }


def all_of(case: Case) -> list[Case]:
    """Return every way to see a case's samples, in graphs on a GPU."""
    base = replace(case, blanked=0.0, graphs=case.device == "cuda")
    seen = [base, replace(base, seen="subsets"), replace(base, seen="subsets", subset_norms=True)]
    of_modes = [replace(each, name=mode) for mode in PUBLISHED_MODES for each in seen]
    return [*of_modes, replace(base, seen="repeated")]


def measure(cases: Sequence[Case], seconds: float = float("inf")) -> Iterator[Row]:
    """Measure each case, and set it beside the step of its mode that sees every sample once."""
    full: dict[str, Row] = {}
    for row in run_cases(cases, seconds):
        if row["seen"] == "full":
            full[row["name"]] = row
        yield row | _to_full(row, full[row["name"]])


def _to_full(row: Row, full: Row) -> dict[str, Any]:
    ratios = {
        "time_to_full": "step_ms",
        "reserved_to_full": "peak_reserved_bytes",
        "kept_to_full": "kept_bytes",
    }
    return {n: row[key] / full[key] for n, key in ratios.items() if key in row and full.get(key)}


def show(group: str, rows: list[Row]) -> None:
    """Print a group's table."""
    console.print(table_of(rows, COLUMNS, group))


if __name__ == "__main__":
    main()
