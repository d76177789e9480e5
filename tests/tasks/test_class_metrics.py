import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from manystream.tasks.class_metrics import CalibrationError, ChanceLevel, MeanClassAccuracy


def measured(target, predicted, num_classes=4) -> float:
    metric = MeanClassAccuracy(num_classes)
    scores = torch.nn.functional.one_hot(torch.tensor(predicted), num_classes).float()
    metric.update(scores, torch.tensor(target))
    return metric.compute().item()


def test_every_class_counts_the_same():
    # Class 0: 3 of 4, class 1: 1 of 1, class 2: 0 of 1, class 3: 1 of 2.
    target = [0, 0, 0, 0, 1, 2, 3, 3]
    predicted = [0, 0, 0, 3, 1, 0, 3, 2]
    assert measured(target, predicted) == pytest.approx((0.75 + 1 + 0 + 0.5) / 4)


def test_a_class_without_samples_does_not_count():
    # Class 3 has no sample, though it was predicted: torchmetrics' macro average takes it for 0.
    assert measured([0, 0, 1, 2], [0, 3, 1, 2]) == pytest.approx((0.5 + 1 + 1) / 3)


def test_batches_add_up():
    metric = MeanClassAccuracy(2)
    metric.update(torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([0, 1]))
    metric.update(torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([0, 0]))
    assert metric.compute().item() == pytest.approx((1 + 0) / 2)


def test_the_calibration_error_is_that_of_torchmetrics():
    ours, theirs = CalibrationError(4), MulticlassCalibrationError(4, n_bins=15, norm="l1")
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        probabilities = torch.randn(20, 4, generator=generator).softmax(dim=1)
        target = torch.randint(4, (20,), generator=generator)
        ours.update(probabilities, target)
        theirs.update(probabilities, target)
    assert ours.compute() == theirs.compute()
    assert 0 < ours.compute() < 1


def test_the_calibration_error_by_hand():
    # Four answers of confidence 0.8, three of them right; two of 0.6, none right.
    metric = CalibrationError(2)
    metric.update(torch.tensor([[0.8, 0.2]] * 4), torch.tensor([0, 0, 0, 1]))
    metric.update(torch.tensor([[0.4, 0.6]] * 2), torch.tensor([0, 0]))
    assert metric.compute().item() == pytest.approx(4 / 6 * 0.05 + 2 / 6 * 0.6, abs=1e-6)


def test_chance_is_of_the_samples_that_were_measured():
    chance = ChanceLevel(5)
    chance.update(torch.tensor([1, 1, 3]))
    chance.update(torch.tensor([1, 4]))
    found = {name: value.item() for name, value in chance.compute().items()}
    assert found == pytest.approx({"accuracy": 3 / 5, "mean_class_accuracy": 1 / 3})
