"""`manystream prepare`: write a data set once as memory-mapped arrays."""

from __future__ import annotations

from pathlib import Path

from manystream.cli.data_options import PrepareOptions
from manystream.cli.output import say
from manystream.cli.progress import progress_bar
from manystream.data.opening import identified, open_split
from manystream.data.prepared import prepare_split


def prepare(options: PrepareOptions) -> None:
    """Survey and write every split."""
    data = identified(options.data, say)
    streams = classes = None
    try:
        for split in options.splits or [data.train_split, data.val_split]:
            with progress_bar(f"looking at {split}") as progress:
                source, statistics = open_split(data, split, streams, classes, say, progress)
            streams, classes = source.streams, source.classes
            with progress_bar(f"writing {split}") as progress:
                folder = prepare_split(
                    source,
                    statistics,
                    options.out,
                    split,
                    size=options.height_and_width,
                    num_workers=data.num_workers,
                    progress=progress,
                )
            say(f"{folder}: {int(source.present.sum())} images, {_size(folder):.1f} MB")
    except KeyboardInterrupt:
        say("interrupted; run the same command again to go on")
        raise
    say(f"train from it with --data.root {options.out}")


def _size(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6
