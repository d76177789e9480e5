"""Two processes against one: is it the same training, and how much faster.

Run: torchrun --nproc-per-node 2 benchmarks/distributed.py
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from time import perf_counter

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import manystream as ms
from harness.cases import NUM_CLASSES, STREAMS, Case, blanked_in_turn, network_of, shrunk
from harness.results import Row, device_tag, load, parser_of, save
from harness.timing import wait
from manystream.layers import synchronise_norms
from manystream.training import average_gradients

FAMILIES = ("li_net3", "li_net3_soma", "direct_mixing_conv")
CASE = Case(batch_size=128, steps=20)
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


def main(words: Sequence[str] | None = None) -> None:
    """Compare, time, and let the first process save."""
    parser = parser_of(__doc__, f"distributed_{device_tag()}.json")
    parser.add_argument("--small", action="store_true", help="tiny cases, to see that it runs")
    parser.add_argument("--torch-too", action="store_true", help="also torch's own SyncBatchNorm")
    options = parser.parse_args(words)
    if options.show is not None:
        return show(load(options.show))
    with _processes():
        case = replace(shrunk(CASE) if options.small else CASE, device=str(_device()))
        rows = [*_exactness(options.small, options.torch_too), *_speed(case)]
        if dist.get_rank() == 0:
            save(options.out, rows, options.commit)
            show(rows)
        dist.barrier()
    return None


def show(rows: Sequence[Row]) -> None:
    """Print the rows."""
    for row in rows:
        print(row)


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
    case = Case(family=family, width=0.25, device=str(_device()))
    expected = _network(case).double()
    _loss(expected, images, present, target).backward()
    half = len(present) // 2
    own = slice(dist.get_rank() * half, (dist.get_rank() + 1) * half)
    network = convert(_network(case).double())
    try:
        together = _distributed(network)
        _loss(together, [x[own] for x in images], present[own], target[own]).backward()
    except ValueError as error:  # what torch's raises, in all processes alike
        return {"error": str(error)}
    return {
        "gradients": _largest(_gradients(network), _gradients(expected)),
        "buffers": _largest(dict(network.named_buffers()), dict(expected.named_buffers())),
    }


def _speed(case: Case) -> Iterator[Row]:
    """Samples per second of one process alone, and of both.

    In graphs, gradients are averaged as ``fit`` does it, after the backward pass.
    """
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
        rounds = _samples_per_second(case, make_step) if taking_part else []
        dist.barrier()
        if not taking_part:
            continue
        per_second = processes * median(rounds)
        alone = per_second if name == "one" else alone
        yield {
            "kind": "speed",
            "name": name,
            "processes": processes,
            "batch_size_each": case.batch_size,
            "image_size": case.image_size[0],
            "blanked": case.blanked,
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


def _samples_per_second(case: Case, make_step: MakeStep) -> list[float]:
    """Of this process, in each round."""
    network = _network(case)
    gradients = make_step(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images, target = _batch(case.batch_size, case.image_size[0], torch.float32)
    present = blanked_in_turn(case.batch_size, len(images), case.blanked)

    def step() -> None:
        optimizer.zero_grad()
        gradients(images, present, target)
        optimizer.step()

    for _ in range(case.steps):
        step()
    return [case.steps * case.batch_size / _seconds(step, case.steps) for _ in range(ROUNDS)]


def _seconds(step: Callable[[], None], steps: int) -> float:
    wait(_device())
    start = perf_counter()
    for _ in range(steps):
        step()
    wait(_device())
    return perf_counter() - start


def _network(case: Case) -> ms.models.StreamNetwork:
    torch.manual_seed(0)
    return network_of(case)


def _batch(size: int, image_size: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.randn(size, c, image_size, image_size, generator=generator, dtype=dtype)
        for c in STREAMS.values()
    ]
    target = torch.arange(size) % NUM_CLASSES
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
    main()
