"""SUN RGB-D as it is unpacked: the folder tree and the toolbox's official split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from manystream.choices import first_few
from manystream.data.files import ImageFiles
from manystream.data.image import MAX_PIXELS
from manystream.data.official import METRES, RGB, official_table, read_strings
from manystream.data.problems import OnError, Printer, Problem, Problems
from manystream.data.splitting import VAL, HeldOut
from manystream.data.streams import StreamSpec, ToMetres
from manystream.data.table import Column, Sample, SampleTable

CLASSES = (
    *("bathroom", "bedroom", "classroom", "computer_room", "conference_room", "corridor"),
    *("dining_area", "dining_room", "discussion_area", "furniture_store", "home_office"),
    *("kitchen", "lab", "lecture_theatre", "library", "living_room", "office", "rest_space"),
    *("study_space",),
)
"""The 19 scenes of the official benchmark, those of more than 80 images."""

HOME = "https://rgbd.cs.princeton.edu (SUNRGBD.zip and SUNRGBDtoolbox.zip)"
_SPLIT_FILE = Path("SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat")
_LISTS = ("alltrain", "alltest")
_DEPTH_FOLDERS = {"filled": "depth_bfx", "raw": "depth"}
_MAX_DEPTH_M = 8.0
_CLASSES_SHOWN = 5

# A video of the second Kinect: number_date_time_device_frame, of which only the frame differs.
_VIDEO = re.compile(r"^(kv2/.+/)\d+_(.+)_rgbf\d+(?:-resize)?$")
_PLACE = re.compile(r"^(xtion/sun3ddata/[^/]+)/")
_NUMBERED = re.compile(r"^(kv1/.+/\D*)(\d+)$")
_TIMED = re.compile(r"^((?:kv2|realsense|xtion)/[^/]+/)" + r"[-_]".join([r"(\d+)"] * 6))

_NEXT_NUMBER = 1
_SAME_VISIT_S = 60


@dataclass(frozen=True)
class DecodeDepth:
    """From a depth PNG's values to metres, as the toolbox's read3dPoints does it.

    A stored value is millimetres, turned three bits to the left within 16 bits. What is further
    than 8 m is 8 m; 0 stays 0, no reading.

    Example:
        >>> DecodeDepth()(np.array([1234 << 3, 0], dtype=np.uint16))
        array([1.234, 0.   ], dtype=float32)
    """

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """Give float32 metres of the same shape.

        Raises:
            ValueError: if the values are not uint16.
        """
        if stored.dtype != np.uint16:
            raise ValueError(f"its values are {stored.dtype}; expected a 16-bit PNG")
        millimetres = (stored >> 3) | (stored << 13)
        return ToMetres("mm")(millimetres).clip(max=_MAX_DEPTH_M)


def sun_rgbd(
    root: str | Path,
    *,
    splits: Sequence[str] | None = None,
    streams: Sequence[str | StreamSpec] | None = None,
    depth: Literal["filled", "raw"] = "filled",
    held_out: HeldOut | None = None,
    max_pixels: int = MAX_PIXELS,
    on_error: OnError = "raise",
    report: Printer = print,
) -> SampleTable:
    """List the scenes of SUN RGB-D's 19 classes; depth is in metres.

    "test" is the official one; "val" is held out of the official training split by room, "train" is
    the rest, "trainval" both; train, val and test by default. A stream whose folder holds no file
    is absent.

    ``root`` is the folder SUNRGBD, or the one that it and SUNRGBDtoolbox were unpacked in;
    ``depth`` is ``"filled"`` (depth_bfx) or ``"raw"`` (depth). Other arguments are as in
    :mod:`manystream.data.files`; bad input is a folder that is missing, has no label or two files
    in a stream.

    Raises:
        ValueError: if the tree or the toolbox is missing, saying where to get it and where it is
            expected; or for an unusable folder that is not to be skipped.
    """
    tree = _tree(Path(root))
    if not is_sun_rgbd(tree):
        raise ValueError(f"no kv1, kv2, realsense or xtion in {tree}; unpack it there from {HOME}")
    files = ImageFiles(tree, max_pixels)
    return official_table(
        partial(_listed, tree, _DEPTH_FOLDERS[depth], Problems(on_error, report)),
        _LISTS,
        (Column(RGB, files), Column(METRES, files, decode=DecodeDepth())),
        CLASSES,
        splits=splits,
        streams=streams,
        held_out=held_out,
        report=report,
    )


def is_sun_rgbd(root: Path) -> bool:
    """Tell whether a folder is SUNRGBD, or holds it."""
    return any((_tree(root) / sensor).is_dir() for sensor in ("kv1", "kv2", "realsense", "xtion"))


def _tree(root: Path) -> Path:
    return root / "SUNRGBD" if (root / "SUNRGBD").is_dir() else root


def _listed(
    tree: Path, depth: str, problems: Problems, official: str, wanted: Sequence[str]
) -> list[Sample]:
    """List the scenes of an official list that are of the 19 classes, in its order."""
    path = _split_file(tree)
    folders = [_relative(folder, path) for folder in read_strings(path, official)]
    found = [_look_at(tree, folder, depth) for folder in folders]
    unusable = [x for x in found if isinstance(x, Problem)]
    problems.settle("unusable folders", unusable, "are left out")
    scenes = [x for x in found if isinstance(x, Sample)]
    groups = scene_groups([x.id for x in scenes], [x.label for x in scenes])
    _report_other_classes(wanted, scenes, problems.report)
    return [
        x._replace(group=group)
        for x, group in zip(scenes, groups, strict=True)
        if x.label in CLASSES
    ]


def _split_file(tree: Path) -> Path:
    # The two archives unpack side by side; some keep the one file only.
    places = [tree.parent / _SPLIT_FILE, tree / _SPLIT_FILE]
    places += [place.parent / "allsplit.mat" for place in (tree, tree / "x")]
    for place in places:
        if place.is_file():
            return place
    raise ValueError(f"no official split at {places[0]}; get SUNRGBDtoolbox from {HOME}")


def _relative(folder: str, path: Path) -> str:
    """Return what follows SUNRGBD in a path on the authors' machine."""
    _, _, inside = folder.partition("/SUNRGBD/")
    inside = inside.strip("/")
    if not inside or ".." in inside.split("/"):
        raise ValueError(f"{path} lists {folder!r}; expected a folder …/SUNRGBD/<sensor>/…")
    return inside


def _look_at(tree: Path, folder: str, depth: str) -> Sample | Problem:
    label_file = tree / folder / "scene.txt"
    try:
        label = label_file.read_text(encoding="utf-8").strip()
        files = {"rgb": _only_file(tree, folder, "image"), "depth": _only_file(tree, folder, depth)}
    except FileNotFoundError:
        return Problem(str(label_file), f"it is missing; unpack it from {HOME}")
    except (OSError, ValueError) as error:
        return Problem(str(tree / folder), str(error))
    if not label:
        return Problem(str(label_file), "its label is empty; expected a class")
    return Sample(folder, files, label)


def _only_file(tree: Path, folder: str, stream: str) -> str | None:
    """Return the file of a stream, relative to the tree; None if there is none."""
    try:
        found = sorted(entry.name for entry in (tree / folder / stream).iterdir())
    except FileNotFoundError:
        return None
    images = [x for x in found if x.lower().endswith((".jpg", ".png")) and not x.startswith(".")]
    if len(images) > 1:
        raise ValueError(f"{stream} holds {' and '.join(images[:2])}; expected one image")
    return f"{folder}/{stream}/{images[0]}" if images else None


def _report_other_classes(wanted: Sequence[str], scenes: Sequence[Sample], report: Printer) -> None:
    other = Counter(scene.label for scene in scenes if scene.label not in CLASSES)
    said_of = [split for split in wanted if split != VAL]
    if other and said_of:
        listed = [f"{label} {count}" for label, count in other.most_common()]
        report(
            f"{said_of[0]}: {other.total()} of {len(scenes)} official samples are outside the "
            f"{len(CLASSES)} classes and left out: {first_few(listed, _CLASSES_SHOWN)}"
        )


def scene_groups(folders: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Name the group of each folder; folders of one room share it as far as names tell.

    - ``xtion/sun3ddata/<place>/…``: all recordings of a place.
    - ``kv2/kinect2data/…_rgbf…``: all frames of a video.
    - ``kv1``: pictures with consecutive numbers and the same label. NYU's are sorted by scene, and
      the names of its scenes are not part of SUN RGB-D.
    - ``realsense`` and what else has a date and a time: pictures of one camera with the same label,
      each less than a minute after the one before it.
    - Anything else: its own.
    """
    groups, shots = list(folders), []
    for i, folder in enumerate(folders):
        if found := _PLACE.match(folder):
            groups[i] = found[1]
        elif found := _VIDEO.match(folder):
            groups[i] = found[1] + found[2]
        elif found := _NUMBERED.match(folder):
            shots.append((found[1], labels[i], int(found[2]), _NEXT_NUMBER, i))
        elif found := _TIMED.match(folder):
            with suppress(ValueError):  # Six numbers that are no date.
                moment = datetime.strptime(" ".join(found.groups()[1:]), "%Y %m %d %H %M %S")
                moment = moment.replace(tzinfo=timezone.utc)
                shots.append((found[1], labels[i], int(moment.timestamp()), _SAME_VISIT_S, i))
    for a, b in pairwise(sorted(shots)):
        (*series, before, _, first), (*of_next, position, reach, second) = a, b
        if series == of_next and position - before <= reach:
            groups[second] = groups[first]
    return groups
