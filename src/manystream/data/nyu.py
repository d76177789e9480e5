"""NYU Depth v2: the labelled MATLAB file and the official split, as they are downloaded."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from manystream.data.image import UnreadableImageError
from manystream.data.matlab import array_shapes, read_numbers, read_strings
from manystream.data.problems import OnError, Problem, Problems, Report
from manystream.data.splitting import TEST, TRAIN, TRAINVAL, VAL, HeldOut, by_official_list
from manystream.data.streams import RGBD_IN_METRES, StreamSpec, names_of
from manystream.data.table import Column, SampleTable

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

HOME = "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"
LABELED, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
_LISTS = {TRAIN: "trainNdxs", VAL: "trainNdxs", TRAINVAL: "trainNdxs", TEST: "testNdxs"}
_RECORDING = re.compile(r"(?<=\d)[a-z]$")
_DEPTHS = {"filled": "depths", "raw": "rawDepths"}


def nyu(
    root: str | Path,
    *,
    splits: Sequence[str] | None = None,
    streams: Sequence[str | StreamSpec] | None = None,
    depth: Literal["filled", "raw"] = "filled",
    num_classes: Literal[10, 27] = 10,
    held_out: HeldOut | None = None,
    on_error: OnError = "raise",
    report: Report = print,
) -> SampleTable:
    """List the labelled frames of NYU Depth v2; depth is in metres.

    "test" is the official one; "val" is held out of the official training split by room, "train" is
    the rest, "trainval" both.

    Args:
        root: nyu_depth_v2_labeled.mat or its folder, with splits.mat beside it.
        splits: those to list; train, val and test by default.
        streams: "rgb", "depth" or both, in order.
        depth: ``"filled"`` (depths) or ``"raw"`` (rawDepths).
        num_classes: 10, the nine common scene types and the others as one, or all 27 types.
        held_out: how "val" is held out.
        on_error: what a frame of an unknown scene type does: ``"raise"``, or ``"skip"`` leaves it
            out.
        report: takes lines about what is left out and held out.

    Raises:
        ValueError: if a file is missing, saying where to get it and where it is expected, or
            damaged; or for a frame of an unknown scene type that is not to be skipped.
    """
    splits, held_out = splits or (TRAIN, VAL, TEST), held_out or HeldOut()
    wanted = by_official_list(splits, _LISTS)
    file = _existing(_labeled(Path(root)))
    classes = SCENE_TYPES if num_classes == 27 else (*COMMON_TYPES, OTHER)
    everything = _all_frames(file)
    frames: list[_Frame] = []
    names: list[str] = []
    for official, of_list in wanted.items():
        known = _known(_listed(file, official, everything), file, Problems(on_error, report))
        targets = [_target(x, classes) for x in known]
        names += held_out.divide(of_list, targets, [x.room for x in known], report)
        frames += known
    table = SampleTable(
        tuple(
            Column(spec, _Frames(file, array), [x.number for x in frames])
            for spec, array in zip(RGBD_IN_METRES, ("images", _DEPTHS[depth]), strict=True)
        ),
        classes,
        [f"{x.number + 1:04d}" for x in frames],
        torch.tensor([_target(x, classes) for x in frames]),
        names,
        [x.room for x in frames],
        held_out if VAL in names else None,
    )
    return table.only(splits).with_streams(names_of(streams, RGBD_IN_METRES))


def is_nyu(root: Path) -> bool:
    """Tell whether a path is the labelled file or the folder it is in."""
    return _labeled(root).is_file()


@dataclass(frozen=True)
class _Frames:
    """One array of the labelled file; a cell is the number of a frame, from 0."""

    root: Path
    array: str

    def read(self, cell: int) -> np.ndarray:
        """Read one image: colour (H, W, 3), uint8, or depth (H, W, 1), float32 metres."""
        import h5py  # Only those who have such files need it.

        try:
            # Opened anew each time: a handle must not be shared with a worker process.
            with h5py.File(self.root, "r") as file:
                stored = file[self.array][cell]
        except (OSError, KeyError) as error:
            raise UnreadableImageError(self.path(cell), str(error)) from error
        # MATLAB stores columns first.
        return np.ascontiguousarray(np.atleast_3d(stored.T))

    def path(self, cell: int) -> Path:
        """Return what stands for a frame in messages: ``<file>/<array>/<number from 1>``."""
        return self.root / self.array / f"{cell + 1:04d}"

    def stamp(self, cell: int) -> Hashable:
        status = self.root.stat()
        return self.array, cell, status.st_size, status.st_mtime_ns


class _Frame(NamedTuple):
    """A frame's number from 0, its scene type and its room."""

    number: int
    type: str
    room: str


def _labeled(root: Path) -> Path:
    return root if root.name == LABELED else root / LABELED


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"no file {path}; get {path.name} from {HOME}")
    return path


def _all_frames(file: Path) -> list[_Frame]:
    types, scenes = read_strings(file, "sceneTypes"), read_strings(file, "scenes")
    shapes = array_shapes(file, ("images", *_DEPTHS.values()))
    counts = {"sceneTypes": len(types), "scenes": len(scenes)}
    counts |= {name: shape[0] for name, shape in shapes.items()}
    if len(set(counts.values())) > 1 or any(len(s) != 3 for s in list(shapes.values())[1:]):
        raise ValueError(f"{file} is not as expected: frames are {counts}; get it from {HOME}")
    # A letter after the number tells recordings of one room apart.
    rooms = [_RECORDING.sub("", scene) for scene in scenes]
    return [_Frame(*frame) for frame in zip(range(len(types)), types, rooms, strict=True)]


def _listed(file: Path, official: str, frames: Sequence[_Frame]) -> list[_Frame]:
    """Return the frames of an official list, in its order."""
    path = _existing(file.parent / SPLITS)
    numbers = read_numbers(path, official) - 1
    if numbers.size == 0 or numbers.min() < 0 or numbers.max() >= len(frames):
        raise ValueError(f"{path} names frames that are not among the {len(frames)} of {file}")
    return [frames[number] for number in numbers.tolist()]


def _known(frames: Sequence[_Frame], file: Path, problems: Problems) -> list[_Frame]:
    unknown = [
        Problem(
            f"{file}, frame {frame.number + 1}",
            f"its scene type {frame.type!r} is none of the {len(SCENE_TYPES)}",
        )
        for frame in frames
        if frame.type not in SCENE_TYPES
    ]
    problems.settle("frames of unknown type", unknown, "are left out")
    return [frame for frame in frames if frame.type in SCENE_TYPES]


def _target(frame: _Frame, classes: Sequence[str]) -> int:
    return classes.index(frame.type if frame.type in classes else OTHER)
