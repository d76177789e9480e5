"""Steps that do run out of a GPU's memory: the advice holds, and the batch size found fits."""

import gc

import pytest
import torch

from manystream.model import create_model
from manystream.training import StepOutOfMemory
from manystream.training.batch_size import _PRECISION_SHARE, _SAFE_SHARE

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

ON_GPU = {"epochs": 1, "accelerator": "gpu", "precision": "bf16-mixed", "progress": False}
LIMIT_BYTES = 2 * 2**30
MIB = 2**20
CUBLAS_BYTES = 2 * 32 * MIB
"""What cuBLAS keeps on a Hopper GPU for a CUDA stream: for the forward and the backward thread."""


@pytest.fixture
def little_memory():
    """Let this process have 2 GiB of the GPU, and none of what earlier tests left there."""
    allocated_bytes()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(LIMIT_BYTES / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def allocated_bytes():
    """What is held, without what cuBLAS keeps."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated()


def batches(*batch_sizes):
    return [
        (
            *(torch.randn(size, channels, 224, 224) for channels in (3, 1)),
            torch.arange(size) % 19,
        )
        for size in batch_sizes
    ]


def model_of(memory="fast"):
    return create_model(streams={"rgb": 3, "depth": 1}, num_classes=19, memory=memory)


@pytest.mark.usefixtures("little_memory")
def test_an_error_that_is_kept_keeps_no_memory():
    before = allocated_bytes()
    with pytest.raises(StepOutOfMemory) as caught:
        model_of().fit(batches(80, 80), **ON_GPU)
    assert caught.tb is not None
    # Logged scalars may be left. The batch takes 61 MiB, an activation of the stem 122, the weights
    # and as many gradients 104 each.
    assert allocated_bytes() - before < 1 * MIB


@pytest.mark.usefixtures("little_memory")
def test_what_the_error_advises_does_fit():
    with pytest.raises(StepOutOfMemory) as caught:
        model_of().fit(batches(80, 80), **ON_GPU)
    assert caught.value.settings
    assert caught.value.changes["cuda_graphs"] == "off"
    for setting in caught.value.settings:
        before = allocated_bytes()
        torch.cuda.reset_peak_memory_stats()
        steps = batches(*[setting.batch_size] * 3)
        model_of(setting.memory).fit(steps, cuda_graphs="off", **ON_GPU)
        assert torch.cuda.max_memory_allocated() - before <= 1.15 * setting.need_bytes


def does_not_fit(found):
    """The largest size that can have failed in a search that gave ``found``, nine tenths of one."""
    good = max(size for size in range(found, 2 * found + 2) if int(size * _SAFE_SHARE) == found)
    return good + max(good // _PRECISION_SHARE, 1)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("cuda_graphs", ["auto", "off"])
def test_the_batch_size_found_is_nearly_the_largest(memory, cuda_graphs):
    options = {"cuda_graphs": cuda_graphs, **ON_GPU}
    size = model_of(memory).find_batch_size(batches(4), largest=4096, **options)
    assert size > 1
    # As an epoch ends: with another shape, which runs eagerly beside the graph of the first.
    model_of(memory).fit(batches(size, size, size - 1), **options)
    size = does_not_fit(size)
    with pytest.raises((StepOutOfMemory, UserWarning), match=r"does not fit|out of memory"):
        model_of(memory).fit(batches(size, size, size - 1), **options)


def exhaust(*_):
    if torch.cuda.is_current_stream_capturing():
        torch.empty(2 * LIMIT_BYTES, dtype=torch.uint8, device="cuda")


def exhaust_backward(module, inputs, output):
    output.register_hook(exhaust)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    ("part", "hook"), [("layer4", exhaust), ("layer2.0.conv1.streams.1", exhaust_backward)]
)
def test_a_capture_that_runs_out_of_memory_gives_it_back(part, hook):
    model, held = model_of(), []
    model.network.register_forward_pre_hook(lambda *_: held.append(torch.cuda.memory_allocated()))
    model.network.get_submodule(part).register_forward_hook(hook)
    with pytest.warns(UserWarning, match="no CUDA graph.*out of memory"):
        history = model.fit(batches(8, 8, 8, 8), **ON_GPU)
    assert history.num_epochs == 1
    _first, captured, eager, third, fourth = held
    weights = sum(p.nbytes for p in model.parameters())
    # What only graphs need: gradients that they share, copies of the weights in bf16, of the batch.
    assert captured - eager > weights
    # The stream that eager steps run in has cuBLAS's workspaces of its own since.
    assert third - eager < CUBLAS_BYTES + MIB
    assert fourth == pytest.approx(third, abs=MIB)
    assert torch.rand(1, device="cuda") < 1  # the generator is not held to be captured
