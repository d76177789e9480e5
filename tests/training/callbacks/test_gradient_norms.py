import copy

import pytest
import torch
import torch.nn.functional as F

from tests.training.builders import CPU, tiny_model, tuple_batches


def norms_by_hand(model, batches):
    """Norm of each part's gradient, from modules instead of names."""
    for *images, target in batches:
        (F.cross_entropy(model(images), target) / len(batches)).backward()
    everything = {id(p): p.grad for p in model.parameters() if p.grad is not None}
    of_streams = [{}, {}]
    for module in model.modules():
        for m, stream in enumerate(getattr(module, "streams", [])):
            of_streams[m] |= {
                id(p): everything[id(p)] for p in stream.parameters() if p.grad is not None
            }
    shared = {i: g for i, g in everything.items() if not any(i in part for part in of_streams)}
    parts = dict(zip(("rgb", "depth", "shared"), (*of_streams, shared), strict=True))
    return {
        name: torch.cat([g.flatten() for g in part.values()]).norm().item()
        for name, part in parts.items()
    }


@pytest.mark.parametrize("num_batches", [1, 2])
def test_norms_of_one_step(num_batches):
    batches = tuple_batches(8 * num_batches)
    model = tiny_model()
    expected = norms_by_hand(copy.deepcopy(model), batches)
    history = model.fit(
        batches,
        epochs=1,
        accumulate_batches=num_batches,
        log_gradient_norms=True,
        gradient_clip=1e-3,
        **CPU,
    )
    found = {part: history[f"gradient_norm/{part}"][0] for part in expected}
    assert found == pytest.approx(expected, rel=1e-5)
    assert min(expected.values()) > 1e-2  # far above what is left after clipping


def test_they_are_off_by_default_and_of_what_the_network_has():
    assert not any("norm" in name for name in tiny_model().fit(tuple_batches(8), epochs=1, **CPU))
    history = tiny_model(family="early_fusion").fit(
        tuple_batches(8), epochs=1, log_gradient_norms=True, **CPU
    )
    assert [name for name in history if "norm" in name] == ["gradient_norm/shared"]
