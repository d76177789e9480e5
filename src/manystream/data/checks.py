"""What is wrong with a data set: its images, its samples, its classes and its splits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, TypeVar

from manystream.data.pairing import mismatches
from manystream.data.survey import Image, Look, Looks, Progress, look_at, mixed_views, other_dtypes
from manystream.data.table import SampleTable

Item = TypeVar("Item")


@dataclass(frozen=True)
class Finding:
    """Something worth knowing about a data set.

    Attributes:
        kind: what it is, as tables name it.
        harmful: whether training or what it measures would be hurt by it.
        where: the images, samples, groups or classes it is about.
        detail: what was found, what is expected.
    """

    kind: str
    harmful: bool
    where: tuple[str, ...]
    detail: str


@dataclass(frozen=True)
class Findings:
    """What a check found.

    Attributes:
        splits: samples, images and absences of each split.
        found: the harmful ones first.
    """

    splits: dict[str, dict[str, Any]]
    found: tuple[Finding, ...]

    @property
    def harmful(self) -> int:
        """How many findings training would be hurt by."""
        return sum(finding.harmful for finding in self.found)

    def counts(self) -> dict[str, int]:
        """Count the findings of each kind, in their order."""
        return dict(Counter(finding.kind for finding in self.found))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "harmful": self.harmful,
            "splits": self.splits,
            "findings": [asdict(finding) for finding in self.found],
        }


def check(
    table: SampleTable,
    splits: Sequence[str] | None = None,
    *,
    smallest_class: int = 10,
    progress: Progress | None = None,
) -> Findings:
    """Look at every image of the splits once and look for trouble.

    Harmful are images that are unreadable, all zero or constant, or have other values than most of
    their stream (8 bits among 16); streams of a sample that differ in aspect ratio; one image under
    two labels; an image or a group in two splits; a training class that is too small; and streams
    or classes that do not fit together. Duplicates within a class, streams of different resolution
    and classes that a split lacks are only told.

    Args:
        table: the samples.
        splits: names of those to check, the one to train on first; all by default.
        smallest_class: samples that every training class should have.
        progress: called with how many images have been read and how many there are to read.

    Raises:
        ValueError: if ``smallest_class`` is below 1, or a split has no samples.
    """
    if smallest_class < 1:
        raise ValueError(f"smallest_class={smallest_class}; expected at least 1 sample")
    looks = look_at(table, progress=progress)
    other = other_dtypes(table, looks)
    names = splits or dict.fromkeys(table.splits)
    parts = [_Split.of(table, name, looks, other) for name in names]
    found = sorted(_find(parts, smallest_class), key=lambda finding: not finding.harmful)
    return Findings({part.name: part.summary() for part in parts}, tuple(found))


@dataclass(frozen=True)
class _Split:
    """A split, what was seen of each of its images, and those of other values than most."""

    name: str
    table: SampleTable
    looks: Looks
    other: Mapping[Image, str]

    @classmethod
    def of(cls, table: SampleTable, name: str, looks: Looks, other: Mapping[Image, str]) -> _Split:
        numbers = {row: number for number, row in enumerate(table.rows(name))}
        seen = {(numbers[i], m): x for (i, m), x in looks.items() if i in numbers}
        odd = {(numbers[i], m): x for (i, m), x in other.items() if i in numbers}
        return cls(name, table.part(name), seen, odd)

    def path(self, image: Image) -> str:
        return str(self.table.path(*image))

    def label(self, image: Image) -> str:
        return self.table.classes[int(self.table.targets[image[0]])]

    def summary(self) -> dict[str, Any]:
        return {
            "samples": len(self.table),
            "images": len(self.looks),
            "absent": self.table.absences(),
        }


_Seen = tuple[_Split, Image, Look]


def _find(splits: Sequence[_Split], smallest_class: int) -> Iterator[Finding]:
    for number, split in enumerate(splits):
        for problem in mismatches(split.table):
            yield Finding("mismatch", True, (problem.where,), problem.reason)
        yield from _of_images(split)
        yield from _of_views(split)
        yield from _of_classes(split, smallest_class, trained_on=number == 0)
        yield from _duplicates(split)
    yield from _leaks(splits)


def _of_images(split: _Split) -> Iterator[Finding]:
    """Find images that cannot be read, show nothing, or have other values than their stream."""
    for image, look in split.looks.items():
        where = (split.path(image),)
        if look.problem:
            yield Finding("unreadable", True, where, look.problem)
        elif look.constant == 0:
            yield Finding("all zero", True, where, "take it away, so that it is absent")
        elif look.constant is not None:
            yield Finding("constant", True, where, f"every value is {look.constant:g}")
    for image, reason in split.other.items():
        yield Finding("other values", True, (split.path(image),), reason)


def _of_views(split: _Split) -> Iterator[Finding]:
    """Find samples whose images cannot show the same view, or differ in resolution."""
    mixed = mixed_views(split.looks)
    sizes: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for (sample, stream), look in split.looks.items():
        if not look.problem and (sample, stream) not in mixed:
            sizes[sample].add(look.size)
    for images in _grouped(mixed, lambda image: image[0]).values():
        names = tuple(map(split.path, images))
        yield Finding("misaligned", True, names, f"aspect ratios differ: {mixed[images[0]]}")
    if finer := tuple(split.table.ids[i] for i, of in sizes.items() if len(of) > 1):
        detail = "resolutions differ between streams; crops stay aligned"
        yield Finding("resolutions", False, finer, detail)


def _of_classes(split: _Split, smallest: int, *, trained_on: bool) -> Iterator[Finding]:
    """Find classes with too few samples to learn, or without any to measure."""
    counts = Counter(split.table.labels())
    for name in split.table.classes:
        if trained_on and counts[name] < smallest:
            detail = f"{counts[name]} samples in {split.name}; expected at least {smallest}"
            yield Finding("small class", True, (name,), detail)
        elif counts[name] == 0:
            yield Finding("empty class", False, (name,), f"no sample in {split.name}")


def _duplicates(split: _Split) -> Iterator[Finding]:
    """Find images of one stream that are the same; harmful where their labels differ."""
    for seen in _same_pixels([split]).values():
        if len(seen) < 2:
            continue
        names = tuple(split.path(image) for _, image, _ in seen)
        labels = sorted({split.label(image) for _, image, _ in seen})
        if len(labels) > 1:
            yield Finding("contradiction", True, names, f"one image, labels {', '.join(labels)}")
        else:
            yield Finding("duplicate", False, names, f"one image, {len(names)} times")


def _leaks(splits: Sequence[_Split]) -> Iterator[Finding]:
    """Find images and groups that two splits share."""
    for seen in _same_pixels(splits).values():
        found_in = sorted({split.name for split, _, _ in seen})
        if len(found_in) > 1:
            names = tuple(f"{split.name}: {split.path(image)}" for split, image, _ in seen)
            yield Finding("leak", True, names, f"one image in {' and '.join(found_in)}")
    for a, b in combinations(splits, 2):
        in_a, in_b = (Counter(split.table.groups or ()) for split in (a, b))
        for group in sorted((in_a.keys() & in_b.keys()) - {""}):
            counts = f"{a.name} ({in_a[group]} samples) and {b.name} ({in_b[group]} samples)"
            yield Finding("leak", True, (group,), f"one group in {counts}")


def _same_pixels(splits: Sequence[_Split]) -> Mapping[Hashable, list[_Seen]]:
    """Group images by stream and pixels, but for those that show nothing: they have a kind."""
    usable = [
        (split, image, look)
        for split in splits
        for image, look in split.looks.items()
        if look.digest and look.constant is None
    ]
    return _grouped(usable, lambda seen: (seen[1][1], seen[2].digest))


def _grouped(items: Iterable[Item], key: Callable[[Item], Hashable]) -> dict[Hashable, list[Item]]:
    groups: dict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups
