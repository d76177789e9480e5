"""What the commands around data take, as typed dataclasses whose comments become the help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from manystream.data.options import DataOptions


@dataclass
class PrepareOptions:
    """Write a data set once as arrays that need no decoding; --data.root then names its folder.

    Only present images are stored, with labels, groups, statistics and checksums. A split is whole
    or not there: one that was interrupted is written anew when the same command is run again.

    Raises:
        ValueError: if a number is out of its range.
    """

    out: Path
    """Folder of the prepared set."""
    size: int | tuple[int, int] | None = None
    """Height and width to resize to, for example 256 or [240, 320]; null keeps images as they are,
    which then must have one size in each stream. Crops in training are cut from what is stored."""
    splits: list[str] | None = None
    """Splits to write, the one to train on first; --data.train_split and --data.val_split by
    default."""
    data: DataOptions = field(default_factory=DataOptions)
    """Where images come from, and how many workers read them."""

    def __post_init__(self) -> None:
        if self.size is not None and min(self.height_and_width or ()) < 1:
            raise ValueError(f"--size is {self.size}; expected at least 1 pixel")
        check_splits(self.splits)

    @property
    def height_and_width(self) -> tuple[int, int] | None:
        """The size in pixels; None keeps images as they are."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


@dataclass
class ShowDataOptions:
    """Draw a contact sheet: some samples of every class, their streams side by side.

    Raises:
        ValueError: if a number is out of its range, or the file is to be no PNG.
    """

    out: Path = Path("contact-sheet.png")
    """PNG file to write; it must not exist yet."""
    split: str | None = None
    """Split to show; --data.train_split by default."""
    per_class: int = 3
    """Samples of each class, chosen at random."""
    seed: int = 0
    """Seed of the choice."""
    data: DataOptions = field(default_factory=DataOptions)
    """Where images come from."""

    def __post_init__(self) -> None:
        if self.per_class < 1:
            raise ValueError(f"--per_class is {self.per_class}; expected at least 1")
        if self.seed < 0:
            raise ValueError(f"--seed is {self.seed}; expected 0 or more")
        if self.out.suffix.lower() != ".png":
            raise ValueError(f"--out is {self.out}; expected a file name that ends in .png")


@dataclass
class CheckDataOptions:
    """Read every image of a data set and list what is wrong with it.

    Unreadable, misaligned, constant, all-zero and duplicate images, classes that are too small, and
    images and groups that are in two splits. The exit status is 1 if training would be hurt.

    Raises:
        ValueError: if a number is out of its range.
    """

    out: Path | None = None
    """JSON file for everything that was found; it must not exist yet."""
    splits: list[str] | None = None
    """Splits to read, the one to train on first; --data.train_split and --data.val_split by
    default."""
    smallest_class: int = 10
    """Samples that every training class should have."""
    data: DataOptions = field(default_factory=DataOptions)
    """Where images come from."""

    def __post_init__(self) -> None:
        if self.smallest_class < 1:
            raise ValueError(f"--smallest_class is {self.smallest_class}; expected at least 1")
        check_splits(self.splits)


def check_splits(splits: list[str] | None) -> None:
    """Refuse to take no split, or one twice."""
    if splits is not None and (not splits or len(set(splits)) < len(splits)):
        raise ValueError(f"--splits is {splits}; expected one or more, each once")
