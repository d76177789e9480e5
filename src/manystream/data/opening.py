"""From options to tables: find out what is at the root, list its samples, look at each once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from manystream.data.folder import LAYOUT, folder
from manystream.data.manifest import is_manifest, manifest
from manystream.data.nyu import is_nyu, nyu
from manystream.data.options import DataOptions, Format
from manystream.data.pairing import mismatches, one_sided_classes
from manystream.data.prepared import is_prepared, prepared
from manystream.data.problems import OnError, Problem, Problems, Report
from manystream.data.scenes import RenderedScenes, SceneSource, scenes
from manystream.data.splitting import TRAIN, HeldOut
from manystream.data.statistics import StreamStatistics
from manystream.data.streams import StreamSpec
from manystream.data.sun_rgbd import is_sun_rgbd, sun_rgbd
from manystream.data.survey import Image, Progress, look_at, statistics, unusable
from manystream.data.table import ImageFiles, SampleTable

_SCENES_SURVEYED = 256


class _Kind(NamedTuple):
    """A kind of data set: as messages name it, and whether a path is one."""

    description: str
    recognise: Callable[[Path], bool]


_KINDS: dict[Format, _Kind] = {
    "prepared": _Kind("a prepared set", is_prepared),
    "manifest": _Kind("a manifest", is_manifest),
    "nyu": _Kind("NYU Depth v2", is_nyu),
    "sun_rgbd": _Kind("SUN RGB-D", is_sun_rgbd),
    "folder": _Kind("images in folders", Path.is_dir),
}
"""From the one that is surest to be recognised to the one that anything may be."""


def recognise(root: Path) -> Format:
    """Find out what is at a path.

    Raises:
        ValueError: if it is nothing that can be opened.
    """
    for name, kind in _KINDS.items():
        if kind.recognise(root):
            return name
    raise ValueError(
        f"root {root} is no data set; expected a folder laid out as {LAYOUT}, SUN RGB-D or "
        "NYU Depth v2 as unpacked, a manifest (.csv, .parquet), or a prepared set"
    )


def identified(options: DataOptions, report: Report = print) -> DataOptions:
    """Return options whose format is known; one that was found out is said.

    Raises:
        ValueError: if nothing at the root can be opened.
    """
    if options.root is None or options.format is not None:
        return options
    found = recognise(options.root)
    report(f"found {_KINDS[found].description} at {options.root}")
    return replace(options, format=found)


def open_data(
    options: DataOptions,
    splits: Sequence[str] | None = None,
    *,
    streams: Sequence[StreamSpec] | None = None,
    classes: Sequence[str] | None = None,
    report: Report = print,
) -> SampleTable:
    """List the samples of a data set, without a look at its images.

    Args:
        options: where it is.
        splits: those to list, the one to train on first; by default the options' ``train_split``
            and ``val_split``.
        streams: the model's streams; found in the data if left out.
        classes: the model's classes; found in the data if left out.
        report: takes lines about what was found, left out and held out.

    Raises:
        ValueError: if a split is missing or empty, does not fit the model, or holds bad input and
            ``on_error`` is ``"raise"``.
    """
    splits = list(splits or dict.fromkeys((options.train_split, options.val_split)))
    _check_streams(options, streams)
    if options.root is None:
        return _open_scenes(options, splits, streams, classes)
    table = _open(identified(options, report), splits, streams, classes, report)
    for what, trained, found in (
        ("streams", streams, table.streams),
        ("classes", classes, table.classes),
    ):
        if trained is not None and tuple(trained) != tuple(found):
            raise ValueError(
                f"the model was trained on the {what} {_listed(trained)}, {options.root} has "
                f"{_listed(found)}; expected the same"
            )
    return table


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
    report: Report = print,
    progress: Progress | None = None,
) -> Usable:
    """Look at every image of a table once, and take out what cannot be used.

    Args:
        table: the samples.
        splits: the splits that are to be used.
        options: what bad input does, and whether all images of a sample show the same view.
        trained: whether this is for a model that is trained already: streams and classes that do
            not seem to fit together are then told only.
        report: takes lines about absent and unusable images.
        progress: called with how many images have been looked at and how many there are, for those
            that are not known from an earlier run.

    Raises:
        ValueError: if there is bad input and ``on_error`` is ``"raise"``.
    """
    for split in splits:
        _check_pairing(table.part(split), split, "skip" if trained else options.on_error, report)
    table = _one_label_each(table, Problems(options.on_error, report))
    known = _known_statistics(table, splits)
    if known is None:
        found = look_over(
            table, splits, Problems(options.on_error, report), options.same_view, progress
        )
    else:
        found = Usable(table, known)
    for split in splits:
        _report_absences(found.table.part(split), split, report)
    return found


def look_over(
    table: SampleTable,
    splits: Sequence[str],
    problems: Problems,
    same_view: bool = False,
    progress: Progress | None = None,
) -> Usable:
    """Look at every image once; take out what cannot be used, unless it is to stop the run.

    Args:
        table: the samples.
        splits: those to give statistics of.
        problems: what bad input does.
        same_view: whether the images of a sample are unusable if they differ in aspect ratio.
        progress: as for :func:`usable_samples`.
    """
    looks = look_at(table, progress=progress)
    bad = unusable(table, looks, same_view=same_view)
    doubts = {image: x.doubt for image, x in looks.items() if x.doubt and image not in bad}
    problems.settle(
        "depth images with values that are no depth",
        _problems(table, doubts),
        "count as no reading",
    )
    problems.settle("unreadable images", _problems(table, bad), "count as absent")
    good = {image: look for image, look in looks.items() if image not in bad}
    found = {split: statistics(table, good, table.rows(split)) for split in splits}
    readable = table.without(bad) if bad else table
    if dropped := len(table) - len(readable):
        problems.report(f"{dropped} samples had nothing else and are left out")
    return Usable(readable, found)


def _problems(table: SampleTable, images: dict[Image, str]) -> list[Problem]:
    return [Problem(str(table.path(*image)), reason) for image, reason in images.items()]


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


def _open(
    options: DataOptions,
    splits: Sequence[str],
    streams: Sequence[StreamSpec] | None,
    classes: Sequence[str] | None,
    report: Report,
) -> SampleTable:
    assert options.root is not None
    root, held_out = options.root, HeldOut(options.val_share, options.split_seed)
    told: dict[str, Any] = {"splits": splits, "streams": streams or options.streams}
    if options.format in ("prepared", "sun_rgbd", "nyu"):
        _check_not_told(options)
    if options.format == "prepared":
        return prepared(root, **told, classes=classes, verify=options.verify)
    told |= {"on_error": options.on_error, "report": report}
    if options.format == "nyu":
        num_classes = options.nyu_classes
        return nyu(root, **told, depth=options.depth, num_classes=num_classes, held_out=held_out)
    told["max_pixels"] = options.max_pixels
    if options.format == "sun_rgbd":
        return sun_rgbd(root, **told, depth=options.depth, held_out=held_out)
    told |= {"classes": classes, "kinds": options.kinds, "units": options.units}
    if options.format == "manifest":
        return manifest(root, **told, held_out=held_out)
    return folder(root, **told)


def _open_scenes(
    options: DataOptions,
    splits: Sequence[str],
    streams: Sequence[StreamSpec] | None,
    classes: Sequence[str] | None,
) -> SampleTable:
    fits = set(streams or ()) <= set(SceneSource.streams)
    if not fits or (classes is not None and tuple(classes) != SceneSource.classes):
        raise ValueError("the model was not trained on rendered scenes; name its images with root")
    smaller = max(options.num_scenes // 4, 12)
    numbers = {split: options.num_scenes if split == TRAIN else smaller for split in splits}
    table = scenes(numbers, options.image_size)
    names = options.streams if streams is None else [spec.name for spec in streams]
    return table if names is None else table.with_streams(names)


def _check_not_told(options: DataOptions) -> None:
    """Refuse to be told what the files of a known data set hold."""
    for option in ("kinds", "units"):
        if getattr(options, option):
            raise ValueError(
                f"{option} is for folders and manifests; what {options.root} holds is known: leave "
                "it out"
            )


def _check_streams(options: DataOptions, streams: Sequence[StreamSpec] | None) -> None:
    """Refuse to choose among the streams of a trained model, which has a place for each."""
    if streams is None or options.streams is None:
        return
    names = [spec.name for spec in streams]
    if sorted(names) != sorted(options.streams):
        raise ValueError(
            f"streams is {', '.join(options.streams)}, and the model's streams are "
            f"{', '.join(names)}; leave it out: a stream that the data lack is absent, and "
            "blanked_streams of `evaluate` takes streams away"
        )


def _listed(items: Sequence[Any]) -> str:
    return ", ".join(str(item) for item in items)


def _check_pairing(table: SampleTable, split: str, on_error: OnError, report: Report) -> None:
    """Say what cannot have been meant; before training, it stops the run unless it is skipped."""
    what = f"{split}: streams or classes that do not fit together"
    Problems(on_error, report).settle(what, mismatches(table), "are used as they are")
    for name, streams in one_sided_classes(table).items():
        report(f"{split}: class {name!r} has no image of {', '.join(streams)}")


def _one_label_each(table: SampleTable, problems: Problems) -> SampleTable:
    """Take out samples that share a file and not the label, unless they are to stop the run."""
    found = dict(sorted(_contradicted(table)))
    problems.settle(
        "samples with a file of another label",
        [Problem(table.ids[i], reason) for i, reason in found.items()],
        "are left out",
    )
    return table.select([i for i in range(len(table)) if i not in found]) if found else table


def _contradicted(table: SampleTable) -> Iterator[tuple[int, str]]:
    """Find samples that share a file with one of another label, and say what is wrong."""
    having: dict[tuple[int, int], list[Image]] = {}
    for i, m in table.present.nonzero().tolist():
        in_files = isinstance(table.columns[m].storage, ImageFiles)
        if in_files and (key := _file_key(table.path(i, m))) is not None:
            having.setdefault(key, []).append((i, m))
    targets = table.targets.tolist()
    for images in having.values():
        if len({targets[i] for i, _ in images}) > 1:
            named = ", ".join(dict.fromkeys(table.classes[targets[i]] for i, _ in images))
            for i, m in images:
                yield i, f"its file {table.path(i, m)} has the labels {named}; expected one"


def _file_key(file: Path) -> tuple[int, int] | None:
    """Return the same for two paths if and only if they lead to one file; None if to none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _report_absences(table: SampleTable, split: str, report: Report) -> None:
    total = len(table)
    lacks = [
        f"{name} is missing in {count} ({count / total:.1%})"
        for name, count in table.absences().items()
        if count
    ]
    report(f"{split}: {total} samples; " + ("; ".join(lacks) or "every stream present in all"))
