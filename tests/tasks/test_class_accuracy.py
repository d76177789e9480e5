import pytest
import torch

from manystream.tasks.class_accuracy import MeanClassAccuracy


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
