"""Convolution of images with few channels: libraries are slow there, for matrix units want many.

The images are padded: with zeros around them, and to four channels in channels-last order. What a
window sees in one line then lies side by side in memory, k pixels of four values: a *span*, rounded
up to a power of two. The spans of a window, one below the other, make a row of a matrix, which is
put together tile by tile and multiplied with the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from manystream.functional.kernels.dispatch import interpreted
from manystream.functional.kernels.registry import operation
from manystream.functional.kernels.tiles import block_columns, share

_CHANNELS = 4
_PIXEL = tl.constexpr(_CHANNELS)  # values of a padded pixel, as kernels read it
_LEAST = 16  # what a matrix unit takes at least
_PIXELS_FORWARD, _PIXELS_BACKWARD = 128, 64
"""Pixels of a tile. A kernel of side 7 and stride 2 from 3 to 64 channels, at (115, 3, 224, 224) in
bfloat16, took 268 µs forward and 280 backward on an H200, 82 of each to pad the images; library
kernels took 805 and 519.
"""
_STAGES = tl.constexpr(2)


@triton.jit
def _first_values(pixel, out_height, out_width, height, width, STRIDE: tl.constexpr):
    """Tell where the windows of some output pixels begin in the padded images."""
    out_line = pixel // out_width
    image = (out_line // out_height).to(tl.int64)
    line = image * height + (out_line % out_height) * STRIDE
    return (line * width + (pixel % out_width) * STRIDE) * _PIXEL


@triton.jit
def _add_product(first, second, total, WIDEN: tl.constexpr, PRECISION: tl.constexpr):
    if WIDEN:  # the interpreter has no bfloat16 products; the factors are rounded already
        first, second = first.to(tl.float32), second.to(tl.float32)
    return tl.dot(first, second, total, input_precision=PRECISION)


@triton.jit(do_not_specialize=["pixels"])
def _few_channels_conv_kernel(
    padded,
    weight,
    y,
    pixels,
    out_height,
    out_width,
    height,
    width,
    columns,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    SPAN: tl.constexpr,
    TAPS: tl.constexpr,
    PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = tl.arange(0, SPAN)
    first = _first_values(pixel, out_height, out_width, height, width, STRIDE)
    there, in_columns = pixel < pixels, column < columns
    total = tl.zeros((PIXELS, COLUMNS), tl.float32)
    for tap in tl.static_range(KERNEL):
        where = (first + tap * width * _PIXEL)[:, None] + place[None, :]
        seen = tl.load(padded + where, mask=there[:, None], other=0.0)
        where = (tap * SPAN + place)[:, None] + column[None, :] * (TAPS * SPAN)
        kernel = tl.load(weight + where, mask=in_columns[None, :], other=0.0)
        total = _add_product(seen, kernel, total, WIDEN, PRECISION)
    where = pixel.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(y + where, total, mask=there[:, None] & in_columns[None, :])


@triton.jit(do_not_specialize=["pixels", "tiles_each"])
def _few_channels_wgrad_kernel(
    grad,
    padded,
    partial,
    pixels,
    out_height,
    out_width,
    height,
    width,
    columns,
    tiles_each,
    STRIDE: tl.constexpr,
    SPAN: tl.constexpr,
    TAPS: tl.constexpr,
    PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Give one program's share of the kernel's gradient, spans with what they are padded with."""
    program = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = column < columns
    entry = tl.arange(0, TAPS * SPAN)
    offset = (entry // SPAN) * (width * _PIXEL) + entry % SPAN
    total = tl.zeros((COLUMNS, TAPS * SPAN), tl.float32)
    for tile in tl.range(program * tiles_each, (program + 1) * tiles_each, num_stages=_STAGES):
        pixel = tile * PIXELS + tl.arange(0, PIXELS)
        there = pixel < pixels
        first = _first_values(pixel, out_height, out_width, height, width, STRIDE)
        where = first[:, None] + offset[None, :]
        seen = tl.load(padded + where, mask=there[:, None], other=0.0)
        where = pixel.to(tl.int64)[:, None] * columns + column[None, :]
        upstream = tl.load(grad + where, mask=there[:, None] & in_columns[None, :], other=0.0)
        total = _add_product(tl.trans(upstream), seen, total, WIDEN, PRECISION)
    where = (program * columns + column)[:, None] * (TAPS * SPAN) + entry[None, :]
    tl.store(partial + where, total, mask=in_columns[:, None])


@dataclass(frozen=True)
class _Layout:
    """Sizes of a convolution and of its padded images."""

    batch: int
    out_height: int
    out_width: int
    kernel_size: int
    stride: int
    padding: int

    @staticmethod
    def of(x: Tensor, kernel_size: int, stride: int, padding: int) -> _Layout:
        height, width = ((s + 2 * padding - kernel_size) // stride + 1 for s in x.shape[2:])
        return _Layout(x.shape[0], height, width, kernel_size, stride, padding)

    @property
    def span(self) -> int:
        return int(max(triton.next_power_of_2(self.kernel_size * _CHANNELS), _LEAST))

    @property
    def taps(self) -> int:
        return int(triton.next_power_of_2(self.kernel_size))

    @property
    def pixels(self) -> int:
        return self.batch * self.out_height * self.out_width

    def padded_sides(self) -> tuple[int, int]:
        """Lines, and pixels of a line; kernels read as far as spans and taps are rounded up."""
        height = self.stride * (self.out_height - 1) + self.taps
        width = self.stride * (self.out_width - 1) + self.span // _CHANNELS
        return height, -(-width // _LEAST) * _LEAST

    def pad(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Read (B, C, H, W) with zeros around and beside it, channels-last."""
        height, width = self.padded_sides()
        padded = torch.zeros((self.batch, height, width, _CHANNELS), dtype=dtype, device=x.device)
        inside = padded[:, self.padding :, self.padding :, : x.shape[1]]
        lines, columns = min(x.shape[2], inside.shape[1]), min(x.shape[3], inside.shape[2])
        inside[:, :lines, :columns] = x.permute(0, 2, 3, 1)[:, :lines, :columns]
        return padded

    def pad_kernel(self, weight: Tensor) -> Tensor:
        """Read (C', C, k, k) as (C', taps · span)."""
        columns, channels, kernel_size, _ = weight.shape
        pixels = self.span // _CHANNELS
        padded = weight.new_zeros((columns, self.taps, pixels, _CHANNELS))
        padded[:, :kernel_size, :kernel_size, :channels] = weight.permute(0, 2, 3, 1)
        return padded

    def empty_like(self, weight: Tensor) -> Tensor:
        """Room for the output, channels-last."""
        return torch.empty(
            (self.batch, weight.shape[0], self.out_height, self.out_width),
            dtype=weight.dtype,
            device=weight.device,
            memory_format=torch.channels_last,
        )

    def sizes(self) -> tuple[int, ...]:
        """Return what kernels are told besides pointers."""
        return self.pixels, self.out_height, self.out_width, *self.padded_sides()

    def blocks(self, columns: int) -> dict[str, int | bool | str]:
        """Constants of the kernels."""
        return {
            "STRIDE": self.stride,
            "SPAN": self.span,
            "TAPS": self.taps,
            "COLUMNS": max(block_columns(columns), _LEAST),
            "WIDEN": interpreted(),
            "PRECISION": "tf32" if torch.backends.cudnn.allow_tf32 else "ieee",
        }


def _fake_conv(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    layout = _Layout.of(x, weight.shape[2], stride, padding)
    return layout.empty_like(weight)


@operation("(Tensor x, Tensor weight, int stride, int padding) -> Tensor", shapes=_fake_conv)
def few_channels_conv(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Return ``F.conv2d(x, weight, None, stride, padding)``, channels-last, in its dtype."""
    layout, columns = _Layout.of(x, weight.shape[2], stride, padding), weight.shape[0]
    y = layout.empty_like(weight)
    blocks = layout.blocks(columns)
    grid = triton.cdiv(layout.pixels, _PIXELS_FORWARD), triton.cdiv(columns, blocks["COLUMNS"])
    _few_channels_conv_kernel[grid](
        layout.pad(x, weight.dtype),
        layout.pad_kernel(weight),
        y,
        *layout.sizes(),
        columns,
        KERNEL=layout.kernel_size,
        **blocks,
        PIXELS=_PIXELS_FORWARD,
    )
    return y


@operation(
    "(Tensor grad, Tensor x, int kernel_size, int stride, int padding) -> Tensor",
    shapes=lambda grad, x, kernel_size, *_: x.new_empty(
        (grad.shape[1], x.shape[1], kernel_size, kernel_size), dtype=torch.float32
    ),
)
def few_channels_conv_backward(
    grad: Tensor, x: Tensor, kernel_size: int, stride: int, padding: int
) -> Tensor:
    """Return the gradient of the kernel, float32."""
    layout, columns = _Layout.of(x, kernel_size, stride, padding), grad.shape[1]
    blocks = layout.blocks(columns)
    across = triton.cdiv(columns, blocks["COLUMNS"])
    programs, each = share(triton.cdiv(layout.pixels, _PIXELS_BACKWARD), across)
    shape = (programs, columns, layout.taps, layout.span // _CHANNELS, _CHANNELS)
    partial = torch.empty(shape, dtype=torch.float32, device=x.device)
    _few_channels_wgrad_kernel[(programs, across)](
        grad.contiguous(memory_format=torch.channels_last),
        layout.pad(x, grad.dtype),
        partial,
        *layout.sizes(),
        columns,
        each,
        **blocks,
        PIXELS=_PIXELS_BACKWARD,
    )
    whole = partial.sum(0)[:, :kernel_size, :kernel_size, : x.shape[1]]
    return whole.permute(0, 3, 1, 2).contiguous()
