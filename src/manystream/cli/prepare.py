"""`manystream prepare`: write a data set once as memory-mapped arrays."""

from __future__ import annotations

from pathlib import Path

from manystream.cli.data_options import PrepareOptions
from manystream.cli.output import say
from manystream.cli.progress import progress_bar
from manystream.data import prepare_split
from manystream.data.opening import open_data
from manystream.data.usable import usable_samples


def prepare(options: PrepareOptions) -> None:
    """Look at every image once, and write every split."""
    data = options.data
    splits = options.splits or [data.train_split, data.val_split]
    table = open_data(data, splits, report=say)
    with progress_bar("looking at images") as progress:
        usable = usable_samples(table, splits, data, report=say, progress=progress)
    for split in splits:
        part = usable.table.part(split)
        with progress_bar(f"writing {split}") as progress:
            folder = prepare_split(
                part,
                usable.statistics[split],
                options.out,
                split,
                size=options.height_and_width,
                num_workers=data.num_workers,
                progress=progress,
            )
        say(f"{folder}: {int(part.present.sum())} images, {_size(folder):.1f} MB")
    say(f"train from it with --data.root {options.out}")


def _size(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6
