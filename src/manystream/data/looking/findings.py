"""What can be wrong with the images and samples of a data set."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from manystream.data.looking.images import Look
from manystream.data.pairing import mismatches
from manystream.data.source import Source, groups_of
from manystream.data.survey import usual_dtypes

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
class Split:
    """A split, and what was seen of each of its images."""

    name: str
    source: Source
    looks: Sequence[Look]

    def label(self, look: Look) -> str:
        """Class of the sample that an image belongs to."""
        return self.source.classes[int(self.source.targets[look.sample])]


def image_findings(split: Split) -> Iterator[Finding]:
    """Images that cannot be read, and those that show nothing."""
    for look in split.looks:
        if look.problem:
            yield Finding("unreadable", True, (look.name,), look.problem)
        elif look.constant == 0:
            yield Finding("all zero", True, (look.name,), "take it away, so that it is absent")
        elif look.constant is not None:
            yield Finding("constant", True, (look.name,), f"every value is {look.constant:g}")


def dtype_findings(split: Split) -> Iterator[Finding]:
    """Images with other numbers than most of their stream, as 8 bits of depth among 16."""
    usual = usual_dtypes((look.stream, look.dtype) for look in split.looks)
    for look in split.looks:
        if not look.problem and look.dtype != usual[look.stream]:
            detail = f"it has {look.dtype} values; expected {usual[look.stream]}, as in most"
            yield Finding("other values", True, (look.name,), detail)


def alignment_findings(split: Split) -> Iterator[Finding]:
    """Samples whose images cannot show the same view, or differ in resolution."""
    by_sample = _grouped([look for look in split.looks if not look.problem], lambda x: x.sample)
    finer = []
    for looks in by_sample.values():
        sizes = [look.size for look in looks]
        if not _one_aspect(sizes):
            listed = ", ".join(f"{width}x{height}" for height, width in sizes)
            names = tuple(look.name for look in looks)
            yield Finding("misaligned", True, names, f"aspect ratios differ: {listed}")
        elif len(set(sizes)) > 1:
            finer.append(split.source.ids[looks[0].sample])
    if finer:
        detail = "resolutions differ between streams; crops stay aligned"
        yield Finding("resolutions", False, tuple(finer), detail)


def duplicate_findings(split: Split) -> Iterator[Finding]:
    """Images of one stream that are the same; harmful where their labels differ."""
    for looks in _same_pixels([split]).values():
        if len(looks) < 2:
            continue
        names = tuple(look.name for _, look in looks)
        labels = sorted({split.label(look) for _, look in looks})
        if len(labels) > 1:
            yield Finding("contradiction", True, names, f"one image, labels {', '.join(labels)}")
        else:
            yield Finding("duplicate", False, names, f"one image, {len(names)} times")


def leak_findings(splits: Sequence[Split]) -> Iterator[Finding]:
    """Images and groups that two splits share."""
    for looks in _same_pixels(splits).values():
        found_in = sorted({split.name for split, _ in looks})
        if len(found_in) > 1:
            names = tuple(f"{split.name}: {look.name}" for split, look in looks)
            yield Finding("leak", True, names, f"one image in {' and '.join(found_in)}")
    for a, b in combinations(splits, 2):
        yield from _shared_groups(a, b)


def class_findings(split: Split, smallest: int, *, trained_on: bool) -> Iterator[Finding]:
    """Classes with too few samples to learn, or without any to measure."""
    counts = Counter(split.source.targets.tolist())
    for number, name in enumerate(split.source.classes):
        if trained_on and counts[number] < smallest:
            detail = f"{counts[number]} samples in {split.name}; expected at least {smallest}"
            yield Finding("small class", True, (name,), detail)
        elif counts[number] == 0:
            yield Finding("empty class", False, (name,), f"no sample in {split.name}")


def pairing_findings(split: Split) -> Iterator[Finding]:
    """Streams and classes that do not fit together."""
    for problem in mismatches(split.source):
        yield Finding("mismatch", True, (problem.where,), problem.reason)


def _shared_groups(a: Split, b: Split) -> Iterator[Finding]:
    in_a, in_b = (Counter(groups_of(split.source) or ()) for split in (a, b))
    for group in sorted((in_a.keys() & in_b.keys()) - {""}):
        detail = (
            f"one group in {a.name} ({in_a[group]} samples) and {b.name} ({in_b[group]} samples)"
        )
        yield Finding("leak", True, (group,), detail)


def _same_pixels(splits: Sequence[Split]) -> dict[Hashable, list[tuple[Split, Look]]]:
    """Images by stream and pixels; those that show nothing are left out, they have a kind."""
    usable = [
        (split, look)
        for split in splits
        for look in split.looks
        if look.digest and look.constant is None
    ]
    return _grouped(
        usable, lambda pair: (pair[0].source.streams[pair[1].stream].name, pair[1].digest)
    )


def _grouped(items: Iterable[Item], key: Callable[[Item], Hashable]) -> dict[Hashable, list[Item]]:
    groups: dict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _one_aspect(sizes: Sequence[tuple[int, int]]) -> bool:
    """Whether all have one aspect ratio, but for a pixel of rounding in each direction."""
    height, width = sizes[0]
    return all(abs(h * width - w * height) <= height + width for h, w in sizes[1:])
