"""Streams of image files: what they hold, told or found out, and the table that they make.

The arguments that importers of files share:

    splits      names of those to list, the one to train on first
    streams     names of the streams, in order, or the streams as a model was trained on them; all
                by default, colour first
    classes     those that a model was trained on; those that are trained on by default
    kinds       what a stream holds; found from its first image and its name by default
    units       unit of a depth stream's files; they are converted to metres
    held_out    how "val" is held out of training
    max_pixels  height × width above which a file is unreadable
    on_error    what bad input does: ``"raise"``, or ``"skip"`` leaves it out
    report      takes lines about what is left out and held out
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from manystream.data.image import MAX_PIXELS, UnreadableImageError, read_image
from manystream.data.splitting import HeldOut
from manystream.data.streams import (
    LengthUnit,
    StreamKind,
    StreamSpec,
    ToMetres,
    color_first,
    described,
)
from manystream.data.table import Column, Sample, SampleTable


@dataclass(frozen=True)
class ImageFiles:
    """Images in files below a folder; a cell is a path relative to it.

    Attributes:
        root: the folder.
        max_pixels: height × width above which a file is unreadable.
    """

    root: Path
    max_pixels: int = MAX_PIXELS

    def read(self, cell: str) -> np.ndarray:
        return read_image(self.root / cell, self.max_pixels)

    def path(self, cell: str) -> Path:
        return self.root / cell

    def stamp(self, cell: str) -> Hashable:
        try:
            status = (self.root / cell).stat()
        except OSError:  # A link to nowhere or to itself; reading it will say so.
            return cell, self.max_pixels
        return cell, self.max_pixels, status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class StreamHints:
    """What the user says about streams of files.

    Attributes:
        kinds: what a stream holds.
        units: the unit of a stream's depth, which is then converted to metres.
        max_pixels: height × width above which a file is unreadable.
    """

    kinds: Mapping[str, StreamKind] = field(default_factory=dict)
    units: Mapping[str, LengthUnit] = field(default_factory=dict)
    max_pixels: int = MAX_PIXELS

    def check(self, streams: Sequence[StreamSpec], available: Sequence[str]) -> None:
        """Refuse hints that fit neither the data, whose streams are named, nor those to be read.

        Raises:
            ValueError: if a hint is about no stream, or a stream is to be in metres and its unit is
                not given, or the other way round.
        """
        for option, hints in (("kinds", self.kinds), ("units", self.units)):
            if unknown := sorted(set(hints) - set(available)):
                raise ValueError(
                    f"{option} names the stream {unknown[0]!r}; the data has {', '.join(available)}"
                )
        for spec in streams:
            if (spec.unit == "m") != (spec.name in self.units):
                wanted = "in metres" if spec.unit == "m" else "as its files store it"
                change = "give" if spec.unit == "m" else "leave out"
                raise ValueError(
                    f"the model takes the depth of {spec.name!r} {wanted}; {change} the files' "
                    f"unit: units={{{spec.name}: …}}"
                )

    def describe(self, name: str, files: Iterable[Path]) -> StreamSpec:
        """Describe a stream by its first readable image and what is said about it.

        Raises:
            UnreadableImageError: if there is no readable image among its files, one or more.
            ValueError: if a unit is given for what is no depth.
        """
        image = self._first_readable(files)
        spec = described(name, image, self.kinds.get(name))
        if name not in self.units:
            return spec
        if spec.kind != "depth" and spec.channels > 1:
            raise ValueError(
                f"units gives {name} in {self.units[name]}, but its images have {spec.channels} "
                f"channels of {image.dtype}; only depth has a unit: leave it out, or if it is "
                f"depth, say so: kinds={{{name}: depth}}"
            )
        return StreamSpec(name, spec.channels, "depth", "m")

    def columns(self, streams: Iterable[StreamSpec], root: Path) -> list[Column]:
        """Return the columns of streams whose files are below a folder, without cells."""
        files = ImageFiles(root, self.max_pixels)
        units = {name: ToMetres(unit) for name, unit in self.units.items()}
        return [Column(spec, files, decode=units.get(spec.name)) for spec in streams]

    def _first_readable(self, files: Iterable[Path]) -> np.ndarray:
        problem = ValueError("the stream has no image")
        for file in files:
            try:
                return read_image(file, self.max_pixels)
            except UnreadableImageError as error:
                problem = error
        raise problem


def table_of_files(
    samples: Sequence[Sample],
    root: Path,
    *,
    streams: Sequence[str | StreamSpec] | None,
    available: Sequence[str],
    classes: Sequence[str],
    hints: StreamHints,
    no_image: str,
    held_out: HeldOut | None = None,
) -> SampleTable:
    """Make the table of samples whose images are files below ``root``, as their cells say.

    A stream that is given by its name, one of those ``available``, is described by its files in the
    first sample's split; ``no_image`` is what to say of one without a file, which is called
    ``<stream>`` in it.

    Raises:
        ValueError: if there is no image to describe a stream by, or the hints do not fit.
    """
    first = [sample.cells for sample in samples if sample.split == samples[0].split]
    specs = []
    for stream in available if streams is None else streams:
        if isinstance(stream, str):
            files = [root / cell for cells in first if (cell := cells.get(stream)) is not None]
            if not files:
                raise ValueError(no_image.replace("<stream>", stream))
            stream = hints.describe(stream, files)
        specs.append(stream)
    if streams is None:
        specs = color_first(specs)
    hints.check(specs, available)
    return SampleTable.of(samples, hints.columns(specs, root), classes, held_out)
