import pytest
import torch
from PIL import Image

from manystream.evaluation.per_class import ClassTable
from manystream.evaluation.plots import plot_confusion
from tests.builders import mask_of
from tests.training.builders import CPU, dict_batches, tiny_model, tuple_batches

TABLE = ClassTable(
    ("bed", "desk", "sofa", "tub"),
    torch.tensor([[6, 0, 2, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
)


def test_a_row_for_every_class():
    bed, desk, sofa, tub = TABLE.rows()
    assert (bed.name, bed.num_samples, bed.accuracy) == ("bed", 8, 0.75)
    assert (bed.precision, bed.taken_for) == (pytest.approx(6 / 7), "sofa")
    assert (desk.accuracy, desk.precision, desk.taken_for) == (0.75, 1.0, "bed")
    assert (sofa.num_samples, sofa.accuracy, sofa.precision, sofa.taken_for) == (0, None, 0, None)
    assert (tub.accuracy, tub.precision) == (None, None)


def test_it_counts_what_the_network_says():
    model = tiny_model()
    batches = dict_batches(tuple_batches(24), mask_of("11 01 10 11 01 11 10 11"))
    model.fit(batches, epochs=2, learning_rate=0.01, **CPU)
    table = model.evaluate_classes(batches, classes="abc", blanked_streams=["rgb"], **CPU)
    expected = torch.zeros(3, 3, dtype=torch.int64)
    model.eval()
    for batch in batches:
        has = batch["present"][:, 1]
        logits = model({"depth": batch["depth"][has]})
        for target, predicted in zip(batch["target"][has], logits.argmax(dim=1), strict=True):
            expected[target, predicted] += 1
    assert torch.equal(table.confusion, expected)
    assert table.confusion.sum() == 18
    accuracy = model.evaluate(batches, blanked_streams=["rgb"], **CPU)["mean_class_accuracy"]
    assert sum(row.accuracy for row in table.rows()) / 3 == pytest.approx(accuracy)


def test_its_picture(tmp_path):
    plot_confusion(TABLE).savefig(tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        assert min(image.size) > 200
        assert len(image.convert("RGB").getcolors(2**20)) > 50
