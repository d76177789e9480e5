"""From options to a table: find out what is at the root, and list its samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

from manystream.data.folder import LAYOUT, folder
from manystream.data.manifest import is_manifest, manifest
from manystream.data.nyu import is_nyu, nyu
from manystream.data.options import DataOptions, Format
from manystream.data.prepared import is_prepared, prepared
from manystream.data.problems import Printer
from manystream.data.scenes import CLASSES, STREAMS, scenes
from manystream.data.splitting import TRAIN, HeldOut
from manystream.data.streams import StreamSpec
from manystream.data.sun_rgbd import is_sun_rgbd, sun_rgbd
from manystream.data.table import SampleTable


class _Kind(NamedTuple):
    """A kind of data set: as messages name it, whether a path is one, and who lists its samples."""

    description: str
    recognise: Callable[[Path], bool]
    importer: Callable[..., SampleTable]


# From the one that is surest to be recognised to the one that anything may be.
_KINDS: dict[Format, _Kind] = {
    "prepared": _Kind("a prepared set", is_prepared, prepared),
    "manifest": _Kind("a manifest", is_manifest, manifest),
    "nyu": _Kind("NYU Depth v2", is_nyu, nyu),
    "sun_rgbd": _Kind("SUN RGB-D", is_sun_rgbd, sun_rgbd),
    "folder": _Kind("images in folders", Path.is_dir, folder),
}


_PASSED_ON = ("kinds", "units", "depth", "max_pixels", "on_error", "verify")
"""Options that importers take by the same name."""


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


def identified(options: DataOptions, report: Printer = print) -> DataOptions:
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
    report: Printer = print,
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
    options = identified(options, report)
    given = {
        **{name: getattr(options, name) for name in _PASSED_ON},
        "splits": splits,
        "streams": streams or options.streams,
        "classes": classes,
        "num_classes": options.nyu_classes,
        "held_out": HeldOut(options.val_share, options.split_seed),
        "report": report,
    }
    assert options.format is not None
    importer = _KINDS[options.format].importer
    taken = signature(importer).parameters
    for name in ("kinds", "units"):
        if given[name] and name not in taken:
            raise ValueError(
                f"{name} is for folders and manifests; what {options.root} holds is known: leave "
                "it out"
            )
    table = importer(options.root, **{name: x for name, x in given.items() if name in taken})
    of_model, found = (streams, classes), (table.streams, table.classes)
    for what, trained, there in zip(("streams", "classes"), of_model, found, strict=True):
        if trained is not None and tuple(trained) != tuple(there):
            raise ValueError(
                f"the model was trained on the {what} {_listed(trained)}, {options.root} has "
                f"{_listed(there)}; expected the same"
            )
    return table


def _open_scenes(
    options: DataOptions,
    splits: Sequence[str],
    streams: Sequence[StreamSpec] | None,
    classes: Sequence[str] | None,
) -> SampleTable:
    fits = set(streams or ()) <= set(STREAMS)
    if not fits or (classes is not None and tuple(classes) != CLASSES):
        raise ValueError("the model was not trained on rendered scenes; name its images with root")
    smaller = max(options.num_scenes // 4, len(CLASSES))
    numbers = {split: options.num_scenes if split == TRAIN else smaller for split in splits}
    table = scenes(numbers, options.image_size)
    names = options.streams if streams is None else [spec.name for spec in streams]
    return table if names is None else table.with_streams(names)


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
