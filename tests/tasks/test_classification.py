import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from manystream.tasks import Classification, StepLoss, load_task
from manystream.tasks.classification import balanced_weights
from manystream.training import FitOptions
from manystream.training.module import make_loss

TARGET = torch.tensor([0, 4])
WEIGHTS = [0.5, 2.0, 0.0, 1.0]


def some_logits(count=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, 4, generator=generator, dtype=dtype)
    return logits.requires_grad_(), torch.arange(count) % 4


def loss_of(**options):
    """The loss of four classes that these options ask for."""
    return Classification(4).training_loss(FitOptions(**options))


def by_hand(logits, target, gamma, smoothing, weights):
    """The formula, sample by sample and class by class."""
    losses = []
    for row, y in zip(logits.detach().numpy(), target.tolist(), strict=True):
        p = np.exp(row) / np.exp(row).sum()
        entropy = 0.0
        for c in range(len(p)):
            q = smoothing / len(p) + (1 - smoothing if c == y else 0)
            entropy -= q * math.log(p[c])
        losses.append(weights[y] * (1 - p[y]) ** gamma * entropy)
    return losses


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_it_is_its_formula(gamma, smoothing, weights):
    logits, target = some_logits()
    loss = loss_of(
        loss="focal", focal_gamma=gamma, label_smoothing=smoothing, class_weights=weights
    )
    expected = by_hand(logits, target, gamma, smoothing, weights or [1.0] * 4)
    assert loss(logits, target).tolist() == pytest.approx(expected, rel=1e-12)
    mean = StepLoss(loss)(logits, target).item()
    assert mean == pytest.approx(sum(expected) / len(expected), rel=1e-12)
    torch.autograd.gradcheck(lambda x: loss(x, target), logits)


def test_batches_of_one_size_add_up():
    logits, target = some_logits(8)
    loss = StepLoss(loss_of(loss="focal", class_weights=WEIGHTS))
    halves = [loss(logits[part], target[part]) for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(sum(halves) / 2, loss(logits, target))


def test_a_sure_answer_has_a_finite_gradient():
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    loss = Classification(2).training_loss(FitOptions(loss="focal", focal_gamma=0.5))
    loss(logits, torch.tensor([0])).sum().backward()
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
    options = FitOptions(class_weights="balanced")
    loss = make_loss(Classification(2), options, SimpleNamespace(dataset=dataset))
    # Equal logits: every loss is log 2 times its weight.
    losses = loss.losses(torch.zeros(2, 2), torch.tensor([0, 1])) / math.log(2)
    assert losses.tolist() == pytest.approx([2 / 3, 2.0])


def test_what_cannot_be_counted_or_does_not_fit():
    with pytest.raises(ValueError, match="has no targets to count; give it an attribute `targets`"):
        make_loss(Classification(2), FitOptions(class_weights="balanced"), [])
    with pytest.raises(ValueError, match="class_weights has 3 numbers; the model has 2 classes"):
        make_loss(Classification(2), FitOptions(class_weights=[1.0, 2.0, 3.0]), [])


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
        FitOptions(**changes)


def test_half_precision_is_widened_before_a_loss_or_a_probability():
    logits, target = some_logits(dtype=torch.bfloat16)
    task = Classification(4)
    expected = F.cross_entropy(logits.float(), target, reduction="none")
    assert torch.equal(task.loss(logits, target), expected)
    assert torch.equal(loss_of()(logits, target), expected)
    assert torch.equal(task.predict(logits), logits.float().softmax(dim=1))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (None, "batches have no target"),
        (TARGET.float(), r"target is torch.float32 of shape \(2,\); expected int64"),
        (TARGET.int(), "target is torch.int32"),
        (TARGET[:1], r"of shape \(1,\); expected int64 of shape \(2,\)"),
        (TARGET[:, None], r"of shape \(2, 1\)"),
        ({"class": TARGET}, "target is dict; expected a torch.Tensor"),
        (torch.tensor([0, 5]), "sample 1 of the batch is 5; expected 0 to 4, the model has 5"),
        (torch.tensor([-1, 0]), "sample 0 of the batch is -1"),
    ],
)
def test_targets_that_do_not_fit(target, message):
    with pytest.raises(ValueError, match=message):
        Classification(5).check_target(target, 2)


def test_the_sample_with_a_wrong_target_is_named():
    with pytest.raises(ValueError, match="the target of 'bed/7' is 9; expected 0 to 4"):
        Classification(5).check_target(torch.tensor([4, 9]), 2, ["bed/6", "bed/7"])
    Classification(5).check_target(TARGET, 2, ["bed/6", "bed/7"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes is 1; expected at least 2"),
        ({}, "num_classes is 0; expected at least 2"),
        ({"num_classes": 3, "classes": ["a", "b"]}, "classes are 2 names; num_classes is 3"),
    ],
)
def test_classes_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        Classification(**arguments)


def test_predictions_are_laid_out_as_a_table():
    probabilities = torch.tensor([[0.25, 0.75], [0.875, 0.125]])
    table = Classification(classes=["class", "desk"]).describe(probabilities)
    assert table == [
        ("class", ["desk", "class"]),
        ("probability", [0.75, 0.875]),
        ("class", [0.25, 0.875]),
        ("desk", [0.75, 0.125]),
    ]
    assert Classification(2).describe(probabilities)[0] == ("class", ["1", "0"])


@pytest.mark.parametrize("classes", [None, ("bed", "desk", "sofa")])
def test_it_is_built_again_from_its_section(classes):
    task = Classification(3, classes)
    section = json.loads(json.dumps({"type": task.name, **task.to_dict()}))
    again = load_task(section)
    assert isinstance(again, Classification)
    assert (again.num_outputs, again.classes) == (3, classes)


def test_an_answer_is_the_most_probable_class_and_how_sure():
    task = Classification(classes=["bed", "desk", "sofa"])
    predictions, target = torch.tensor([[0.25, 0.5, 0.25], [0.75, 0.25, 0.0]]), torch.tensor([1, 2])
    assert task.answers(predictions, target) == [("desk", 0.5, True), ("bed", 0.75, False)]
    assert task.describe_target(target) == ["desk", "sofa"]
    assert Classification(3).describe_target(target) == ["1", "2"]
