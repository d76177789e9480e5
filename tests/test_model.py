import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import manystream as ms
from manystream.layers import BasicBlock, Bottleneck
from manystream.tasks import Classification
from tests.training.builders import tiny_model

STREAMS = {"rgb": 3, "depth": 1}


def described(path) -> dict:
    """What a model file says about itself."""
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])
    return json.loads(header["__metadata__"]["manystream"])


def scrambled(model):
    """The model with nothing at its initial value."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 1.0)
            else:
                tensor.fill_(7)
    return model


@pytest.mark.parametrize(
    ("depth", "block", "layers", "convolutions"),
    [
        (18, BasicBlock, (2, 2, 2, 2), 16),
        (34, BasicBlock, (3, 4, 6, 3), 32),
        (50, Bottleneck, (3, 4, 6, 3), 48),
        (101, Bottleneck, (3, 4, 23, 3), 99),
    ],
)
def test_the_depth_is_that_of_the_resnet(depth, block, layers, convolutions):
    with torch.device("meta"):
        model = ms.create_model(depth=depth, streams=STREAMS, num_classes=2, width=0.0625)
    stages = [
        model.network.layer1,
        model.network.layer2,
        model.network.layer3,
        model.network.layer4,
    ]
    assert tuple(len(stage) for stage in stages) == layers
    assert all(isinstance(b, block) for stage in stages for b in stage)
    per_block = 2 if block is BasicBlock else 3
    assert per_block * sum(layers) == convolutions == depth - 2


def test_the_width_multiplies_every_stage():
    model = ms.create_model(streams=STREAMS, num_classes=5, width=0.25)
    assert model.network.conv1.streams[0].weight.shape == (16, 3, 7, 7)
    assert isinstance(model.network.fc, nn.Linear)
    assert (model.network.fc.in_features, model.network.fc.out_features) == (128, 5)
    assert ms.create_model(streams=STREAMS, num_classes=2, width=0.001).network.fc.in_features == 1


def test_streams_are_named_or_numbered():
    assert ms.create_model(streams=STREAMS, num_classes=2, width=0.1).stream_names == (
        "rgb",
        "depth",
    )
    assert ms.create_model(streams=[3, 1, 2], num_classes=2, width=0.1).network.in_channels == {
        "0": 3,
        "1": 1,
        "2": 2,
    }


def test_dropout_is_before_the_head():
    assert (
        ms.create_model(streams=STREAMS, num_classes=2, width=0.1, dropout=0.4).network.dropout.p
        == 0.4
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 19}, "depth is 19; expected one of 18, 34, 50, 101"),
        ({"width": 0.0}, "width is 0.0; expected a multiplier above 0"),
        ({"width": 1e9}, "width is 1000000000.0; expected a multiplier above 0, up to 16"),
        ({"width": math.nan}, "width is nan; expected a multiplier above 0, up to 16"),
        ({"family": "li_net4"}, "unknown family 'li_net4'; expected one of li_net3"),
        ({"dropout": 1.0}, r"dropout is 1.0; expected a probability in \[0, 1\)"),
        ({"num_classes": 1}, "num_classes is 1; expected at least 2"),
        ({"num_classes": None}, "expected either num_classes or a task"),
        ({"task": Classification(2)}, "expected either num_classes or a task"),
        ({"streams": {}}, "expected at least one"),
        ({"streams": {"rgb": 0}}, "each with its number of channels"),
    ],
)
def test_what_cannot_be_created(changes, message):
    arguments = {"streams": STREAMS, "num_classes": 2, "width": 0.0625, **changes}
    with pytest.raises(ValueError, match=message):
        ms.create_model(**arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_file_gives_the_model_back_bit_for_bit(tmp_path, dtype):
    task = Classification(classes=["bed", "desk", "sofa"])
    model = scrambled(tiny_model(dropout=0.3, task=task)).to(dtype).eval()
    model.preprocessing = {"image_size": 32, "streams": [{"name": "rgb", "mean": [0.1, 1 / 3]}]}
    model.held_out = {"val_share": 0.3, "split_seed": 7}
    model.save(tmp_path / "model.safetensors")
    loaded = ms.load_model(tmp_path / "model.safetensors").eval()
    assert loaded.classes == ("bed", "desk", "sofa")
    assert loaded.preprocessing == model.preprocessing
    assert loaded.held_out == model.held_out
    assert loaded.stream_names == model.stream_names
    assert loaded.network.dropout.p == 0.3
    kept, found = model.state_dict(), loaded.state_dict()
    assert list(kept) == list(found)
    for name in kept:
        assert found[name].dtype == kept[name].dtype
        assert torch.equal(found[name], kept[name])
    images = [torch.randn(2, c, 32, 32).to(dtype) for c in (3, 1)]
    assert torch.equal(loaded(images), model(images))
    weight = loaded.network.conv1.streams[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_model_without_classes_is_kept_without(tmp_path):
    tiny_model().save(tmp_path / "m.safetensors")
    loaded = ms.load_model(tmp_path / "m.safetensors")
    assert (loaded.classes, loaded.preprocessing) == (None, None)


def test_saving_again_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "m.safetensors"
    tiny_model(seed=1).save(path)
    model = tiny_model(seed=2)
    model.save(path)
    assert torch.equal(load_file(path)["fc.weight"], model.network.fc.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_the_file_says_what_network_it_holds(tmp_path):
    path = tmp_path / "m.safetensors"
    model = ms.create_model(depth=34, streams=STREAMS, num_classes=4, width=0.0625)
    model.save(path)
    sections = described(path)
    assert sections["network"]["layers"] == [3, 4, 6, 3]
    assert sections["network"]["in_channels"] == STREAMS
    assert sections["task"] == {"type": "classification", "num_classes": 4, "classes": None}
    assert ms.load_model(path).task.num_outputs == 4


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def garble_the_header(path):
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


def empty(path):
    path.write_bytes(b"")


def write_foreign_tensors(path):
    save_file({"fc.weight": torch.ones(2, 2)}, path)


def write_foreign_metadata(path):
    save_file({"fc.weight": torch.ones(2, 2)}, path, metadata={"manystream": "{"})


def pickle_a_state_dict(path):
    torch.save(tiny_model().state_dict(), path)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        garble_the_header,
        empty,
        write_foreign_tensors,
        write_foreign_metadata,
        pickle_a_state_dict,
    ],
)
def test_a_file_that_is_not_a_whole_one_of_ours(tmp_path, damage):
    path = tmp_path / "m.safetensors"
    tiny_model().save(path)
    damage(path)
    with pytest.raises(ValueError, match=r"m\.safetensors is not a model file of manystream, or"):
        ms.load_model(path)


def test_no_file(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ValueError, match="no model file at"):
            ms.load_model(path)


def test_a_state_dict_is_taken_from_the_network_or_the_model():
    model = scrambled(tiny_model())
    for state in (model.state_dict(), model.network.state_dict()):
        again = tiny_model(seed=1)
        again.load_state_dict(state)
        found = again.state_dict()
        assert all(torch.equal(found[n], tensor) for n, tensor in model.state_dict().items())
    holder = nn.ModuleDict({"inside": tiny_model(seed=1)})
    holder.load_state_dict({f"inside.{n}": t for n, t in model.network.state_dict().items()})
    assert torch.equal(holder["inside"].network.fc.weight, model.network.fc.weight)
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({"fc.weight": model.network.fc.weight})


def test_the_memory_mode_goes_with_the_file(tmp_path):
    model = tiny_model()
    model.memory = "lean"
    model.save(tmp_path / "m.safetensors")
    assert ms.load_model(tmp_path / "m.safetensors").memory == "lean"


def test_a_network_of_ones_own_says_that_it_cannot_be_written(tmp_path):
    class Own(ms.models.StreamNetwork):
        pass

    model = ms.StreamModel(Own(STREAMS, 3), Classification(3))
    with pytest.raises(ValueError, match="Own does not say how it is built"):
        model.save(tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_nobody_has_imported_is_named(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    model = tiny_model()
    monkeypatch.setattr(Classification, "name", "ages")
    model.save(path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"m\.safetensors .*'ages'.*import the module"):
        ms.load_model(path)
