"""A split that is to be opened, as every kind of data set is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from manystream.data.options import DataOptions, Report
from manystream.data.problems import Settle, settling
from manystream.data.source import StreamSpec
from manystream.data.sources.hints import StreamHints
from manystream.data.splitting import HeldOut, leak, random_leak

TRAIN, VAL, TRAINVAL, TEST = "train", "val", "trainval", "test"
"""Splits of data sets that come with training and test only; val is held out of training."""


@dataclass(frozen=True)
class Wanted:
    """A split that is to be opened.

    Attributes:
        root: where the data set is.
        split: name of the split.
        options: as the user gave them.
        streams: the model's streams; None to find them.
        classes: the model's classes; None to find them.
        report: takes lines for the user.
    """

    root: Path
    split: str
    options: DataOptions
    streams: Sequence[StreamSpec] | None
    classes: Sequence[str] | None
    report: Report

    @property
    def names(self) -> list[str] | None:
        """Names of the streams to open, in order; None for all."""
        if self.streams is not None:
            return [spec.name for spec in self.streams]
        return self.options.streams

    @property
    def hints(self) -> StreamHints:
        """What the user says about streams of files."""
        options = self.options
        return StreamHints(options.kinds or {}, options.units or {}, options.max_pixels)

    @property
    def held_out(self) -> HeldOut:
        """How validation is held out of training."""
        return HeldOut(self.options.val_share, self.options.split_seed)

    def settle(self, what: str, skipped: str) -> Settle:
        """What to do about a kind of problem, see :func:`settling`."""
        return settling(what, self.options.on_error, self.report, skipped=skipped)

    def part(
        self,
        targets: Sequence[int],
        groups: Sequence[str],
    ) -> list[int]:
        """Numbers of the training samples that are in this split, of which one part is held out.

        Says how much of validation training would have seen, and would have with a random draw.

        Args:
            targets: class of each sample of the whole training split.
            groups: its group; an empty name is a group of its own.
        """
        if self.split == TRAINVAL:
            return list(range(len(targets)))
        held_out = self.held_out.draw(targets, groups)
        if self.split == VAL:
            self.report(_said(groups, held_out))
        return np.flatnonzero(held_out == (self.split == VAL)).tolist()

    def numbers_of(self, available: Sequence[StreamSpec]) -> list[int]:
        """Numbers of the streams to open, in order.

        Args:
            available: the streams that the data has.

        Raises:
            ValueError: if there is no stream of a name.
        """
        known = [spec.name for spec in available]
        names = known if self.names is None else self.names
        for name in names:
            if name not in known:
                raise ValueError(f"no stream {name!r} in the data; it has {', '.join(known)}")
        return [known.index(name) for name in names]

    def without_hints(self) -> None:
        """Refuse to be told what the files of a known data set hold.

        Raises:
            ValueError: if kinds or units are given.
        """
        for option in ("kinds", "units"):
            if getattr(self.options, option):
                raise ValueError(
                    f"--data.{option} is for folders and manifests; what {self.root} holds is "
                    "known: leave it out"
                )


def _said(groups: Sequence[str], held_out: np.ndarray) -> str:
    number, total = int(held_out.sum()), len(held_out)
    drawn = f"val: {number} of {total} training samples ({number / total:.1%}) are held out"
    if not any(groups):
        return f"{drawn}, one by one: the data does not say which show the same scene"
    by_chance = random_leak(groups, number)
    return (
        f"{drawn} by scene: {leak(groups, held_out):.1%} of them show a scene that is in training "
        f"(drawn one by one it would be {by_chance:.1%})"
    )
