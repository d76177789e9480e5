"""What is wrong with a data set: its images, its samples, its classes and its splits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, NamedTuple

from manystream.data.pairing import mismatches
from manystream.data.survey import Image, Look, Progress, look_at, mixed_views, other_dtypes
from manystream.data.table import SampleTable


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
    odd, mixed, labels = other_dtypes(table, looks), mixed_views(looks), table.labels()
    splits = list(splits or dict.fromkeys(table.splits))
    found: list[Finding] = []
    summaries, everything, groups = {}, [], {}
    for name in splits:
        part, rows = table.part(name), set(table.rows(name))
        seen = [
            _Seen(name, i, m, str(table.path(i, m)), labels[i], look)
            for (i, m), look in looks.items()
            if i in rows
        ]
        found += [Finding("mismatch", True, (x.where,), x.reason) for x in mismatches(part)]
        found += _of_images(seen, odd)
        found += _of_views(seen, mixed, table.ids)
        found += _of_classes(part, name, smallest_class if name == splits[0] else 0)
        found += _duplicates(seen)
        everything += seen
        groups[name] = Counter(part.groups or ())
        summaries[name] = {"samples": len(part), "images": len(seen), "absent": part.absences()}
    found += _leaks(everything, groups)
    return Findings(summaries, tuple(sorted(found, key=lambda finding: not finding.harmful)))


class _Seen(NamedTuple):
    """An image as it was seen, and the sample it is of."""

    split: str
    sample: int
    stream: int
    path: str
    label: str
    look: Look


def _of_images(seen: Sequence[_Seen], odd: Mapping[Image, str]) -> Iterator[Finding]:
    """Find images that cannot be read, show nothing, or have other values than their stream."""
    for x in seen:
        if x.look.problem:
            yield Finding("unreadable", True, (x.path,), x.look.problem)
        elif x.look.constant == 0:
            yield Finding("all zero", True, (x.path,), "take it away, so that it is absent")
        elif x.look.constant is not None:
            yield Finding("constant", True, (x.path,), f"every value is {x.look.constant:g}")
    for x in seen:
        if reason := odd.get((x.sample, x.stream)):
            yield Finding("other values", True, (x.path,), reason)


def _of_views(
    seen: Sequence[_Seen], mixed: Mapping[Image, str], ids: Sequence[str]
) -> Iterator[Finding]:
    """Find samples whose images cannot show the same view, or differ in resolution."""
    finer = []
    for sample, images in _grouped(seen, lambda x: x.sample).items():
        of_mixed = [x for x in images if (x.sample, x.stream) in mixed]
        if of_mixed:
            ratios = f"aspect ratios differ: {mixed[sample, of_mixed[0].stream]}"
            yield Finding("misaligned", True, tuple(x.path for x in of_mixed), ratios)
        elif len({x.look.size for x in images if not x.look.problem}) > 1:
            finer.append(ids[sample])
    if finer:
        detail = "resolutions differ between streams; crops stay aligned"
        yield Finding("resolutions", False, tuple(finer), detail)


def _of_classes(table: SampleTable, split: str, smallest: int) -> Iterator[Finding]:
    """Find classes with too few samples to learn, or without any to measure."""
    counts = Counter(table.labels())
    for name in table.classes:
        if counts[name] < smallest:
            detail = f"{counts[name]} samples in {split}; expected at least {smallest}"
            yield Finding("small class", True, (name,), detail)
        elif counts[name] == 0:
            yield Finding("empty class", False, (name,), f"no sample in {split}")


def _duplicates(seen: Sequence[_Seen]) -> Iterator[Finding]:
    """Find images of one stream that are the same; harmful where their labels differ."""
    for same in _same_pixels(seen):
        names, labels = tuple(x.path for x in same), sorted({x.label for x in same})
        if len(labels) > 1:
            yield Finding("contradiction", True, names, f"one image, labels {', '.join(labels)}")
        elif len(names) > 1:
            yield Finding("duplicate", False, names, f"one image, {len(names)} times")


def _leaks(seen: Sequence[_Seen], groups: Mapping[str, Counter[str]]) -> Iterator[Finding]:
    """Find images and groups that two splits share."""
    for same in _same_pixels(seen):
        found_in = sorted({x.split for x in same})
        if len(found_in) > 1:
            names = tuple(f"{x.split}: {x.path}" for x in same)
            yield Finding("leak", True, names, f"one image in {' and '.join(found_in)}")
    for (a, in_a), (b, in_b) in combinations(groups.items(), 2):
        for group in sorted((in_a.keys() & in_b.keys()) - {""}):
            counts = f"{a} ({in_a[group]} samples) and {b} ({in_b[group]} samples)"
            yield Finding("leak", True, (group,), f"one group in {counts}")


def _same_pixels(seen: Sequence[_Seen]) -> Iterable[list[_Seen]]:
    """Group images by stream and pixels, but for those that show nothing: they have a kind."""
    usable = [x for x in seen if x.look.digest and x.look.constant is None]
    return _grouped(usable, lambda x: (x.stream, x.look.digest)).values()


def _grouped(items: Iterable[_Seen], key: Callable[[_Seen], Any]) -> dict[Any, list[_Seen]]:
    groups: dict[Any, list[_Seen]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups
