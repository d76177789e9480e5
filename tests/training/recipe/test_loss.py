import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from manystream.training.recipe.loss import (
    ClassificationLoss,
    LossOptions,
    balanced_weights,
    make_loss,
)

WEIGHTS = [0.5, 2.0, 0.0, 1.0]


def some_logits(count=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, 4, generator=generator, dtype=dtype)
    return logits.requires_grad_(), torch.arange(count) % 4


def by_hand(logits, target, gamma, smoothing, weights):
    """The formula, sample by sample and class by class."""
    total = 0.0
    for row, y in zip(logits.detach().numpy(), target.tolist(), strict=True):
        p = np.exp(row) / np.exp(row).sum()
        entropy = 0.0
        for c in range(len(p)):
            q = smoothing / len(p) + (1 - smoothing if c == y else 0)
            entropy -= q * math.log(p[c])
        total += weights[y] * (1 - p[y]) ** gamma * entropy
    return total / len(target)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_it_is_its_formula(gamma, smoothing, weights):
    logits, target = some_logits()
    given = None if weights is None else torch.tensor(weights)
    loss = ClassificationLoss(gamma, smoothing, given)
    expected = by_hand(logits, target, gamma, smoothing, weights or [1.0] * 4)
    assert loss(logits, target).item() == pytest.approx(expected, rel=1e-12)
    torch.autograd.gradcheck(lambda x: loss(x, target), logits)


def test_batches_of_one_size_add_up():
    logits, target = some_logits(8)
    loss = ClassificationLoss(2.0, class_weights=torch.tensor(WEIGHTS))
    halves = [loss(logits[part], target[part]) for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(sum(halves) / 2, loss(logits, target))


def test_a_sure_answer_has_a_finite_gradient():
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    ClassificationLoss(gamma=0.5)(logits, torch.tensor([0])).backward()
    assert logits.grad.isfinite().all()


def test_balanced_weights_are_the_inverse_frequency():
    targets = [0] * 6 + [1] * 3 + [3]
    assert balanced_weights(targets, 4) == pytest.approx([10 / 18, 10 / 9, 0, 10 / 3])
    found = balanced_weights(torch.tensor(targets), 4)
    assert sum(found[y] for y in targets) / 10 == pytest.approx(1)


@pytest.mark.parametrize("own", [True, False])
def test_balanced_weights_are_counted_from_the_data_set(own):
    owner = SimpleNamespace(targets=torch.tensor([0, 0, 0, 1]))
    dataset = SimpleNamespace(source=owner) if own else owner
    loss = make_loss(LossOptions(class_weights="balanced"), 2, SimpleNamespace(dataset=dataset))
    assert loss.class_weights.tolist() == pytest.approx([2 / 3, 2.0])


def test_what_cannot_be_counted_or_does_not_fit():
    with pytest.raises(ValueError, match="has no targets to count; give it an attribute `targets`"):
        make_loss(LossOptions(class_weights="balanced"), 2, [])
    with pytest.raises(ValueError, match="class_weights has 3 numbers; the model has 2 classes"):
        make_loss(LossOptions(class_weights=[1.0, 2.0, 3.0]), 2, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "hinge"}, "loss is 'hinge'; expected one of cross_entropy, focal"),
        ({"focal_gamma": -1.0}, "focal_gamma is -1.0; expected 0 or more"),
        ({"class_weights": "even"}, "class_weights is 'even'; expected one of balanced"),
        ({"class_weights": [1.0, -1.0]}, "expected numbers from 0"),
        ({"class_weights": [0.0, 0.0]}, "one above 0"),
    ],
)
def test_what_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        LossOptions(**changes)
