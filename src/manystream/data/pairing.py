"""Streams and classes that do not fit together, and what the likely cause is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import permutations, takewhile

import torch

from manystream.data.problems import Problem
from manystream.data.table import SampleTable

_SENSOR = re.compile(
    r"(?i)rgb|colou?r|gr[ae]y|depth|hha|thermal|infrared|lidar|radar|(?<![a-z])n?ir(?![a-z])"
)


def mismatches(table: SampleTable) -> list[Problem]:
    """Find what cannot have been meant about who has which stream.

    Streams of which no sample has another one as well; classes called like sensors, of streams that
    are not; and a class that lacks a stream, as if its folder were misspelt in it.

    Args:
        table: the samples, whose ids end in the names of their files where these are ``class/id``.
    """
    return [*_swapped(table), *_unpaired(table), *_misspelt(table)]


def one_sided_classes(table: SampleTable) -> dict[str, list[str]]:
    """Return, by the name of each class with samples, the streams that it lacks and others have."""
    has = {
        name: table.present[table.targets == number].any(dim=0)
        for number, name in enumerate(table.classes)
        if (table.targets == number).any()
    }
    used = table.present.any(dim=0)
    lacks = {name: _names(table, used & ~of_class) for name, of_class in has.items()}
    return {name: streams for name, streams in lacks.items() if streams}


def _swapped(table: SampleTable) -> Iterator[Problem]:
    streams = [spec.name for spec in table.streams]
    if all(map(_SENSOR.search, table.classes)) and not any(map(_SENSOR.search, streams)):
        yield Problem(
            f"classes {', '.join(table.classes)}",
            f"they are called like sensors, and the streams {', '.join(streams)} are not: streams "
            "and classes seem to be swapped; expected <split>/<stream>/<class>/<id>.<ext>",
        )


def _unpaired(table: SampleTable) -> Iterator[Problem]:
    present = table.present
    several = present.sum(dim=1, keepdim=True) > 1
    alone = present.any(dim=0) & ~(present & several).any(dim=0)
    used = _names(table, present.any(dim=0))
    lonely = _names(table, alone)
    if len(used) < 2 or not lonely:
        return
    what = "no sample has two of them" if lonely == used else "no sample has another stream as well"
    pairs = [(a, b) for a, b in permutations(used, 2) if a in lonely or b in lonely]
    cause = next(filter(None, (_renamed(table, a, b) for a, b in pairs)), "")
    yield Problem(
        f"streams {', '.join(lonely)}",
        f"{what}{cause and ': '}{cause}; expected one name for all images of a sample, or one row "
        "of a manifest",
    )


def _misspelt(table: SampleTable) -> Iterator[Problem]:
    told: set[frozenset[str]] = set()
    for name, lacks in one_sided_classes(table).items():
        has = [m for m, spec in enumerate(table.streams) if spec.name not in lacks]
        stems = _stems_of(table, name)
        for other in table.classes:
            twins = stems & _stems_of(table, other, without=has)
            pair = frozenset((name, other))
            if other != name and pair not in told and len(twins) >= len(stems) / 2:
                told.add(pair)
                yield Problem(
                    f"class {name!r}",
                    f"it has no image of {', '.join(lacks)}, and {len(twins)} of its images are "
                    f"called like those that {other!r} lacks: is one of the classes misspelt?",
                )


def _stems_of(table: SampleTable, label: str, without: Sequence[int] = ()) -> set[str]:
    """Return the names of a class's samples that have none of some streams."""
    of_class = table.targets == table.classes.index(label)
    lacking = ~table.present[:, list(without)].any(dim=1)
    chosen = (of_class & lacking).nonzero().flatten().tolist()
    return {table.ids[i].rpartition("/")[2] for i in chosen}


def _renamed(table: SampleTable, first: str, second: str) -> str:
    """Say how a stream's names differ from those of another; nothing if that cannot be told."""
    theirs, ours = (_split_ids(table, name) for name in (first, second))
    enough = min(len(theirs), len(ours)) / 2
    lower = {(folder, stem.lower()) for folder, stem in theirs}
    if sum((folder, stem.lower()) in lower for folder, stem in ours) >= enough:
        return f"names differ in upper and lower case between {first} and {second}"
    for where, step in (("begin", 1), ("end", -1)):
        turned = [[(folder, stem[::step]) for folder, stem in names] for names in (theirs, ours)]
        old, new = (prefix[::step] for prefix in _prefixes(turned[0], turned[1], enough))
        if old and new:
            return f"names {where} with {old!r} in {first}, and with {new!r} in {second}"
        if old or new:
            longer, shorter = (first, second) if old else (second, first)
            without = f"and are the same in {shorter} without it"
            return f"names {where} with {old or new!r} in {longer}, {without}"
    return ""


def _prefixes(
    theirs: Sequence[tuple[str, str]], ours: Sequence[tuple[str, str]], enough: float
) -> tuple[str, str]:
    """Find two prefixes, theirs and ours, by which enough of the names differ; empty if none do."""
    folder, probe = ours[0]
    beside = [stem for f, stem in theirs if f == folder] or [stem for _, stem in theirs]
    shared = {stem: _shared_end(stem, probe) for stem in beside}
    likest = max(beside, key=lambda stem: (shared[stem], -len(stem)))
    old, new = (stem[: len(stem) - shared[likest]] for stem in (likest, probe))
    known = set(theirs)
    renamed = ((f, old + stem[len(new) :]) for f, stem in ours if stem.startswith(new))
    return (old, new) if sum(name in known for name in renamed) >= enough else ("", "")


def _shared_end(one: str, other: str) -> int:
    """Count the characters that two texts have in common at their ends."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _split_ids(table: SampleTable, stream: str) -> list[tuple[str, str]]:
    """Split the ids of a stream's samples into their folder and their own name."""
    number = [spec.name for spec in table.streams].index(stream)
    chosen = table.present[:, number].nonzero().flatten().tolist()
    parts = (table.ids[i].rpartition("/") for i in chosen)
    return sorted((folder, stem) for folder, _, stem in parts)


def _names(table: SampleTable, chosen: torch.Tensor) -> list[str]:
    return [spec.name for spec, is_one in zip(table.streams, chosen, strict=True) if is_one]
