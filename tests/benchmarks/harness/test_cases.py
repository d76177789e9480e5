"""Cases out of options, and who is present in them."""

from argparse import ArgumentParser

import pytest
import torch

from harness.cases import Case, add_case_options, baselines, blanked_in_turn, modes, own_case


def own(*words: str) -> Case | None:
    parser = ArgumentParser()
    add_case_options(parser)
    return own_case(parser.parse_args(words), Case(device="cpu", steps=3))


def test_without_options_there_is_no_network_of_ones_own():
    assert own() is None


def test_one_option_describes_a_network_of_ones_own():
    case = own("--streams", "rgb=3", "infrared=2", "--image-size", "32", "48")
    assert case.streams == {"rgb": 3, "infrared": 2}
    assert case.image_size == (32, 48)
    assert (case.depth, case.device, case.steps) == (18, "cpu", 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batch-size", "0"), "batch_size is 0"),
        (("--blanked", "1.5"), "blanked is 1.5; expected a share"),
        (("--streams", "rgb=3"), "the one stream there is must stay"),
        (("--depth", "19"), "depth is 19"),
        (("--family", "li_net4"), "unknown family 'li_net4'"),
    ],
)
def test_a_network_that_cannot_be_is_refused_before_all_work(words, message):
    with pytest.raises(ValueError, match=message):
        own(*words)


def test_a_stream_needs_channels(capsys):
    with pytest.raises(SystemExit):
        own("--streams", "rgb")
    assert "such as depth=1" in capsys.readouterr().err


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="unknown way 'fastest'; expected one of fast, "):
        Case("fastest")


def test_graphs_stand_after_each_mode():
    assert [(c.name, c.graphs) for c in modes(Case(), graphs=True)][:3] == [
        ("fast", False),
        ("fast", True),
        ("balanced", False),
    ]
    assert not any(c.graphs for c in modes(Case()))


def test_generated_code_is_for_a_gpu():
    compiled = [c.name for c in baselines(Case(device="cuda")) if "compile" in c.name]
    assert compiled == ["torch.compile (dropout off)"]
    assert not [c for c in baselines(Case(device="cpu")) if "compile" in c.name]


def test_streams_are_lost_in_turn():
    expected = [[False, True], [True, False], [True, True], [True, True]]
    assert torch.equal(blanked_in_turn(4, 2, 0.5), torch.tensor(expected))
