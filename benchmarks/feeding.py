"""Images per second by the way they are fed, and whether feeding keeps up with a training step.

Every way takes its turn in each round; ratios are to a plain torch DataLoader that reads every
file and augments on the CPU. Without --root, JPEG and 16-bit PNG files of 640x480 are written into
a temporary folder, and a prepared set of them. With a GPU also the step of a ResNet-18 (bf16,
replayed as a CUDA graph) is timed with one batch that stays there, and fed from the prepared set.

Run: python benchmarks/feeding.py --workers 12; for data of your own:
python benchmarks/feeding.py --root root [--prepared set]
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import manystream as ms
from harness.plain_loader import PlainDataset, plain_batches
from harness.results import Row, device_tag, load, parser_of, save
from harness.tables import console, number, table_of
from harness.timing import in_turns, spread, wait
from manystream import StreamBatch
from manystream.cli import main as manystream
from manystream.data import training_data
from manystream.data.loader import StreamDataset, make_loader
from manystream.data.options import DataOptions
from manystream.data.sampler import own_sampler
from manystream.data.scenes import scenes
from manystream.data.table import SampleTable

PLAIN = "plain DataLoader, files"
HEIGHT, WIDTH, STORED = 480, 640, 256
STEP_BATCH, REPEATED = 128, 32
PLACES = {"cpu": "on the cpu", "gpu": "on the device"}
"""Where whole images are augmented, by the accelerator that a loader is made for."""

COLUMNS = {
    "blanked": number("blanked", ".0%"),
    "samples / s": number("samples_per_second", ".0f"),
    "images / s": number("images_per_second", ".0f"),
    "step, ms": number("step_ms", ".2f"),
    "ratio": number("ratio", ".2f"),
    "least": number("ratio_least", ".2f"),
    "greatest": number("ratio_greatest", ".2f"),
}


@dataclass(frozen=True)
class Feeding:
    """What is fed, and how.

    Attributes:
        files: images that have to be decoded, and how they are prepared.
        prepared: the same images as memory-mapped arrays; None if there are none.
        plain: the files as people read them without this package.
        options: size of the batches, and workers.
        device: where batches go.
    """

    files: StreamDataset
    prepared: StreamDataset | None
    plain: PlainDataset
    options: DataOptions
    device: torch.device

    @classmethod
    def of(cls, options: DataOptions, prepared: Path | None, times: int = 1) -> Feeding:
        """Open the training split of the files and of the prepared set.

        Args:
            options: where the files are, and how they are fed.
            prepared: folder of the prepared set.
            times: how often each sample is in an epoch, so that it is as long as a real one's.
        """
        data = training_data(options, accelerator="cpu")
        plain = PlainDataset(
            repeated(_dataset(data.train).source, times), data.preprocessing, options.augment
        )
        rows = None
        if prepared is not None:
            opened = training_data(replace(options, root=prepared, format=None), accelerator="cpu")
            rows = _repeated(_dataset(opened.train), times)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        files = _repeated(_dataset(data.train), times)
        return cls(files, rows, plain, options, device)

    def ways(self, blanked: float) -> dict[str, Iterator[Tensor]]:
        """Return what feeds for ever, by name; the first is the baseline.

        Args:
            blanked: probability that a sample loses a stream to modality dropout.

        Returns:
            Iterators that give the streams that each batch keeps, (B, M), as it arrives.
        """
        ways = {PLAIN: plain_batches(self.plain, self.options, blanked, self.device)}
        ours = {"files": self.files} | ({"prepared": self.prepared} if self.prepared else {})
        for name, dataset in ours.items():
            for accelerator in self.accelerators:
                loader = make_loader(dataset, self.options, shuffle=True, accelerator=accelerator)
                ways[f"ours, {name}, {PLACES[accelerator]}"] = self._masks(loader, blanked)
        return ways

    @property
    def accelerators(self) -> tuple[str, ...]:
        """Where images may be augmented."""
        return ("cpu", "gpu") if self.device.type == "cuda" else ("cpu",)

    def _masks(self, loader: Any, blanked: float) -> Iterator[Tensor]:
        sampler = own_sampler(loader)
        assert sampler is not None
        if blanked > 0:
            sampler.select = ms.ModalityDropout(sampler.present.shape[1], blanked).draw
        for batch in forever(loader):
            yield batch.to(self.device).presence.mask


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print and keep the result."""
    parser = parser_of(__doc__, f"feeding_{device_tag()}.json")
    parser.add_argument("--root", type=Path, help="a data set of your own")
    parser.add_argument("--prepared", type=Path, help="the same, as `manystream prepare` wrote it")
    parser.add_argument("--streams", nargs="+", help="streams to read (all)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels (224)")
    parser.add_argument("--batch-size", type=int, default=64, help="samples (64)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read (2)")
    parser.add_argument("--samples", type=int, default=512, help="files to write, no root (512)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way (5)")
    parser.add_argument(
        "--batches", type=int, default=4, help="batches of a turn for each worker (4)"
    )
    parser.add_argument(
        "--blanked",
        type=float,
        nargs="+",
        default=[0.2, 0.0],
        help="probabilities that a sample loses a stream (0.2 0)",
    )
    options = parser.parse_args(words)
    show(load(options.show) if options.show else measure_all(options))


def measure_all(options: Namespace) -> list[Row]:
    """Open what is fed, measure it, and save after each part."""
    rows: list[Row] = []
    with TemporaryDirectory(prefix="manystream-") as folder:
        for measured in measure(opened(options, Path(folder)), options):
            rows += measured
            save(options.out, rows, options.commit)
    return rows


def opened(options: Namespace, folder: Path) -> Feeding:
    """Open the user's data, or what is written and prepared in a folder."""
    data = DataOptions(
        root=options.root or folder / "files",
        streams=options.streams,
        image_size=options.image_size,
        batch_size=options.batch_size,
        num_workers=options.workers,
    )
    if options.root is not None:
        return Feeding.of(data, options.prepared)
    write_files(folder / "files", options.samples)
    words = ["--out", str(folder / "set"), "--size", str(STORED)]
    words += ["--data.root", str(data.root), "--data.num_workers", str(options.workers)]
    if manystream(["prepare", *words]) != 0:
        raise RuntimeError("the files could not be prepared")
    return Feeding.of(data, folder / "set", REPEATED)


def measure(feeding: Feeding, options: Namespace) -> Iterator[list[Row]]:
    """Yield rows of the fed step on a GPU, then of every way to feed at every rate of dropout."""
    if feeding.device.type == "cuda" and feeding.prepared is not None:
        yield step_rows(feeding, options.rounds)
    for blanked in options.blanked:
        rows = measure_ways(
            feeding.ways(blanked),
            batches=options.batches * max(options.workers, 1),
            rounds=options.rounds,
            prefetched=2 * options.workers + 1,
            device=feeding.device,
        )
        yield [{**row, "blanked": blanked, "workers": options.workers} for row in rows]


def measure_ways(
    ways: Mapping[str, Iterator[Tensor]],
    *,
    batches: int,
    rounds: int,
    prefetched: int,
    device: torch.device,
) -> list[Row]:
    """Let each way feed in turn, and compare them with the first.

    Args:
        ways: what feeds, by name.
        batches: batches that are timed in each turn.
        rounds: turns of each way.
        prefetched: batches that workers may have ready when a turn begins; they are not timed.
        device: where batches go.

    Returns:
        A row for each way: medians of samples and images per second, and of the ratio to the first
        way in the same round, each with its least and greatest.
    """
    images: dict[str, list[float]] = {name: [] for name in ways}

    def turn(name: str, way: Iterator[Tensor]) -> float:
        for _ in range(prefetched):
            next(way)
        wait(device)
        start = perf_counter()
        masks = [next(way) for _ in range(batches)]
        wait(device)
        seconds = perf_counter() - start
        images[name].append(sum(int(mask.sum()) for mask in masks) / seconds)
        return sum(map(len, masks)) / seconds

    samples = in_turns({name: partial(turn, name, way) for name, way in ways.items()}, rounds)
    baseline = next(iter(samples.values()))
    return [
        {
            "name": name,
            **spread("samples_per_second", samples[name]),
            **spread("images_per_second", images[name]),
            **spread("ratio", [a / b for a, b in zip(samples[name], baseline, strict=True)]),
        }
        for name in ways
    ]


def step_rows(feeding: Feeding, rounds: int) -> list[Row]:
    """Time a step with a batch that stays, in turns with each place to augment what feeds it."""
    assert feeding.prepared is not None
    options = replace(feeding.options, batch_size=STEP_BATCH)
    streams = {spec.name: spec.channels for spec in feeding.prepared.source.streams}
    step = TrainingStep(streams, len(feeding.prepared.source.classes), feeding.device)
    alone: list[float] = []
    rows = []
    for accelerator in reversed(feeding.accelerators):
        loader = make_loader(feeding.prepared, options, shuffle=True, accelerator=accelerator)
        # The workers of one way end before those of the next begin.
        with closing(forever(loader)) as fed:
            stays = cycle([next(fed).to(feeding.device)])
            ways = {"stays": stays, "fed": fed}
            workers = options.num_workers
            times = in_turns(
                {n: partial(step.time_ms, b, workers) for n, b in ways.items()}, rounds
            )
        alone += times["stays"]
        ratios = [a / b for a, b in zip(times["fed"], times["stays"], strict=True)]
        name = f"step, prepared, {PLACES[accelerator]}"
        rows.append({"name": name, **spread("step_ms", times["fed"]), "ratio": median(ratios)})
    first = {"name": "step, batch stays", **spread("step_ms", alone), "ratio": 1.0}
    return [{**row, "workers": options.num_workers} for row in (first, *rows)]


class TrainingStep:
    """A step of a ResNet-18 in bf16, replayed from CUDA graphs.

    Args:
        streams: channels of each stream by name.
        num_classes: number of classes.
        device: where it runs.
    """

    def __init__(self, streams: Mapping[str, int], num_classes: int, device: torch.device) -> None:
        model = ms.create_model(streams=streams, num_classes=num_classes).to(device)
        self._optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=True)
        self._graphed = ms.GraphedStep(model, F.cross_entropy)
        self._device = device

    def __call__(self, batch: StreamBatch) -> None:
        """Take the step."""
        with torch.autocast(self._device.type, torch.bfloat16):
            loss, _ = self._graphed(batch)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def time_ms(self, batches: Iterator[StreamBatch], workers: int) -> float:
        """Return milliseconds of a step, when what workers had ready is used up."""
        for _ in range(2 * workers + 1):
            self(next(batches).to(self._device))
        wait(self._device)
        start, steps = perf_counter(), 8 * max(workers, 1)
        for _ in range(steps):
            self(next(batches).to(self._device))
        wait(self._device)
        return (perf_counter() - start) / steps * 1e3


def forever(loader: Any) -> Generator[StreamBatch]:
    """Yield batches of one epoch after the other."""
    sampler = own_sampler(loader)
    assert sampler is not None
    while True:
        yield from loader
        sampler.epoch += 1


def write_files(root: Path, number: int) -> None:
    """Write rendered scenes, enlarged to the size and with the noise of a sensor's images."""
    table = scenes({"train": min(number, 100)}, 128)
    images = [[table.read(index, stream) for stream in (0, 1)] for index in range(len(table))]
    labels = table.labels()

    def write(split: str, index: int) -> None:
        rng, chosen = np.random.default_rng(index), index % len(images)
        for spec, pixels, suffix in zip(table.streams, images[chosen], ("jpg", "png"), strict=True):
            large = np.asarray(Image.fromarray(pixels.squeeze()).resize((WIDTH, HEIGHT)))
            noisy = (large + rng.integers(-4, 5, large.shape)).clip(0, np.iinfo(pixels.dtype).max)
            path = root / split / spec.name / labels[chosen] / f"{index}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy.astype(pixels.dtype)).save(path)

    with ThreadPoolExecutor() as pool:
        list(pool.map(partial(write, "train"), range(number)))
        list(pool.map(partial(write, "val"), range(12)))


def show(rows: Sequence[Row]) -> None:
    """Print the rows."""
    console.print(table_of(rows, COLUMNS, caption=f"ratios to: {PLAIN}"))


def _dataset(loader: Any) -> StreamDataset:
    dataset = loader.dataset
    assert isinstance(dataset, StreamDataset)
    return dataset


def repeated(table: SampleTable, times: int) -> SampleTable:
    """Return a table many times over."""
    return table.select([*range(len(table))] * times)


def _repeated(dataset: StreamDataset, times: int) -> StreamDataset:
    source = repeated(dataset.source, times)
    return StreamDataset(source, dataset.preprocessing, dataset.augmentation)


if __name__ == "__main__":
    main()
