"""From options to sources: find out what is at the root, open a split, look at it once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from manystream.data.formats import FORMATS, recognise
from manystream.data.options import DataOptions, OnError, Report
from manystream.data.pairing import mismatches, one_sided_classes
from manystream.data.prepared import PreparedSource
from manystream.data.problems import Problem, settling
from manystream.data.source import Source, StreamSpec
from manystream.data.sources.files import FileSource, file_key
from manystream.data.sources.hints import StreamHints
from manystream.data.sources.nyu_source import NyuSource
from manystream.data.sources.scenes import SceneSource
from manystream.data.sources.selection import SelectedStreams
from manystream.data.sources.unlabelled import UnlabelledFolder
from manystream.data.sources.wanted import Wanted
from manystream.data.statistics import StreamStatistics
from manystream.data.survey import Progress, Survey, presence_summary, survey
from manystream.data.survey_cache import survey_once

_SCENES_SURVEYED = 256
_LEFT_OUT = "are left out"


def identified(options: DataOptions, report: Report = print) -> DataOptions:
    """Options whose format is known; one that was found out is said.

    Raises:
        ValueError: if nothing at the root can be opened.
    """
    if options.root is None or options.format is not None:
        return options
    found = recognise(options.root)
    report(f"found {FORMATS[found].description} at {options.root}")
    return replace(options, format=found)


def open_split(
    options: DataOptions,
    split: str,
    streams: Sequence[StreamSpec] | None = None,
    classes: Sequence[str] | None = None,
    report: Report = print,
    progress: Progress | None = None,
) -> tuple[Source, tuple[StreamStatistics, ...]]:
    """Open one split, and look at every image of it once.

    Args:
        options: where the images come from.
        split: name of the split.
        streams: the model's streams; found in the data if left out.
        classes: the model's classes; found in the data if left out.
        report: takes lines about what was found, and about missing and unreadable images.
        progress: called with how many images have been looked at and how many there are, where
            that is not known from an earlier run.

    Returns:
        The readable samples, and each stream's statistics.

    Raises:
        ValueError: if the split is missing or empty, does not fit the model, or holds bad input
            and ``on_error`` is ``"raise"``.
    """
    source = open_source(options, split, streams, classes, report)
    _check_pairing(source, split, "skip" if classes else options.on_error, report)
    if isinstance(source, FileSource):
        source = _one_label_each(source, options.on_error, report)
    if isinstance(source, PreparedSource):  # It was surveyed before it was written.
        _report_absences(source, split, report)
        return source, source.statistics
    if not isinstance(source, FileSource | NyuSource):
        limit = min(_SCENES_SURVEYED, len(source.ids))
        return source, survey(source, limit=limit).statistics
    found = survey_once(source, same_view=options.same_view, progress=progress)
    readable = _settled(source, found, options.on_error, report, "--data.on-error")
    _report_absences(readable, split, report)
    return readable, found.statistics


def open_source(
    options: DataOptions,
    split: str,
    streams: Sequence[StreamSpec] | None = None,
    classes: Sequence[str] | None = None,
    report: Report = print,
) -> Source:
    """Open one split without a look at its images; otherwise as :func:`open_split`."""
    _check_streams(options, streams)
    if options.root is None:
        return _open_scenes(options, split, streams, classes)
    options = identified(options, report)
    assert options.root is not None
    return _open(Wanted(options.root, split, options, streams, classes, report))


def open_unlabelled(
    folder: Path,
    streams: Sequence[StreamSpec],
    on_error: OnError,
    report: Report = print,
    hints: StreamHints | None = None,
    progress: Progress | None = None,
) -> UnlabelledFolder:
    """Open images without classes, and look at every one of them once.

    Args:
        folder: laid out as ``<stream>/<id>.<ext>``.
        streams: the model's streams.
        on_error: what an unreadable image does, as in :class:`DataOptions`.
        report: takes lines about unreadable images.
        hints: the units of depth, if the model takes it in metres.
        progress: called with how many images have been looked at and how many there are.

    Raises:
        ValueError: if there is no image, one is unreadable and ``on_error`` is ``"raise"``, or the
            hints do not fit the streams.
    """
    source = UnlabelledFolder(folder, streams, hints)
    return _settled(source, survey(source, progress=progress), on_error, report, "--on-error")


class _Reducible(Source, Protocol):
    def without(self, unreadable: set[Path]) -> Any: ...


Files = TypeVar("Files", bound=_Reducible)


def _open(wanted: Wanted) -> FileSource | NyuSource | PreparedSource:
    source = FORMATS[wanted.options.format or recognise(wanted.root)].open(wanted)
    for what, trained, found in (
        ("streams", wanted.streams, source.streams),
        ("classes", wanted.classes, source.classes),
    ):
        if trained is not None and tuple(trained) != tuple(found):
            raise ValueError(
                f"the model was trained on the {what} {_listed(trained)}, {wanted.root} has "
                f"{_listed(found)}; expected the same"
            )
    return source


def _check_streams(options: DataOptions, streams: Sequence[StreamSpec] | None) -> None:
    """Refuse to choose among the streams of a trained model, which has a place for each."""
    if streams is None or options.streams is None:
        return
    names = [spec.name for spec in streams]
    if sorted(names) != sorted(options.streams):
        raise ValueError(
            f"--data.streams is {', '.join(options.streams)}, and the model's streams are "
            f"{', '.join(names)}; leave it out: a stream that the data lack is absent, and "
            "--blanked_streams of `evaluate` takes streams away"
        )


def _listed(items: Sequence[Any]) -> str:
    return ", ".join(str(item) for item in items)


def _open_scenes(
    options: DataOptions,
    split: str,
    streams: Sequence[StreamSpec] | None,
    classes: Sequence[str] | None,
) -> Source:
    fits = set(streams or ()) <= set(SceneSource.streams)
    if not fits or (classes is not None and tuple(classes) != SceneSource.classes):
        raise ValueError(
            "the model was not trained on rendered scenes; name its images with --data.root"
        )
    number = options.num_scenes if split == "train" else max(options.num_scenes // 4, 12)
    scenes: Source = SceneSource(number, options.image_size, split=split)
    names = options.streams if streams is None else [spec.name for spec in streams]
    if names is not None:
        scenes = SelectedStreams(scenes, names)
    return scenes


def _settled(source: Files, found: Survey, on_error: OnError, report: Report, option: str) -> Files:
    """The source without its unreadable images, if they and odd depth are to be skipped."""
    odd = settling(
        "depth images with values that are no depth",
        on_error,
        report,
        skipped="count as no reading",
        option=option,
    )
    odd([Problem(str(file.path), file.reason) for file in found.odd_depth])
    unreadable = settling(
        "unreadable images", on_error, report, skipped="count as absent", option=option
    )
    unreadable([Problem(str(file.path), file.reason) for file in found.unreadable])
    if not found.unreadable:
        return source
    readable: Files = source.without(found.unreadable_paths)
    if dropped := len(source.ids) - len(readable.ids):
        report(f"{dropped} samples had nothing else and are left out")
    return readable


def _check_pairing(source: Source, split: str, on_error: OnError, report: Report) -> None:
    """Say what cannot have been meant; before training, it stops the run unless it is skipped."""
    settle = settling(
        f"{split}: streams or classes that do not fit together",
        on_error,
        report,
        skipped="are used as they are",
    )
    settle(mismatches(source))
    for name, streams in one_sided_classes(source).items():
        report(f"{split}: class {name!r} has no image of {', '.join(streams)}")


def _one_label_each(source: FileSource, on_error: OnError, report: Report) -> FileSource:
    """The source without samples that share a file and not the label, if they are to be skipped."""
    found = dict(sorted(_contradicted(source)))
    settle = settling("samples with a file of another label", on_error, report, skipped=_LEFT_OUT)
    settle([Problem(source.ids[i], reason) for i, reason in found.items()])
    if not found:
        return source
    there = ((i, m) for i, m in source.present.nonzero().tolist() if i in found)
    return source.without({source.path(i, m) for i, m in there})


def _contradicted(source: FileSource) -> Iterator[tuple[int, str]]:
    """Numbers of samples that share a file with one of another label, and what is wrong."""
    having: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, m in source.present.nonzero().tolist():
        if (key := file_key(source.path(i, m))) is not None:
            having.setdefault(key, []).append((i, m))
    labels = source.targets.tolist()
    for images in having.values():
        if len({labels[i] for i, _ in images}) > 1:
            named = ", ".join(dict.fromkeys(source.classes[labels[i]] for i, _ in images))
            for i, m in images:
                yield i, f"its file {source.path(i, m)} has the labels {named}; expected one"


def _report_absences(source: Source, split: str, report: Report) -> None:
    total = len(source.ids)
    lacks = [
        f"{name} is missing in {count} ({count / total:.1%})"
        for name, count in presence_summary(source).items()
        if count
    ]
    report(f"{split}: {total} samples; " + ("; ".join(lacks) or "every stream present in all"))
