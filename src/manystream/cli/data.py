"""`manystream data`: look at a data set before training on it."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from manystream.cli.data_options import CheckDataOptions, ShowDataOptions
from manystream.cli.output import console, fresh_path, say
from manystream.cli.progress import progress_bar
from manystream.data.checks import Findings, check
from manystream.data.contact_sheet import contact_sheet
from manystream.data.opening import open_data
from manystream.data.problems import first_lines
from manystream.evaluation.strict_json import strict_json

HURTS = 1
"""Exit status where training would be hurt by what was found."""

_SHOWN = 5
_DPI = 100


def show_data(options: ShowDataOptions) -> None:
    """Draw and write the contact sheet."""
    out = fresh_path(options.out)
    split = options.split or options.data.train_split
    table = open_data(options.data, [split], report=say)
    title = f"{split}: {table.summary()}"
    sheet = contact_sheet(table, per_class=options.per_class, seed=options.seed, title=title)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.savefig(out, format="png", dpi=_DPI)
    say(f"{title}\ncontact sheet: {out}")


def check_data(options: CheckDataOptions) -> int:
    """Read everything, print and write what was found."""
    out = None if options.out is None else fresh_path(options.out)
    splits = options.splits or [options.data.train_split, options.data.val_split]
    table = open_data(options.data, splits, report=say)
    with progress_bar("looking at images") as progress:
        found = check(table, splits, smallest_class=options.smallest_class, progress=progress)
    _print_splits(found)
    _print_findings(found)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(strict_json(found.to_dict()) + "\n", encoding="utf-8")
        say(f"everything that was found: {out}")
    return HURTS if found.harmful else 0


def _print_splits(found: Findings) -> None:
    names = list(dict.fromkeys(name for split in found.splits.values() for name in split["absent"]))
    table = Table("split")
    for column in ("samples", "images", *(f"without {name}" for name in names)):
        table.add_column(column, justify="right")
    for name, split in found.splits.items():
        absent = (str(split["absent"].get(stream, "")) for stream in names)
        table.add_row(name, str(split["samples"]), str(split["images"]), *absent)
    console.print(table)


def _print_findings(found: Findings) -> None:
    if not found.found:
        say("nothing was found")
        return
    table = Table("found", "how many", "hurts", show_lines=True)
    for column in ("where", "what"):
        table.add_column(column, overflow="fold")
    for kind, count in found.counts().items():
        findings = [finding for finding in found.found if finding.kind == kind]
        where = first_lines([" = ".join(finding.where[:_SHOWN]) for finding in findings], _SHOWN)
        what = dict.fromkeys(finding.detail for finding in findings[:_SHOWN])
        hurts = "yes" if findings[0].harmful else "no"
        table.add_row(kind, str(count), hurts, Text("\n".join(where)), Text("\n".join(what)))
    console.print(table)
