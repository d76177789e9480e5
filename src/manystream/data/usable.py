"""Samples that can be used: every image looked at once, what is bad told, refused or taken out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from manystream.data.files import ImageFiles
from manystream.data.options import DataOptions
from manystream.data.pairing import mismatches, one_sided_classes
from manystream.data.problems import Printer, Problem, Problems
from manystream.data.scenes import RenderedScenes
from manystream.data.statistics import StreamStatistics
from manystream.data.survey import Image, Progress, look_at, statistics, unusable
from manystream.data.table import SampleTable

_SCENES_SURVEYED = 256


@dataclass(frozen=True)
class Usable:
    """Samples that can be trained on or measured.

    Attributes:
        table: those whose images can be used; images that cannot are absent.
        statistics: by the name of a split, each stream's mean and standard deviation.
    """

    table: SampleTable
    statistics: dict[str, tuple[StreamStatistics, ...]]


def usable_samples(
    table: SampleTable,
    splits: Sequence[str],
    options: DataOptions,
    *,
    trained: bool = False,
    report: Printer = print,
    progress: Progress | None = None,
) -> Usable:
    """Look at every image of some splits once, and take out what cannot be used.

    Args:
        table: the samples.
        splits: the splits that are to be used.
        options: what bad input does, and whether all images of a sample show the same view.
        trained: whether this is for a model that is trained already: streams and classes that do
            not seem to fit together are then told only.
        report: takes lines about absent and unusable images.
        progress: as for :func:`manystream.data.survey.look_at`.

    Raises:
        ValueError: if there is bad input and ``on_error`` is ``"raise"``.
    """
    problems = Problems(options.on_error, report)
    for split in splits:
        part = table.part(split)
        what = f"{split}: streams or classes that do not fit together"
        told = Problems("skip", report) if trained else problems
        told.settle(what, mismatches(part), "are used as they are")
        for name, streams in one_sided_classes(part).items():
            report(f"{split}: class {name!r} has no image of {', '.join(streams)}")
    table = _one_label_each(table, problems)
    known = _known_statistics(table, splits)
    if known is None:
        found = look_over(table, splits, problems, options.same_view, progress)
    else:
        found = Usable(table, known)
    for split in splits:
        report(f"{split}: {found.table.part(split).summary()}")
    return found


def look_over(
    table: SampleTable,
    splits: Sequence[str],
    problems: Problems,
    same_view: bool = False,
    progress: Progress | None = None,
) -> Usable:
    """Look at every image once; take out what cannot be used, unless it is to stop the run.

    The arguments are those of :func:`usable_samples`; ``splits`` are those to give statistics of.
    """
    looks = look_at(table, progress=progress)
    bad = unusable(table, looks, same_view=same_view)
    doubts = {image: x.doubt for image, x in looks.items() if x.doubt and image not in bad}
    for what, images, skipped in (
        ("depth images with values that are no depth", doubts, "count as no reading"),
        ("unreadable images", bad, "count as absent"),
    ):
        found = [Problem(str(table.path(*image)), reason) for image, reason in images.items()]
        problems.settle(what, found, skipped)
    good = {image: look for image, look in looks.items() if image not in bad}
    known = {split: statistics(table, good, table.rows(split)) for split in splits}
    readable = table.without(bad) if bad else table
    if dropped := len(table) - len(readable):
        problems.report(f"{dropped} samples had nothing else and are left out")
    return Usable(readable, known)


def _known_statistics(
    table: SampleTable, splits: Sequence[str]
) -> dict[str, tuple[StreamStatistics, ...]] | None:
    """Return what is known without a look at every image: of prepared sets, of rendered scenes."""
    known = {split: table.known_statistics(split) for split in splits}
    if None not in known.values():  # A prepared set was looked at before it was written.
        return {split: of_split for split, of_split in known.items() if of_split is not None}
    if not all(isinstance(column.storage, RenderedScenes) for column in table.columns):
        return None
    parts = {split: table.part(split) for split in splits}
    return {
        split: statistics(part, look_at(part, limit=min(_SCENES_SURVEYED, len(part))))
        for split, part in parts.items()
    }


def _one_label_each(table: SampleTable, problems: Problems) -> SampleTable:
    """Take out samples that share a file and not the label, unless they are to stop the run."""
    having: dict[tuple[int, int], list[Image]] = {}
    for i, m in table.present.nonzero().tolist():
        if isinstance(table.columns[m].storage, ImageFiles):
            with suppress(OSError):  # A path that leads to no file; reading it will say so.
                status = table.path(i, m).stat()
                having.setdefault((status.st_dev, status.st_ino), []).append((i, m))
    labels, found = table.labels(), {}
    for images in having.values():
        if len(named := dict.fromkeys(labels[i] for i, _ in images)) > 1:
            for i, m in images:
                what = f"its file {table.path(i, m)} has the labels {', '.join(named)}"
                found[i] = Problem(table.ids[i], f"{what}; expected one")
    ordered = [found[i] for i in sorted(found)]
    problems.settle("samples with a file of another label", ordered, "are left out")
    return table.select([i for i in range(len(table)) if i not in found]) if found else table
