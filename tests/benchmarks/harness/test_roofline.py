"""Rooflines against what can be counted by hand."""

import pytest
import torch
import torch.nn.functional as F

from harness.roofline import Ceilings, roofline_of

SLOW_MEMORY = Ceilings(flops_per_s=1e30, bytes_per_s=1e9)
SLOW_ARITHMETIC = Ceilings(flops_per_s=1e9, bytes_per_s=1e30)
FLOAT = 4


def test_a_matrix_product_moves_its_three_matrices():
    left, right = torch.randn(20, 30), torch.randn(30, 40)
    roofline = roofline_of(lambda: left @ right, SLOW_MEMORY)
    assert roofline.flops == 2 * 20 * 30 * 40
    assert roofline.bytes == FLOAT * (20 * 30 + 30 * 40 + 20 * 40)
    assert roofline.ms == pytest.approx(roofline.bytes / 1e9 * 1000)
    assert roofline_of(lambda: left @ right, SLOW_ARITHMETIC).ms == pytest.approx(
        roofline.flops / 1e9 * 1000
    )


def test_a_product_added_in_place_counts_too():
    out, left, right = torch.zeros(4, 6), torch.randn(4, 5), torch.randn(5, 6)
    assert roofline_of(lambda: out.addmm_(left, right), SLOW_MEMORY).flops == 2 * 4 * 5 * 6


def test_views_and_empty_memory_cost_nothing():
    x = torch.randn(8, 8)
    roofline = roofline_of(lambda: torch.empty_like(x.t().reshape(4, 16)[1:].detach()), SLOW_MEMORY)
    assert roofline.flops == 0
    assert roofline.bytes == 2 * FLOAT * 64  # the copy that reshape makes of a transposed matrix


def test_the_backward_pass_is_counted():
    x = torch.randn(2, 3, 8, 8)
    kernel = torch.randn(4, 3, 3, 3, requires_grad=True)
    forward = roofline_of(lambda: F.conv2d(x, kernel, padding=1), SLOW_ARITHMETIC)
    both = roofline_of(lambda: F.conv2d(x, kernel, padding=1).sum().backward(), SLOW_ARITHMETIC)
    assert forward.flops == 2 * 2 * 4 * 8 * 8 * 3 * 9
    assert both.flops == 2 * forward.flops  # the input wants no gradient


def test_ceilings_are_those_of_a_machine():
    ceilings = Ceilings.measure(torch.device("cpu"), torch.float32)
    assert 1e8 < ceilings.flops_per_s < 1e15
    assert 1e7 < ceilings.bytes_per_s < 1e14
