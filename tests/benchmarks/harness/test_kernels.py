"""Kinds of kernels by name."""

import pytest

from harness.kernels import kind_of


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
