"""SUN RGB-D as it is unpacked: the folder tree and the toolbox's official split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from manystream.data.problems import Problem
from manystream.data.source import StreamSpec
from manystream.data.sources.files import FileSample, FileSource
from manystream.data.sources.matlab import read_strings
from manystream.data.sources.sun_rgbd_scenes import scene_groups
from manystream.data.sources.wanted import TEST, TRAIN, TRAINVAL, VAL, Wanted
from manystream.data.units import ToMetres

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

STREAMS = (StreamSpec("rgb", 3, "color"), StreamSpec("depth", 1, "depth", "m"))

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


def is_sun_rgbd(root: Path) -> bool:
    """Whether a folder is SUNRGBD, or holds it."""
    return any((_tree(root) / sensor).is_dir() for sensor in ("kv1", "kv2", "realsense", "xtion"))


def open_sun_rgbd(wanted: Wanted) -> FileSource:
    """Open the scenes of the 19 classes in one split.

    ``test`` is the official one; ``val`` is held out of the official training split by scene,
    ``train`` is the rest, ``trainval`` both. A stream whose folder holds no file is absent.

    Raises:
        ValueError: if the tree or the toolbox is missing, saying where to get it and where it is
            expected; or for a folder that is missing, has no label or two files in a stream, unless
            such are to be skipped.
    """
    wanted.without_hints()
    tree = _tree(wanted.root)
    found = _look(tree, _listed(wanted, tree), _DEPTH_FOLDERS[wanted.options.depth])
    wanted.settle("unusable folders", "are left out")([x for x in found if isinstance(x, Problem)])
    scenes = [scene for scene in found if isinstance(scene, _Scene)]
    groups = scene_groups([x.folder for x in scenes], [x.label for x in scenes])
    samples = [
        FileSample(x.folder, CLASSES.index(x.label), x.files, group)
        for x, group in zip(scenes, groups, strict=True)
        if x.label in CLASSES
    ]
    _report_other_classes(wanted, scenes)
    if wanted.split != TEST:
        numbers = wanted.part([x.target for x in samples], [x.group for x in samples])
        samples = [samples[i] for i in numbers]
    return _selected(wanted, tree, samples)


class _Scene(NamedTuple):
    """One scene folder: its path below the tree, its label, its files in every stream."""

    folder: str
    label: str
    files: tuple[str | None, ...]


def _tree(root: Path) -> Path:
    return root / "SUNRGBD" if (root / "SUNRGBD").is_dir() else root


def _listed(wanted: Wanted, tree: Path) -> list[str]:
    """Folders of a split, relative to the tree, in the official order."""
    if wanted.split not in _LISTS:
        raise ValueError(
            f"split={wanted.split!r} is none of SUN RGB-D's; expected one of {', '.join(_LISTS)}"
        )
    if not is_sun_rgbd(wanted.root):
        raise ValueError(f"no kv1, kv2, realsense or xtion in {tree}; unpack it there from {HOME}")
    path = _split_file(tree)
    listed = read_strings(path, _LISTS[wanted.split])
    return [_relative(folder, path) for folder in listed]


def _split_file(tree: Path) -> Path:
    # The two archives unpack side by side; some keep the one file only.
    places = [tree.parent / _SPLIT_FILE, tree / _SPLIT_FILE]
    places += [place.parent / "allsplit.mat" for place in (tree, tree / "x")]
    for place in places:
        if place.is_file():
            return place
    raise ValueError(f"no official split at {places[0]}; get SUNRGBDtoolbox from {HOME}")


def _relative(folder: str, path: Path) -> str:
    """What follows SUNRGBD in a path on the authors' machine."""
    _, _, inside = folder.partition("/SUNRGBD/")
    inside = inside.strip("/")
    if not inside or ".." in inside.split("/"):
        raise ValueError(f"{path} lists {folder!r}; expected a folder …/SUNRGBD/<sensor>/…")
    return inside


def _look(tree: Path, folders: Sequence[str], depth: str) -> list[_Scene | Problem]:
    return [_look_at(tree, folder, depth) for folder in folders]


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
    """The file of a stream, relative to the tree; None if there is none."""
    try:
        found = sorted(entry.name for entry in (tree / folder / stream).iterdir())
    except FileNotFoundError:
        return None
    images = [x for x in found if x.lower().endswith((".jpg", ".png")) and not x.startswith(".")]
    if len(images) > 1:
        raise ValueError(f"{stream} holds {' and '.join(images[:2])}; expected one image")
    return f"{folder}/{stream}/{images[0]}" if images else None


def _report_other_classes(wanted: Wanted, scenes: Sequence[_Scene]) -> None:
    other = Counter(scene.label for scene in scenes if scene.label not in CLASSES)
    if other and wanted.split != VAL:
        listed = [f"{label} {count}" for label, count in other.most_common(_CLASSES_SHOWN)]
        listed += ["…"] * (len(other) > _CLASSES_SHOWN)
        wanted.report(
            f"{wanted.split}: {other.total()} of {len(scenes)} official samples are outside the "
            f"{len(CLASSES)} classes and left out: {', '.join(listed)}"
        )


def _selected(wanted: Wanted, tree: Path, samples: Sequence[FileSample]) -> FileSource:
    numbers = wanted.numbers_of(STREAMS)
    return FileSource(
        tree,
        f"{wanted.split}-{wanted.options.depth}",
        [STREAMS[m] for m in numbers],
        CLASSES,
        [x._replace(files=tuple(x.files[m] for m in numbers)) for x in samples],
        decode={"depth": DecodeDepth()},
        max_pixels=wanted.options.max_pixels,
    )
