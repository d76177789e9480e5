"""`manystream bench data`: ways to feed side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.table import Table

from manystream.cli.data_options import BenchDataOptions
from manystream.cli.output import console, fresh_path, plain, say
from manystream.cli.progress import progress_bar
from manystream.data.bench import FeedingCase, measure_feeding
from manystream.data.opening import identified, open_split
from manystream.data.options import DataOptions
from manystream.data.prepared import PreparedSource, prepare_split
from manystream.data.preprocessing import Preprocessing
from manystream.data.source import Source
from manystream.data.sources.selection import FirstSamples
from manystream.data.statistics import StreamStatistics
from manystream.memory.bench import save


def bench_data(options: BenchDataOptions) -> None:
    """Measure every way, print the table and write the numbers."""
    out = fresh_path(options.out, "bench-data")
    data = identified(options.data, say)
    with progress_bar("looking at images") as progress:
        source, statistics = open_split(data, data.train_split, report=say, progress=progress)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with _prepared(source, statistics, options, data) as prepared:
        case = FeedingCase(
            source,
            prepared,
            Preprocessing(data.image_size, source.streams, statistics),
            data,
            min(options.samples, len(source.ids), len(prepared.ids)),
            options.blanked,
            device,
        )
        with console.status("measuring") as status:
            rows = measure_feeding(
                case.ways(),
                batches=options.batches * max(data.num_workers, 1),
                rounds=options.rounds,
                ahead=2 * data.num_workers + 1,
                device=device,
                watch=lambda name, number: status.update(f"round {number + 1}: {name}"),
            )
    save(out / "feeding.json", rows, asked=str(plain(asdict(options))))
    console.print(table_of(rows))
    say(f"numbers are in {out}")


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """Rows of a measurement, for a terminal."""
    table = Table(caption="medians; least to greatest of the rounds in brackets")
    for column in ("", "samples / s", "images / s", "ratio"):
        table.add_column(column, justify="left" if column == "" else "right", no_wrap=True)
    for row in rows:
        ratios = f"[{row['ratio_least']:.2f} to {row['ratio_greatest']:.2f}]"
        table.add_row(
            row["name"],
            f"{row['samples_per_second']:.0f}",
            f"{row['images_per_second']:.0f}",
            f"{row['ratio']:.2f} {ratios}",
        )
    return table


@contextmanager
def _prepared(
    source: Source,
    statistics: Sequence[StreamStatistics],
    options: BenchDataOptions,
    data: DataOptions,
) -> Iterator[PreparedSource]:
    """The same images, prepared: where the user has them, or for as long as it is measured."""
    names = [spec.name for spec in source.streams]
    if options.prepared is not None:
        yield PreparedSource(options.prepared, data.train_split, names, source.classes)
        return
    with TemporaryDirectory(prefix="manystream-") as folder:
        root = Path(folder) / "prepared"
        first = FirstSamples(source, options.samples)
        size = (data.image_size, data.image_size)
        with progress_bar("preparing") as progress:
            prepare_split(
                first,
                statistics,
                root,
                "train",
                size=size,
                num_workers=data.num_workers,
                progress=progress,
            )
        yield PreparedSource(root, "train", names, source.classes)
