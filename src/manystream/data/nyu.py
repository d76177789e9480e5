"""NYU Depth v2: the labelled MATLAB file and the official split, as they are downloaded."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from manystream.data.image import UnreadableImageError
from manystream.data.official import (
    METRES,
    RGB,
    array_shapes,
    official_table,
    read_numbers,
    read_strings,
)
from manystream.data.problems import OnError, Printer, Problem, Problems
from manystream.data.splitting import HeldOut
from manystream.data.streams import StreamSpec
from manystream.data.table import Column, Sample, SampleTable

SCENE_TYPES = (
    *("basement", "bathroom", "bedroom", "bookstore", "cafe", "classroom", "computer_lab"),
    *("conference_room", "dinette", "dining_room", "excercise_room", "foyer", "furniture_store"),
    *("home_office", "home_storage", "indoor_balcony", "kitchen", "laundry_room", "living_room"),
    *("office", "office_kitchen", "playroom", "printer_room", "reception_room", "student_lounge"),
    *("study", "study_room"),
)
"""All scene types, spelt as in the file."""

COMMON_TYPES = (
    *("bathroom", "bedroom", "bookstore", "classroom", "dining_room", "home_office", "kitchen"),
    *("living_room", "office"),
)
OTHER = "other"
"""The standard ten classes: nine common types, and the 18 others as one."""

HOME = "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"
LABELED, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
_LISTS = ("trainNdxs", "testNdxs")
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
    report: Printer = print,
) -> SampleTable:
    """List the labelled frames of NYU Depth v2; depth is in metres.

    "test" is the official one; "val" is held out of the official training split by room, "train" is
    the rest, "trainval" both; train, val and test by default.

    ``root`` is nyu_depth_v2_labeled.mat or its folder, with splits.mat beside it; ``depth`` is
    ``"filled"`` (depths) or ``"raw"`` (rawDepths); ``num_classes`` is 10, the nine common scene
    types and the others as one, or all 27 types. Other arguments are as in
    :mod:`manystream.data.files`; bad input is a frame of an unknown scene type.

    Raises:
        ValueError: if a file is missing, saying where to get it and where it is expected, or
            damaged; or for a frame of an unknown scene type that is not to be skipped.
    """
    file = _existing(_labeled(Path(root)))
    frames, problems = _all_frames(file), Problems(on_error, report)
    classes = SCENE_TYPES if num_classes == 27 else (*COMMON_TYPES, OTHER)

    def listed(official: str, wanted: Sequence[str]) -> list[Sample]:
        known = _known(_of_list(file, official, frames), file, problems)
        return [x if x.label in classes else x._replace(label=OTHER) for x in known]

    return official_table(
        listed,
        _LISTS,
        (Column(RGB, _Frames(file, "images")), Column(METRES, _Frames(file, _DEPTHS[depth]))),
        classes,
        splits=splits,
        streams=streams,
        held_out=held_out,
        report=report,
    )


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


def _labeled(root: Path) -> Path:
    return root if root.name == LABELED else root / LABELED


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"no file {path}; get {path.name} from {HOME}")
    return path


def _all_frames(file: Path) -> list[Sample]:
    """List every frame by its number, labelled with its scene type."""
    types, scenes = read_strings(file, "sceneTypes"), read_strings(file, "scenes")
    shapes = array_shapes(file, ("images", *_DEPTHS.values()))
    counts = {"sceneTypes": len(types), "scenes": len(scenes)}
    counts |= {name: shape[0] for name, shape in shapes.items()}
    if len(set(counts.values())) > 1 or any(len(s) != 3 for s in list(shapes.values())[1:]):
        raise ValueError(f"{file} is not as expected: frames are {counts}; get it from {HOME}")
    return [
        # A letter after the number tells recordings of one room apart.
        Sample(f"{i + 1:04d}", {"rgb": i, "depth": i}, label, group=_RECORDING.sub("", scene))
        for i, (label, scene) in enumerate(zip(types, scenes, strict=True))
    ]


def _of_list(file: Path, official: str, frames: Sequence[Sample]) -> list[Sample]:
    """Return the frames of an official list, in its order."""
    path = _existing(file.parent / SPLITS)
    numbers = read_numbers(path, official)
    if not numbers or min(numbers) < 1 or max(numbers) > len(frames):
        raise ValueError(f"{path} names frames that are not among the {len(frames)} of {file}")
    return [frames[number - 1] for number in numbers]


def _known(frames: Sequence[Sample], file: Path, problems: Problems) -> list[Sample]:
    unknown = [
        Problem(
            f"{file}, frame {int(frame.id)}",
            f"its scene type {frame.label!r} is none of the {len(SCENE_TYPES)}",
        )
        for frame in frames
        if frame.label not in SCENE_TYPES
    ]
    problems.settle("frames of unknown type", unknown, "are left out")
    return [frame for frame in frames if frame.label in SCENE_TYPES]
