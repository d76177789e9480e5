"""What one of several processes does in the tests of training together."""

import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from manystream.data.loader import StreamDataset, make_loader
from manystream.data.options import DataOptions
from manystream.layers import synchronise_norms
from manystream.presence import Views
from manystream.tasks import StepLoss, forward_and_loss
from manystream.training import FitOptions, termination
from manystream.training.distributed import average_gradients
from manystream.training.sigterm import Terminated
from tests.builders import mask_of, random_images, small_resnet
from tests.data.builders import DEPTH, RGB, identity
from tests.training.builders import CPU, array_source, easy_samples, tiny_model, tuple_batches
from tests.training.killing import Moments


def step(network, patterns, rows=slice(None), device="cpu", subsets=False):
    """Loss and its gradients on some rows of a batch of noise, seen with all subsets if asked."""
    mask = mask_of(patterns)
    images = [x.to(device) for x in random_images(mask, size=(33, 41))]
    target = torch.arange(len(mask), device=device) % 5
    own = getattr(network, "module", network)
    batch = replace(own.to_batch([x[rows] for x in images], mask[rows]), target=target[rows])
    if subsets:
        batch = replace(batch, views=Views.with_subsets(batch.presence).to(device))
    loss, _ = forward_and_loss(network, StepLoss(cross_entropies), batch)
    loss.backward()


cross_entropies = partial(F.cross_entropy, reduction="none")


def state_after(network):
    """Gradients, and buffers after the step."""
    gradients = {n: p.grad.cpu() for n, p in network.named_parameters() if p.requires_grad}
    return gradients, {name: buffer.cpu() for name, buffer in network.named_buffers()}


def half_step(patterns, joint=False, modes=("fast",), on_gpus=False, subsets=False, **layout):
    """A step of this process on its half of a batch, for each memory mode."""
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpus else "gloo")
    device = torch.device("cuda", dist.get_rank()) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    half = len(mask_of(patterns)) // 2
    rows = slice(dist.get_rank() * half, (dist.get_rank() + 1) * half)
    states = []
    for mode in modes:
        network = small_resnet(**layout).to(device)
        network.memory = mode
        if joint:
            synchronise_norms(network)
        step(DistributedDataParallel(network), patterns, rows, device, subsets)
        states.append(state_after(network))
    return states


def half_steps(cases):
    """Several of these, one after the other."""
    return [half_step(**case) for case in cases]


def averaged_gradients():
    """What two processes have whose gradients are laid out differently, or missing, in one."""
    dist.init_process_group("gloo")
    parameters = [
        nn.Parameter(torch.zeros(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)),
        nn.Parameter(torch.zeros(2)),
        nn.Parameter(torch.zeros(2), requires_grad=False),
        nn.Parameter(torch.zeros(3, 5)[:, :2]),
    ]
    grad = torch.arange(24.0).view(2, 3, 2, 2)
    parameters[3].grad = torch.full((3, 2), 1.0 + 2 * dist.get_rank())
    if dist.get_rank() == 0:
        parameters[0].grad = grad
        parameters[1].grad = torch.ones(2)
    else:
        parameters[0].grad = grad.contiguous(memory_format=torch.channels_last)
    average_gradients(parameters)
    return [p.grad for p in parameters]


def own_loader(batch_size, count=26, shuffle=True):
    """A loader of ours; in this many samples the last batch is smaller."""
    dataset = StreamDataset(array_source(count), identity(RGB, DEPTH, size=32))
    options = DataOptions(batch_size=batch_size, num_workers=0)
    return make_loader(dataset, options, shuffle=shuffle)


def any_loader(batch_size, shuffle):
    return DataLoader(TensorDataset(*easy_samples(26)), batch_size=batch_size, shuffle=shuffle)


def train(batch_size, changes, out=None, resume=False, kill_at=None, count=26, **layout):
    """Fit on a loader of ours: weights, history, and the streams that training batches had."""
    options = FitOptions(**{"epochs": 2, "sync_batchnorm": True, **CPU, **changes})
    model, moments, seen = tiny_model(**layout), Moments(kill_at), []
    moments.watch(model)
    model.network.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].presence.mask) if model.network.training else None
    )
    history = model.fit(
        own_loader(batch_size, count),
        own_loader(batch_size, count=13, shuffle=False),
        options,
        out_dir=out,
        resume=resume,
    )
    return model.state_dict(), dict(history), seen


def train_states(batch_size, changes):
    """Fit on a loader of ours: the network's state in the last two epochs' last steps."""
    options = FitOptions(**{**CPU, **changes})
    model, states = tiny_model(), []
    loader = own_loader(batch_size)
    model.network.register_forward_pre_hook(
        lambda *_: (
            states.append({n: t.clone() for n, t in model.state_dict().items()})
            if model.network.training
            else None
        )
    )
    model.fit(loader, own_loader(batch_size, count=13, shuffle=False), options)
    steps = len(states) // options.epochs
    return [states[-1 - steps], states[-1]]


def train_on_any(batch_size, shuffle):
    """Fit on a loader of torch's: weights and history."""
    model = tiny_model()
    options = FitOptions(epochs=2, **CPU)
    history = model.fit(
        any_loader(batch_size, shuffle),
        any_loader(batch_size, False),
        options,
    )
    return model.state_dict(), dict(history)


def train_until_sigterm(signalled, moment, out, batch_size=4):
    """Fit until SIGTERM comes to one process: how this one ended, and how long after it."""
    mine = int(os.environ["RANK"]) == signalled
    model, moments = tiny_model(), Moments(terminate_at=moment if mine else None)
    moments.watch(model)
    options = FitOptions(epochs=2, sync_batchnorm=True, modality_dropout=True, **CPU)
    validation = own_loader(batch_size, count=13, shuffle=False)
    with pytest.raises(Terminated) as ended:
        model.fit(own_loader(batch_size), validation, options, out_dir=Path(out))
    return ended.value.code, ended.value.message


def validate_until_sigterm(signalled):
    """Fit with a validation that takes long, until SIGTERM comes to one process in it."""
    termination._PATIENCE_SECONDS, termination._ROUND_SECONDS = 0.0, 0.05
    model, validated = tiny_model(), []

    def slowly(*_):
        if not model.network.training:
            validated.append(1)
            time.sleep(0.02)
            if len(validated) == 3 and int(os.environ["RANK"]) == signalled:
                os.kill(os.getpid(), signal.SIGTERM)

    model.network.register_forward_hook(slowly)
    validation = tuple_batches(201, batch_size=1)  # the last is for one process only
    with pytest.raises(Terminated) as ended:
        model.fit(own_loader(4), validation, FitOptions(epochs=1, **CPU))
    return ended.value.code, len(validated)


class Shard(IterableDataset):
    """As many batches as the processes have been told, each its own number."""

    def __init__(self, counts):
        self.count = counts[int(os.environ["RANK"])]

    def __iter__(self):
        return iter(tuple_batches(8 * self.count))


def train_on_shards(counts):
    """Fit on an iterable data set of another length in each process."""
    model = tiny_model()
    history = model.fit(
        DataLoader(Shard(counts), batch_size=None), None, FitOptions(epochs=2, **CPU)
    )
    return model.state_dict(), dict(history)


def train_on_lists(counts):
    """Fit on a list of another length in each process: the error."""
    batches = tuple_batches(8 * counts[int(os.environ["RANK"])])
    with pytest.raises(ValueError, match="train_loader gives") as error:
        tiny_model().fit(batches, None, FitOptions(epochs=1, **CPU))
    return [str(error.value)]
