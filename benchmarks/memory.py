"""Memory and time of a training step: every memory mode beside what users run instead.

Each case runs in a fresh process; a plot of memory over the step goes beside the numbers. On a CPU
storages are counted. Run on a GPU: python benchmarks/memory.py; a network of your own:
python benchmarks/memory.py --depth 50 --streams rgb=3 infrared=1 --batch-size 64
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from harness.baselines import BASELINES, COMPILED
from harness.cases import MODES, Case, baselines, modes
from harness.groups import Groups, add_group_options, groups_of, run_groups
from harness.results import Row, device_tag, parser_of
from harness.tables import REFERENCE, console, number, step, table_of
from harness.workers import run_cases

VARYING_STEPS = 200
MAIN = ("ResNet-18 B32", "ResNet-18 B128", "ResNet-50 B32")

COLUMNS = {
    "activations, MB": number("activation_peak_bytes", ".1f", 1e-6),
    "ratio": number("memory_ratio", ".3f"),
    "kept, MB": number("kept_bytes", ".1f", 1e-6),
    "reserved, MB": number("peak_reserved_bytes", ".1f", 1e-6),
    "step, ms": step,
    "time": number("time_ratio", ".2f"),
}
VARYING_COLUMNS = {
    "reserved, MB": number("peak_reserved_bytes", ".0f", 1e-6),
    "allocated, MB": number("peak_allocated_bytes", ".0f", 1e-6),
}


def main(words: Sequence[str] | None = None) -> None:
    """Run all groups, save after each, and print a short table last."""
    parser = parser_of(__doc__, f"memory_{device_tag()}.json")
    add_group_options(parser, steps=20)
    options = parser.parse_args(words)
    found = groups_of(parser, options, published, all_of)
    figure = None if options.show else options.out.with_suffix(".png")
    rows = run_groups(found, options, run_cases, partial(show, figure))
    if any(row["group"] in MAIN for row in rows):
        console.print(last_table(rows))


def published(base: Case) -> Groups:
    """Return all cases by group; what compiles comes last, since it takes longest."""
    wide = replace(base, batch_size=16, image_size=(416, 544))
    three = replace(base, streams={"rgb": 3, "depth": 1, "infrared": 1})
    varying = replace(base, varying=True, steps=VARYING_STEPS)
    return {
        "ResNet-18 B32": uncompiled(replace(base, timeline=True)),
        "ResNet-18 B128": uncompiled(replace(base, batch_size=128)),
        "ResNet-50 B32": uncompiled(replace(base, depth=50)),
        "ResNet-18 B32, 0% blanked": modes(replace(base, blanked=0.0)),
        "ResNet-18 B32, 50% blanked": modes(replace(base, blanked=0.5)),
        "ResNet-18 B32, fp32": uncompiled(replace(base, precision="fp32")),
        "ResNet-18 B32, three streams": baselines(three, [REFERENCE]) + modes(three),
        "ResNet-18 B16, 416x544": baselines(wide, [REFERENCE]) + modes(wide),
        "varying rows": modes(varying),
        "varying rows, expandable segments": modes(replace(varying, expandable=True)),
        "ResNet-18 B32, compiled": baselines(base, [REFERENCE, COMPILED]),
    }


def all_of(case: Case) -> list[Case]:
    """Return a case under every baseline and in every memory mode, followed through its step."""
    followed = replace(case, timeline=True)
    return baselines(followed) + modes(followed)


def uncompiled(case: Case) -> list[Case]:
    """Return a case under every baseline that does not compile, and in every memory mode."""
    return baselines(case, [name for name in BASELINES if name != COMPILED]) + modes(case)


def show(figure: Path | None, group: str, rows: list[Row]) -> None:
    """Print a group's table, and draw it where its memory was followed through the step."""
    varying = rows[0].get("varying")
    console.print(table_of(rows, VARYING_COLUMNS if varying else COLUMNS, group))
    if figure is not None and any("timeline_bytes" in row for row in rows):
        plot(figure, rows, f"{group}: memory over a training step")


def plot(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draw the memory of each row over its step as a PNG."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(9, 5), layout="constrained")).subplots()
    for row in rows:
        samples = row.get("timeline_bytes", [])
        shares = [(i + 1) / len(samples) for i in range(len(samples))]
        style = "-" if row["name"] in MODES else "--"
        if samples:
            axes.plot(shares, [s / 1e6 for s in samples], style, label=row["name"])
    axes.set(title=title, xlabel="share of the step's operations", ylabel="allocated, MB")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def last_table(rows: list[Row]) -> Table:
    """Set memory and time against the reference, one column per main configuration."""
    table = Table("memory, time against " + REFERENCE, *MAIN)
    for name in dict.fromkeys(row["name"] for row in rows if row["group"] in MAIN):
        table.add_row(name, *(_ratios(_find(rows, group, name)) for group in MAIN))
    for name, ratios in _blanked_ratios(rows):
        table.add_row(f"{name}: memory at 20%, 50% blanked / none", ratios)
    return table


def _ratios(row: Row) -> str:
    return f"{row['memory_ratio']:.3f}, {row['time_ratio']:.2f}" if "memory_ratio" in row else "-"


def _blanked_ratios(rows: list[Row]) -> Iterator[tuple[str, str]]:
    groups = [f"{MAIN[0]}, 0% blanked", MAIN[0], f"{MAIN[0]}, 50% blanked"]
    for name in MODES:
        found: list[Any] = [_find(rows, g, name).get("activation_peak_bytes") for g in groups]
        if None not in found:
            yield name, f"{found[1] / found[0]:.3f}, {found[2] / found[0]:.3f}"


def _find(rows: list[Row], group: str, name: str) -> Row:
    return next((r for r in rows if r["group"] == group and r["name"] == name), {})


if __name__ == "__main__":
    main()
