"""Images per second by the way they are fed, and whether feeding keeps up with a training step.

Writes JPEG and 16-bit PNG files of 640x480 into a temporary folder, and measures `manystream bench
data` on them with and without modality dropout. With a GPU also the step of a ResNet-18 of two
streams (bf16, batches of 128, replayed as a CUDA graph) with one batch that stays on the GPU, and
fed from a prepared set.

Run: python benchmarks/feeding.py [--workers 2] [--samples 512] [--out FILE.json]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
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
from rich.console import Console
from rich.table import Table
from torch import Tensor

import manystream as ms
from manystream.batch import StreamBatch
from manystream.data.bench import FeedingCase, measure_feeding
from manystream.data.dataset import StreamDataset
from manystream.data.loaders import make_loader
from manystream.data.opening import open_split
from manystream.data.options import AugmentOn, DataOptions
from manystream.data.prepared import PreparedSource, prepare_split
from manystream.data.preprocessing import Preprocessing
from manystream.data.sampler import own_sampler
from manystream.data.source import Source
from manystream.data.sources.scenes import SceneSource
from manystream.data.transforms import TrainTransform
from manystream.memory.bench import save

RESULTS = Path(__file__).parent / "results" / "feeding.json"
HEIGHT, WIDTH, STORED, SHOWN = 480, 640, 256, 224
BLANKED = (0.2, 0.0)
BATCHES_PER_WORKER = 4  # they come in bursts, as many at once as there are workers
PREPARED_ON: tuple[AugmentOn, ...] = ("device", "cpu")
FEEDING_BATCH, STEP_BATCH, REPEATED = 64, 128, 32


def main() -> None:
    """Measure, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way")
    parser.add_argument("--commit", help="commit of the code, where git cannot say")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        root = Path(folder)
        write_files(root / "files", arguments.samples)
        options = DataOptions(
            root=root / "files",
            image_size=SHOWN,
            batch_size=FEEDING_BATCH,
            num_workers=arguments.workers,
        )
        rows: list[dict[str, Any]] = []
        for measured in measure(options, root / "set", arguments.samples, arguments.rounds):
            rows += measured
            save(arguments.out, rows, **({"commit": arguments.commit} if arguments.commit else {}))
    show(rows)
    print(arguments.out)


class Repeated:
    """A source many times over, so that an epoch is as long as that of a real data set.

    Args:
        source: the source.
        times: how often.
    """

    def __init__(self, source: Source, times: int) -> None:
        self._source, self._length = source, len(source.ids)
        self.streams, self.classes = source.streams, source.classes
        self.ids = list(source.ids) * times
        self.targets, self.present = source.targets.repeat(times), source.present.repeat(times, 1)

    def read(self, index: int, stream: int) -> np.ndarray:
        """One image."""
        return self._source.read(index % self._length, stream)


class RepeatedRows(Repeated):
    """The same of a prepared set, which is read by whole batches."""

    _source: PreparedSource

    def read_many(self, indices: Sequence[int], stream: int, *, pinned: bool = False) -> Tensor:
        """Images of several samples."""
        rows = [index % self._length for index in indices]
        return self._source.read_many(rows, stream, pinned=pinned)


def measure(
    options: DataOptions, root: Path, samples: int, rounds: int
) -> Iterator[list[dict[str, Any]]]:
    """Rows of the fed step, then of every way to feed at every rate of dropout."""
    files, statistics = open_split(options, "train")
    size = (STORED, STORED)
    prepare_split(files, statistics, root, "train", size=size, num_workers=options.num_workers)
    prepared = RepeatedRows(PreparedSource(root, "train"), REPEATED)
    files, samples = Repeated(files, REPEATED), samples * REPEATED
    preprocessing = Preprocessing(SHOWN, files.streams, statistics)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        fed = replace(options, batch_size=STEP_BATCH)
        yield step_rows(prepared, preprocessing, fed, rounds, device)
    for blanked in BLANKED:
        case = FeedingCase(files, prepared, preprocessing, options, samples, blanked, device)
        measured = measure_feeding(
            case.ways(),
            batches=BATCHES_PER_WORKER * max(options.num_workers, 1),
            rounds=rounds,
            ahead=2 * options.num_workers + 1,
            device=device,
        )
        yield [{**row, "blanked": blanked, "workers": options.num_workers} for row in measured]


def write_files(root: Path, number: int) -> None:
    """Rendered scenes, enlarged to the size and with the noise of a sensor's images."""
    scenes = SceneSource(min(number, 96), 128)
    images = [[scenes.read(index, stream) for stream in (0, 1)] for index in range(len(scenes.ids))]

    def write(index: int) -> None:
        rng, chosen = np.random.default_rng(index), index % len(images)
        name = scenes.classes[int(scenes.targets[chosen])]
        for spec, pixels, suffix in zip(
            scenes.streams, images[chosen], ("jpg", "png"), strict=True
        ):
            large = np.asarray(Image.fromarray(pixels.squeeze()).resize((WIDTH, HEIGHT)))
            noisy = (large + rng.integers(-4, 5, large.shape)).clip(0, np.iinfo(pixels.dtype).max)
            path = root / "train" / spec.name / name / f"{index}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy.astype(pixels.dtype)).save(path)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(number)))


def step_rows(
    source: Source,
    preprocessing: Preprocessing,
    options: DataOptions,
    rounds: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Milliseconds of a step with a batch that stays, in turns with each way to feed it."""
    step = training_step(len(source.classes), device)
    alone: list[float] = []
    rows = []
    for augment_on in PREPARED_ON:
        fed = replace(options, augment_on=augment_on)
        dataset = StreamDataset(source, TrainTransform(preprocessing))
        # The workers of one way end before those of the next begin.
        with closing(forever(make_loader(dataset, fed, shuffle=True))) as feeding:
            stays = cycle([next(feeding).to(device)])
            pairs = [
                [
                    time_steps(step, batches, options.num_workers, device)
                    for batches in (stays, feeding)
                ]
                for _ in range(rounds)
            ]
        alone += [own for own, _ in pairs]
        name = f"step, prepared, on the {augment_on}"
        ratios = [taken / own for own, taken in pairs]
        rows.append(step_row(name, [taken for _, taken in pairs], ratios, options.num_workers))
    return [step_row("step, batch stays", alone, [1.0], options.num_workers), *rows]


def step_row(name: str, times: list[float], ratios: list[float], workers: int) -> dict[str, Any]:
    """What is kept of a way to feed a step."""
    return {
        "name": name,
        "workers": workers,
        "step_ms": median(times),
        "step_ms_least": min(times),
        "step_ms_greatest": max(times),
        "ratio": median(ratios),
    }


def forever(loader: Any) -> Generator[StreamBatch]:
    """Batches of one epoch after the other."""
    while True:
        yield from loader
        sampler = own_sampler(loader)
        assert sampler is not None
        sampler.epoch += 1


def training_step(num_classes: int, device: torch.device) -> Callable[[StreamBatch], None]:
    """A step of a ResNet-18 in bf16, replayed from CUDA graphs."""
    model = ms.create_model(streams={"rgb": 3, "depth": 1}, num_classes=num_classes).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=True)
    graphed = ms.GraphedStep(model, F.cross_entropy)

    def step(batch: StreamBatch) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss, _ = graphed(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def time_steps(
    step: Callable[[StreamBatch], None],
    batches: Iterator[StreamBatch],
    workers: int,
    device: torch.device,
) -> float:
    """Milliseconds of a step, when what workers had ready is used up, over some turns of each."""
    for _ in range(2 * workers + 1):
        step(next(batches).to(device))
    wait(device)
    start, steps = perf_counter(), 8 * max(workers, 1)
    for _ in range(steps):
        step(next(batches).to(device))
    wait(device)
    return (perf_counter() - start) / steps * 1e3


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows."""
    table = Table("", "blanked", "samples / s", "images / s", "step, ms", "ratio")
    for row in rows:
        numbers = [row.get(key) for key in ("samples_per_second", "images_per_second", "step_ms")]
        shown = ["" if value is None else f"{value:.1f}" for value in numbers]
        table.add_row(row["name"], str(row.get("blanked", "")), *shown, f"{row['ratio']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
