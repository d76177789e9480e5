"""NYU Depth v2: the labelled MATLAB file and the official split, as they are downloaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from manystream.data.problems import Problem
from manystream.data.source import StreamSpec
from manystream.data.sources.matlab import array_shapes, read_numbers, read_strings
from manystream.data.sources.nyu_source import Frame, NyuSource
from manystream.data.sources.wanted import TEST, TRAIN, TRAINVAL, VAL, Wanted

SCENE_TYPES = (
    "basement",
    "bathroom",
    "bedroom",
    "bookstore",
    "cafe",
    "classroom",
    "computer_lab",
    "conference_room",
    "dinette",
    "dining_room",
    "excercise_room",
    "foyer",
    "furniture_store",
    "home_office",
    "home_storage",
    "indoor_balcony",
    "kitchen",
    "laundry_room",
    "living_room",
    "office",
    "office_kitchen",
    "playroom",
    "printer_room",
    "reception_room",
    "student_lounge",
    "study",
    "study_room",
)
"""All scene types, spelt as in the file."""

COMMON_TYPES = (
    "bathroom",
    "bedroom",
    "bookstore",
    "classroom",
    "dining_room",
    "home_office",
    "kitchen",
    "living_room",
    "office",
)
OTHER = "other"
"""The standard ten classes: nine common types, and the 18 others as one."""

STREAMS = (StreamSpec("rgb", 3, "color"), StreamSpec("depth", 1, "depth", "m"))

HOME = "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"
LABELED, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
_INDEX_LISTS = {TRAIN: "trainNdxs", VAL: "trainNdxs", TRAINVAL: "trainNdxs", TEST: "testNdxs"}
_RECORDING = re.compile(r"(?<=\d)[a-z]$")
_DEPTHS = {"filled": "depths", "raw": "rawDepths"}


def is_nyu(root: Path) -> bool:
    """Whether a path is the labelled file or the folder it is in."""
    return _labeled(root).is_file()


def open_nyu(wanted: Wanted) -> NyuSource:
    """Open one split.

    ``test`` is the official one; ``val`` is held out of the official training split by scene,
    ``train`` is the rest, ``trainval`` both.

    Raises:
        ValueError: if a file is missing, saying where to get it and where it is expected, or
            damaged; or for a frame of an unknown scene type, unless such are to be skipped.
    """
    wanted.without_hints()
    file = _existing(_labeled(wanted.root))
    frames = _known_frames(wanted, _official_frames(wanted, file), file)
    if wanted.split != TEST:
        numbers = wanted.part([x.target for x in frames], [x.scene for x in frames])
        frames = [frames[i] for i in numbers]
    streams = wanted.numbers_of(STREAMS)
    arrays = ("images", _DEPTHS[wanted.options.depth])
    return NyuSource(
        file,
        f"{wanted.split}-{wanted.options.depth}-{wanted.options.nyu_classes}",
        [STREAMS[m] for m in streams],
        [arrays[m] for m in streams],
        _classes(wanted),
        [frame._replace(has=(True,) * len(streams)) for frame in frames],
    )


class _Labeled(NamedTuple):
    """A frame's number from 0, its scene type and its room."""

    number: int
    type: str
    scene: str


def _labeled(root: Path) -> Path:
    return root if root.name == LABELED else root / LABELED


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"no file {path}; get {path.name} from {HOME}")
    return path


def _official_frames(wanted: Wanted, file: Path) -> list[_Labeled]:
    """Frames of a split, in the order of the official list."""
    if wanted.split not in _INDEX_LISTS:
        raise ValueError(
            f"split={wanted.split!r} is none of NYU's; expected one of {', '.join(_INDEX_LISTS)}"
        )
    types, scenes = read_strings(file, "sceneTypes"), read_strings(file, "scenes")
    _check_arrays(file, len(types), len(scenes))
    splits = _existing(file.parent / SPLITS)
    numbers = read_numbers(splits, _INDEX_LISTS[wanted.split]) - 1
    if numbers.size == 0 or numbers.min() < 0 or numbers.max() >= len(types):
        raise ValueError(f"{splits} names frames that are not among the {len(types)} of {file}")
    # A letter after the number tells recordings of one room apart.
    rooms = [_RECORDING.sub("", scene) for scene in scenes]
    return [_Labeled(i, types[i], rooms[i]) for i in numbers.tolist()]


def _check_arrays(file: Path, num_types: int, num_scenes: int) -> None:
    shapes = array_shapes(file, ("images", *_DEPTHS.values()))
    counts = {"sceneTypes": num_types, "scenes": num_scenes}
    counts |= {name: shape[0] for name, shape in shapes.items()}
    if len(set(counts.values())) > 1 or any(len(s) != 3 for s in list(shapes.values())[1:]):
        raise ValueError(f"{file} is not as expected: frames are {counts}; get it from {HOME}")


def _known_frames(wanted: Wanted, frames: Sequence[_Labeled], file: Path) -> list[Frame]:
    unknown = [
        Problem(
            f"{file}, frame {frame.number + 1}",
            f"its scene type {frame.type!r} is none of the {len(SCENE_TYPES)}",
        )
        for frame in frames
        if frame.type not in SCENE_TYPES
    ]
    wanted.settle("frames of unknown type", "are left out")(unknown)
    classes = _classes(wanted)
    return [
        Frame(x.number, classes.index(x.type if x.type in classes else OTHER), x.scene, ())
        for x in frames
        if x.type in SCENE_TYPES
    ]


def _classes(wanted: Wanted) -> tuple[str, ...]:
    return SCENE_TYPES if wanted.options.nyu_classes == 27 else (*COMMON_TYPES, OTHER)
