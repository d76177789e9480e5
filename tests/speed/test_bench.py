"""Steps side by side on the CPU, and kinds of kernels by name."""

import io

import pytest
from rich.console import Console

from manystream.memory.case import Case
from manystream.models import StreamResNet, resnet_size
from manystream.speed.bench import Way, kinds_table, measure_ways, table_of, ways_of, with_ratios
from manystream.speed.kinds import kind_of

BASELINES = "benchmarks/baselines.py"


@pytest.fixture(scope="module")
def rows():
    streams = {"rgb": 3, "depth": 1}
    layout = StreamResNet(**resnet_size(18, 0.0625), in_channels=streams, num_classes=2).layout
    case = Case("fast", layout, batch_size=3, image_size=(32, 32), device="cpu", steps=3)
    cases = [Case("masked in-place", layout, BASELINES, 3, (32, 32), device="cpu", steps=3), case]
    unknown = Case("no such way", layout, BASELINES, 3, (32, 32), device="cpu", steps=3)
    return with_ratios(list(measure_ways([Way(c) for c in [*cases, unknown]])))


def test_ratios_are_against_masked_execution(rows):
    masked, fast, _ = rows
    assert masked["speedup"] == 1
    assert fast["speedup"] == pytest.approx(masked["step_ms"] / fast["step_ms"])
    assert fast["ratio_to"] == "masked in-place"


def test_a_mode_stands_beside_its_floor(rows):
    masked, fast, _ = rows
    assert "floor_ms" not in masked
    assert 0 < fast["floor_ms"] < fast["step_ms"]
    assert fast["flops"] > 0


def test_what_cannot_be_measured_is_said(rows):
    assert "no such way" not in rows[0]["way"]
    assert "'no such way'" in rows[2]["error"]
    console = Console(width=100, file=io.StringIO())
    console.print(table_of(rows))
    shown = console.file.getvalue()
    assert "masked in-place" in shown
    assert "has no" in shown
    assert kinds_table(rows) is None


def test_graphs_are_measured_where_there_is_a_gpu():
    layout = {"in_channels": [3, 1], "num_classes": 2}
    on_gpu = ways_of(Case("fast", layout), None)
    assert [w.name for w in on_gpu][:2] == ["fast", "fast, graphs"]
    assert not any(w.graphs for w in ways_of(Case("fast", layout, device="cpu"), None))


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16", "convolution"),
        ("nvjet_sm90_tst_64x256_64x5_1x2_h_badd_TNN", "matrix product"),
        ("_reduce_kernel", "norm"),
        ("void at::native::batch_norm_collect_statistics_channels_last_kernel", "norm"),
        ("_pool_gradient_kernel", "pooling"),
        (
            "void at::native::(anonymous namespace)::multi_tensor_apply_kernel",
            "optimizer and casts",
        ),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add",
            "elementwise",
        ),
        ("something_new", "other"),
    ],
)
def test_kernels_have_kinds(kernel, kind):
    assert kind_of(kernel) == kind
