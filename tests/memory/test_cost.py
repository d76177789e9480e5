"""What a training step costs is measured as training does the step."""

from dataclasses import replace

import pytest
import torch
from tests.builders import mask_of, random_images, small_resnet

from manystream.memory.cost import measure_step
from manystream.models import StreamNetwork
from manystream.presence import Views
from manystream.tasks import Classification

TASK = Classification(5)


def batch_of(network, words="11 11 11 11"):
    mask = mask_of(words)
    batch = network.to_batch(random_images(mask), mask)
    return replace(batch, target=torch.arange(len(mask)) % 5)


def test_more_views_cost_more():
    network = small_resnet(2)
    batch = batch_of(network)
    full = measure_step(network, TASK, batch)
    every = measure_step(network, TASK, replace(batch, views=Views.with_subsets(batch.presence)))
    assert every.num_parameters == full.num_parameters
    trained = [p.numel() for p in network.parameters() if p.requires_grad]
    assert every.num_parameters == sum(trained)
    assert every.peak_bytes > 1.2 * full.peak_bytes
    assert full.step_ms > 0


class Recording(StreamNetwork):
    """Notes the loss's gradient for each view."""

    def __init__(self):
        super().__init__([3, 1], 5)
        self.bias = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
        self.seen = []

    def __deepcopy__(self, memo):  # what is measured is a copy
        return self

    def forward_batch(self, batch):
        output = self.bias.expand(batch.views.num_views, 5).clone()
        output.register_hook(self.seen.append)
        return output


def test_the_loss_is_that_of_all_views():
    """A view of every sample counts a third of it, where each has three."""
    network = Recording()
    batch = batch_of(network, "11 11")
    measure_step(network, TASK, replace(batch, views=Views.with_subsets(batch.presence)))
    gradient = network.seen[-1]
    assert gradient.shape == (6, 5)
    assert gradient.abs().sum(dim=1).tolist() == pytest.approx([1.6 / 6] * 6)


def test_the_network_stays_as_it_is():
    network = small_resnet(2)
    before = {name: x.clone() for name, x in network.state_dict().items()}
    measure_step(network, TASK, batch_of(network, "11 10 01"))
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_a_batch_without_a_target_is_refused():
    network = small_resnet(2)
    with pytest.raises(ValueError, match="target"):
        measure_step(network, TASK, replace(batch_of(network), target=None))
