"""SUN RGB-D as it is unpacked: the folder tree and the toolbox's official split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from manystream.data.image import MAX_PIXELS
from manystream.data.matlab import read_strings
from manystream.data.problems import OnError, Problem, Problems, Report
from manystream.data.splitting import TEST, TRAIN, TRAINVAL, VAL, HeldOut, by_official_list
from manystream.data.streams import RGBD_IN_METRES, StreamSpec, ToMetres, names_of
from manystream.data.sun_rgbd_rooms import scene_groups
from manystream.data.table import Column, ImageFiles, SampleTable

CLASSES = (
    "bathroom",
    "bedroom",
    "classroom",
    "computer_room",
    "conference_room",
    "corridor",
    "dining_area",
    "dining_room",
    "discussion_area",
    "furniture_store",
    "home_office",
    "kitchen",
    "lab",
    "lecture_theatre",
    "library",
    "living_room",
    "office",
    "rest_space",
    "study_space",
)
"""The 19 scenes of the official benchmark, those of more than 80 images."""

HOME = "https://rgbd.cs.princeton.edu (SUNRGBD.zip and SUNRGBDtoolbox.zip)"
_SPLIT_FILE = Path("SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat")
_LISTS = {TRAIN: "alltrain", VAL: "alltrain", TRAINVAL: "alltrain", TEST: "alltest"}
_DEPTH_FOLDERS = {"filled": "depth_bfx", "raw": "depth"}
_MAX_DEPTH_M = 8.0
_CLASSES_SHOWN = 5


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
    report: Report = print,
) -> SampleTable:
    """List the scenes of SUN RGB-D's 19 classes; depth is in metres.

    "test" is the official one; "val" is held out of the official training split by room, "train" is
    the rest, "trainval" both. A stream whose folder holds no file is absent.

    Args:
        root: the folder SUNRGBD, or the one that it and SUNRGBDtoolbox were unpacked in.
        splits: those to list; train, val and test by default.
        streams: "rgb", "depth" or both, in order.
        depth: ``"filled"`` (depth_bfx) or ``"raw"`` (depth).
        held_out: how "val" is held out.
        max_pixels: height × width above which a file is unreadable.
        on_error: what a folder does that is missing, has no label or two files in a stream:
            ``"raise"``, or ``"skip"`` leaves it out.
        report: takes lines about what is left out and held out.

    Raises:
        ValueError: if the tree or the toolbox is missing, saying where to get it and where it is
            expected; or for an unusable folder that is not to be skipped.
    """
    splits, held_out = splits or (TRAIN, VAL, TEST), held_out or HeldOut()
    wanted, tree = by_official_list(splits, _LISTS), _tree(Path(root))
    if not is_sun_rgbd(tree):
        raise ValueError(f"no kv1, kv2, realsense or xtion in {tree}; unpack it there from {HOME}")
    scenes: list[_Scene] = []
    names: list[str] = []
    for official, of_list in wanted.items():
        found = _scenes(tree, official, depth, Problems(on_error, report))
        _report_other_classes(of_list, found, report)
        known = [scene for scene in found if scene.label in CLASSES]
        targets = [CLASSES.index(x.label) for x in known]
        names += held_out.divide(of_list, targets, [x.group for x in known], report)
        scenes += known
    files, (rgb, metres) = ImageFiles(tree, max_pixels), RGBD_IN_METRES
    table = SampleTable(
        (
            Column(rgb, files, [x.files[0] for x in scenes]),
            Column(metres, files, [x.files[1] for x in scenes], DecodeDepth()),
        ),
        CLASSES,
        [x.folder for x in scenes],
        torch.tensor([CLASSES.index(x.label) for x in scenes]),
        names,
        [x.group for x in scenes],
        held_out if VAL in names else None,
    )
    return table.only(splits).with_streams(names_of(streams, RGBD_IN_METRES))


def is_sun_rgbd(root: Path) -> bool:
    """Tell whether a folder is SUNRGBD, or holds it."""
    return any((_tree(root) / sensor).is_dir() for sensor in ("kv1", "kv2", "realsense", "xtion"))


class _Scene(NamedTuple):
    """One scene folder: its path below the tree, label, files in every stream, and room."""

    folder: str
    label: str
    files: tuple[str | None, ...]
    group: str = ""


def _tree(root: Path) -> Path:
    return root / "SUNRGBD" if (root / "SUNRGBD").is_dir() else root


def _scenes(tree: Path, official: str, depth: str, problems: Problems) -> list[_Scene]:
    """Look into the folders of an official list, in its order."""
    path = _split_file(tree)
    listed = [_relative(folder, path) for folder in read_strings(path, official)]
    found = [_look_at(tree, folder, _DEPTH_FOLDERS[depth]) for folder in listed]
    unusable = [x for x in found if isinstance(x, Problem)]
    problems.settle("unusable folders", unusable, "are left out")
    scenes = [x for x in found if isinstance(x, _Scene)]
    groups = scene_groups([x.folder for x in scenes], [x.label for x in scenes])
    return [x._replace(group=group) for x, group in zip(scenes, groups, strict=True)]


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


def _look_at(tree: Path, folder: str, depth: str) -> _Scene | Problem:
    label_file = tree / folder / "scene.txt"
    try:
        label = label_file.read_text(encoding="utf-8").strip()
        files = (_only_file(tree, folder, "image"), _only_file(tree, folder, depth))
    except FileNotFoundError:
        return Problem(str(label_file), f"it is missing; unpack it from {HOME}")
    except (OSError, ValueError) as error:
        return Problem(str(tree / folder), str(error))
    if not label:
        return Problem(str(label_file), "its label is empty; expected a class")
    return _Scene(folder, label, files)


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


def _report_other_classes(wanted: Sequence[str], scenes: Sequence[_Scene], report: Report) -> None:
    other = Counter(scene.label for scene in scenes if scene.label not in CLASSES)
    said_of = [split for split in wanted if split != VAL]
    if other and said_of:
        listed = [f"{label} {count}" for label, count in other.most_common(_CLASSES_SHOWN)]
        listed += ["…"] * (len(other) > _CLASSES_SHOWN)
        report(
            f"{said_of[0]}: {other.total()} of {len(scenes)} official samples are outside the "
            f"{len(CLASSES)} classes and left out: {', '.join(listed)}"
        )
