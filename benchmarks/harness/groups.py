"""Groups of cases: which are measured, one after the other, by the command line."""

from __future__ import annotations

import re
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from harness.cases import Case, add_case_options, own_case, shrunk
from harness.results import Row, load, save
from harness.tables import with_ratios

Groups = Mapping[str, Sequence[Case]]
"""Cases by the name of what they are compared in."""


def add_group_options(parser: ArgumentParser, steps: int) -> None:
    """Add what is measured, on what, and for how long.

    Args:
        parser: the script's.
        steps: how many are timed by default.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=device, help=f"({device})")
    parser.add_argument("--steps", type=int, default=steps, help=f"steps to time ({steps})")
    parser.add_argument("--only", default="", help="groups whose name matches this pattern")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="time for all groups")
    parser.add_argument("--small", action="store_true", help="tiny cases, to see that it runs")
    add_case_options(parser)


def groups_of(
    parser: ArgumentParser,
    options: Namespace,
    published: Callable[[Case], Groups],
    own: Callable[[Case], Sequence[Case]],
) -> Groups:
    """Return what is to be measured; end the process with a message if the options make no sense.

    Args:
        parser: with :func:`add_group_options`.
        options: what it gave.
        published: from a case with device and steps to the published groups.
        own: from the case of a user's own network to all that stand beside each other.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but there is no GPU; expected cpu")
    try:
        base = Case(device=options.device, steps=options.steps)
        case = own_case(options, base)
    except ValueError as error:
        parser.error(str(error))
    groups = published(base) if case is None else {"own network": own(case)}
    found = {name: cases for name, cases in groups.items() if re.search(options.only, name)}
    if options.small:
        return {name: [shrunk(case) for case in cases] for name, cases in found.items()}
    return found


def run_groups(
    groups: Groups,
    options: Namespace,
    measure: Callable[[Sequence[Case], float], Iterable[Row]],
    show: Callable[[str, list[Row]], object],
) -> list[Row]:
    """Measure group after group, and save and show after each; or only show a kept file's.

    Args:
        groups: cases by group.
        options: what a parser with :func:`add_group_options` gave.
        measure: from a group's cases, and the seconds left, to a row for each.
        show: prints a group's rows.

    Returns:
        All rows, with ratios within their group.
    """
    if options.show is not None:
        rows = load(options.show)
        for group in dict.fromkeys(row["group"] for row in rows):
            show(group, [row for row in rows if row["group"] == group])
        return rows
    rows, deadline = [], time.monotonic() + options.seconds
    for group, cases in groups.items():
        left = deadline - time.monotonic()
        if left < 0:
            break
        measured = with_ratios([{"group": group, **row} for row in measure(cases, left)])
        rows += measured
        save(options.out, rows, options.commit)
        show(group, measured)
    print(options.out)
    return rows
