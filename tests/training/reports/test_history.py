import json
import math
from pathlib import Path

import pytest

from manystream.training.reports.history import History


def strict(path: Path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_an_entry_per_epoch():
    history = History()
    assert history.num_epochs == 0
    history.append({"train_loss": 2.0})
    history.append({"train_loss": 1.0, "val_loss": 3.0})
    history.append({"train_loss": 0.5})
    assert list(history) == ["train_loss", "val_loss"]
    assert history["train_loss"] == [2.0, 1.0, 0.5]
    assert history["val_loss"] == pytest.approx([math.nan, 3.0, math.nan], nan_ok=True)
    assert history.num_epochs == 3


def test_what_is_not_finite_is_null_on_disk(tmp_path):
    path = tmp_path / "history.json"
    history = History(train_loss=[1.5, math.nan, math.inf, -math.inf])
    history.save(path)
    assert strict(path) == {"train_loss": [1.5, None, None, None]}
    assert math.isnan(history["train_loss"][1])


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "history.json"
    History(train_loss=[1.0]).save(path)

    def fill_the_disk(self, text):
        with self.open("w") as file:
            file.write(text[:5])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    with pytest.raises(OSError, match="no space left"):
        History(train_loss=[1.0, 2.0]).save(path)
    assert strict(path) == {"train_loss": [1.0]}


def test_nothing_else_is_left_behind(tmp_path):
    for epochs in (1, 2):
        History(train_loss=[1.0] * epochs).save(tmp_path / "history.json")
    assert [p.name for p in tmp_path.iterdir()] == ["history.json"]
    assert strict(tmp_path / "history.json") == {"train_loss": [1.0, 1.0]}
