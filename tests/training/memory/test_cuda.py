"""Steps that do run out of a GPU's memory: the advice holds, and the batch size found fits."""

import pytest
import torch

from manystream.classifier import create_model
from manystream.training import StepOutOfMemory

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

ON_GPU = {"epochs": 1, "accelerator": "gpu", "precision": "bf16-mixed", "progress": False}
LIMIT_BYTES = 2 * 2**30


@pytest.fixture
def little_memory():
    """Let this process have 2 GiB of the GPU."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(LIMIT_BYTES / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def batches(batch_size, steps=3):
    images = [torch.randn(batch_size, channels, 224, 224) for channels in (3, 1)]
    return [(*images, torch.arange(batch_size) % 19)] * steps


def model_of(memory="fast"):
    return create_model(streams={"rgb": 3, "depth": 1}, num_classes=19, memory=memory)


@pytest.mark.usefixtures("little_memory")
def test_what_the_error_advises_does_fit():
    with pytest.raises(StepOutOfMemory) as caught:
        model_of().fit(batches(80), **ON_GPU)
    assert torch.cuda.memory_allocated() < LIMIT_BYTES / 20
    for setting in caught.value.advice.settings:
        torch.cuda.reset_peak_memory_stats()
        model_of(setting.memory).fit(batches(setting.batch_size), **ON_GPU)
        assert torch.cuda.max_memory_allocated() <= 1.15 * setting.need_bytes


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_the_batch_size_found_is_nearly_the_largest(memory):
    size = model_of(memory).find_batch_size(batches(4), largest=4096, **ON_GPU)
    model_of(memory).fit(batches(size), **ON_GPU)
    with pytest.raises(StepOutOfMemory):
        model_of(memory).fit(batches(round(size * 1.3)), **ON_GPU)
