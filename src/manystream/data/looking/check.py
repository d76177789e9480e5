"""Walk through the splits of a data set and list what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from manystream.data.looking.findings import (
    Finding,
    Split,
    alignment_findings,
    class_findings,
    dtype_findings,
    duplicate_findings,
    image_findings,
    leak_findings,
    pairing_findings,
)
from manystream.data.looking.images import look_at_all
from manystream.data.source import Source
from manystream.data.survey import Progress, presence_summary


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        splits: samples, images and absences of each split.
        findings: the harmful ones first.
    """

    splits: dict[str, dict[str, Any]]
    findings: tuple[Finding, ...]

    @property
    def harmful(self) -> int:
        """How many findings training would be hurt by."""
        return sum(finding.harmful for finding in self.findings)

    def counts(self) -> dict[str, int]:
        """How many findings there are of each kind, in their order."""
        return dict(Counter(finding.kind for finding in self.findings))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {
            "harmful": self.harmful,
            "splits": self.splits,
            "findings": [asdict(finding) for finding in self.findings],
        }


def check(
    sources: Mapping[str, Source], *, smallest_class: int = 10, progress: Progress | None = None
) -> Report:
    """Read every image of the splits once and look for trouble.

    Harmful are images that are unreadable, all zero or constant, or have other values than most of
    their stream (8 bits among 16); streams of a sample that differ in aspect ratio; one image under
    two labels; an image or a group in two splits; a training class that is too small; and streams
    or classes that do not fit together. Duplicates within a class, streams of different resolution
    and classes that a split lacks are only told.

    Args:
        sources: the splits by name, the one to train on first.
        smallest_class: samples that every training class should have.
        progress: called with how many images of a split are done and how many it has.

    Raises:
        ValueError: if ``smallest_class`` is below 1.
    """
    if smallest_class < 1:
        raise ValueError(f"smallest_class={smallest_class}; expected at least 1 sample")
    splits = [Split(name, s, look_at_all(s, progress)) for name, s in sources.items()]
    found = sorted(_findings(splits, smallest_class), key=lambda finding: not finding.harmful)
    return Report({split.name: _summary(split) for split in splits}, tuple(found))


def _findings(splits: Sequence[Split], smallest_class: int) -> Iterator[Finding]:
    for number, split in enumerate(splits):
        yield from pairing_findings(split)
        yield from image_findings(split)
        yield from dtype_findings(split)
        yield from alignment_findings(split)
        yield from class_findings(split, smallest_class, trained_on=number == 0)
        yield from duplicate_findings(split)
    yield from leak_findings(splits)


def _summary(split: Split) -> dict[str, Any]:
    return {
        "samples": len(split.source.ids),
        "images": len(split.looks),
        "absent": presence_summary(split.source),
    }
