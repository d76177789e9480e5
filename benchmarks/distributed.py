"""Two processes against one: is it the same training, and how much faster.

Run: torchrun --nproc-per-node 2 benchmarks/distributed.py --out FILE.json. With --small, tiny cases
for two processes on a CPU.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import manystream as ms
from manystream.layers.sync_norm import synchronise_norms
from manystream.memory.bench import Row, save
from manystream.training import average_gradients

RESULTS = Path(__file__).parent / "results" / "distributed_h200.json"
STREAMS, CLASSES = {"rgb": 3, "depth": 1}, 19
FAMILIES = ("li_net3", "li_net3_soma", "direct_mixing_conv")
BLANKED = 0.2
ROUNDS = 5

PATTERNS = {
    "all present": ["11"] * 8,
    "mixed": ["11", "01", "10", "11", "11", "11", "01", "10"],
    "a stream absent in one process": ["11", "01", "01", "11", "01", "01", "01", "01"],
    "each process has another stream": ["10"] * 4 + ["01"] * 4,
    "a stream absent in both": ["01"] * 8,
    "one row in both together": ["01", "01", "01", "11", "01", "01", "01", "01"],
}
"""Streams of the samples of a joined batch, of which each process has one half."""

Norms = Callable[[nn.Module], nn.Module]

Step = Callable[[list[Tensor], Tensor, Tensor], None]
"""From images, presence and classes to gradients."""

MakeStep = Callable[[ms.models.StreamNetwork], Step]


@dataclass(frozen=True)
class Size:
    """How large the measured steps are."""

    depth: int
    width: float
    batch_size: int
    image_size: int
    steps: int


def main() -> None:
    """Compare, time, and let the first process save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--torch-too", action="store_true", help="also torch's own SyncBatchNorm")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--commit")
    options = parser.parse_args()
    rows = [*_exactness(options.small, options.torch_too), *_speed(options.small)]
    if dist.get_rank() == 0:
        save(options.out, rows, **({"commit": options.commit} if options.commit else {}))
        for row in rows:
            print(row)
    dist.barrier()


def _exactness(small: bool, torch_too: bool) -> Iterator[Row]:
    """Largest differences of two processes with joint norms to one with the joined batch."""
    ways: dict[str, Norms] = {"ours": _joint_norms}
    if torch_too:
        ways["torch"] = nn.SyncBatchNorm.convert_sync_batchnorm
    for family in FAMILIES:
        for name, patterns in PATTERNS.items():
            present = torch.tensor([[digit == "1" for digit in word] for word in patterns])
            for way, convert in ways.items():
                row = {"kind": "exactness", "family": family, "presence": name, "norms": way}
                yield {**row, **_differences(family, present, convert, 32 if small else 64)}


def _differences(family: str, present: Tensor, convert: Norms, image_size: int) -> Row:
    images, target = _batch(len(present), image_size, torch.float64)
    expected = _network(family).double()
    _loss(expected, images, present, target).backward()
    half = len(present) // 2
    own = slice(dist.get_rank() * half, (dist.get_rank() + 1) * half)
    network = convert(_network(family).double())
    try:
        together = _distributed(network)
        _loss(together, [x[own] for x in images], present[own], target[own]).backward()
    except ValueError as error:  # what torch's raises, in all processes alike
        return {"error": str(error)}
    return {
        "gradients": _largest(_gradients(network), _gradients(expected)),
        "buffers": _largest(dict(network.named_buffers()), dict(expected.named_buffers())),
    }


def _speed(small: bool) -> Iterator[Row]:
    """Samples per second of one process alone, and of both.

    In graphs, gradients are averaged as ``fit`` does it, after the backward pass.
    """
    size = Size(18, 0.125, 4, 32, 2) if small else Size(18, 1.0, 128, 224, 20)
    ways: dict[str, tuple[int, MakeStep]] = {
        "one": (1, _eager_step),
        "two": (2, lambda network: _eager_step(_distributed(network))),
        "two, joint norms": (2, lambda network: _eager_step(_distributed(_joint_norms(network)))),
        "one, graphs": (1, _graphed_step),
        "two, graphs": (2, lambda network: _graphed_step(network, average=True)),
    }
    alone = math.nan
    for name, (processes, make_step) in ways.items():
        taking_part = dist.get_rank() < processes
        rounds = _samples_per_second(size, make_step) if taking_part else []
        dist.barrier()
        if not taking_part:
            continue
        per_second = processes * median(rounds)
        alone = per_second if name == "one" else alone
        yield {
            "kind": "speed",
            "name": name,
            "processes": processes,
            "batch_size_each": size.batch_size,
            "image_size": size.image_size,
            "blanked": BLANKED,
            "samples_per_second": per_second,
            "range": [processes * min(rounds), processes * max(rounds)],
            "ratio_to_one": per_second / alone if dist.get_rank() == 0 else None,
        }


def _eager_step(network: nn.Module) -> Step:
    """Loss and gradients, the latter averaged by the network's own means if at all."""

    def step(images: list[Tensor], present: Tensor, target: Tensor) -> None:
        with torch.autocast(_device().type, torch.bfloat16):
            loss = _loss(network, images, present, target)
        loss.backward()

    return step


def _graphed_step(network: ms.models.StreamNetwork, *, average: bool = False) -> Step:
    """The same replayed from CUDA graphs."""
    graphed = ms.GraphedStep(network, F.cross_entropy)

    def step(images: list[Tensor], present: Tensor, target: Tensor) -> None:
        batch = replace(network.to_batch(images, present), target=target)
        with torch.autocast(_device().type, torch.bfloat16):
            loss, _ = graphed(batch)
        loss.backward()
        if average:
            average_gradients(network.parameters())

    return step


def _samples_per_second(size: Size, make_step: MakeStep) -> list[float]:
    """Of this process, in each round."""
    network = _network("li_net3", size.depth, size.width)
    gradients = make_step(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images, target = _batch(size.batch_size, size.image_size, torch.float32)
    present = torch.ones(size.batch_size, 2, dtype=torch.bool)
    touched = torch.arange(round(BLANKED * size.batch_size))
    present[touched, touched % 2] = False

    def step() -> None:
        optimizer.zero_grad()
        gradients(images, present, target)
        optimizer.step()

    for _ in range(size.steps):
        step()
    return [size.steps * size.batch_size / _seconds(step, size.steps) for _ in range(ROUNDS)]


def _seconds(step: Callable[[], None], steps: int) -> float:
    _wait()
    start = perf_counter()
    for _ in range(steps):
        step()
    _wait()
    return perf_counter() - start


def _network(family: str, depth: int = 18, width: float = 0.25) -> ms.models.StreamNetwork:
    torch.manual_seed(0)
    network = ms.create_model(
        family, depth=depth, width=width, streams=STREAMS, num_classes=CLASSES
    ).network
    return network.to(_device())


def _batch(size: int, image_size: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.randn(size, c, image_size, image_size, generator=generator, dtype=dtype)
        for c in STREAMS.values()
    ]
    target = torch.arange(size) % CLASSES
    return [x.to(_device()) for x in images], target.to(_device())


def _loss(network: nn.Module, images: list[Tensor], present: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(network(images, present), target)


def _joint_norms(network: nn.Module) -> nn.Module:
    synchronise_norms(network)
    return network


def _distributed(network: nn.Module) -> nn.Module:
    return DistributedDataParallel(network)


def _gradients(network: nn.Module) -> dict[str, Tensor]:
    found = {n: p.grad for n, p in network.named_parameters() if p.requires_grad}
    return {n: grad for n, grad in found.items() if grad is not None}


def _largest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float | None:
    """Largest difference over all processes; None where one is no number."""
    assert found.keys() == expected.keys()
    differences = [(found[n].double() - expected[n].double()).abs().max() for n in expected]
    largest = torch.stack(differences).max()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.item() if largest.isfinite() else None


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device("cpu")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def _processes() -> Iterator[None]:
    """Meet the other processes, and part."""
    if torch.cuda.is_available():
        torch.cuda.set_device(_device())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    with _processes():
        main()
