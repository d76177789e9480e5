"""Paint and light of a traced room, and the colour and depth sensors that record it.

Wall coordinates, P and the order of components are those of :mod:`manystream.data.scenes._render`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from manystream.data.scenes._render import FLOOR, Floats, Hits

GAMMA = 2.2
"""Exponent from stored intensities to linear ones."""

DEPTH_RANGE_M = (0.5, 6.0)
"""Readings a depth camera can give."""

_FULL_WELL_ELECTRONS = 2500
_READ_NOISE = 0.003
_EDGE_ON_COSINE = 0.15
_SINGLE_HOLES = 0.002


@dataclass(frozen=True)
class Paint:
    r"""Two colours mixed by a product of K plane waves; with no wave, the first colour alone.

    .. math:: w(u) = \mathrm{clip}(1/2 + s \prod_k \sin(2π f_k · u + φ_k), 0, 1)

    Attributes:
        colors: the colours that w = 1 and w = 0 show, linear RGB, shape (2, 3).
        waves: wave vectors f in cycles per metre, shape (K, 2).
        phases: φ in radians, shape (K,).
        sharpness: s; how abruptly one colour follows the other.
    """

    colors: Floats
    waves: Floats
    phases: Floats
    sharpness: float

    def albedo(self, coordinates: Floats) -> Floats:
        """Linear RGB at coordinates u in metres, (2, K) to (3, K)."""
        angles = 2 * np.pi * self.waves @ coordinates + self.phases[:, None]
        weight = np.clip(0.5 + self.sharpness * np.sin(angles).prod(axis=0), 0, 1)
        mixed: Floats = self.colors.T @ np.stack([weight, 1 - weight])
        return mixed


@dataclass(frozen=True)
class Light:
    """Ambient light and one far lamp; it casts no shadows.

    Attributes:
        direction: unit vector towards the lamp, shape (3,).
        ambient: linear RGB, shape (3,).
        strength: the lamp's linear RGB, shape (3,).
    """

    direction: Floats
    ambient: Floats
    strength: Floats

    def irradiance(self, normals: Floats) -> Floats:
        """Lambert's law: linear RGB on surfaces with these normals, (3, K) to (3, K)."""
        cosine = np.maximum(self.direction @ normals, 0)
        return self.ambient[:, None] + self.strength[:, None] * cosine


def shade(hits: Hits, paints: Sequence[Paint], lights: Sequence[Light]) -> Floats:
    """Light that reaches the camera, given one paint and one light for each part of the room.

    Returns:
        Linear RGB, shape (3, P).
    """
    radiance = np.empty_like(hits.points)
    for number, (paint, light) in enumerate(zip(paints, lights, strict=True)):
        seen = np.flatnonzero(hits.part == number)
        plane = [0, 2] if number == FLOOR else [0, 1]
        albedo = paint.albedo(hits.points[plane][:, seen])
        radiance[:, seen] = albedo * light.irradiance(hits.normals[:, seen])
    return radiance


def sense_color(radiance: Floats, exposure: float, rng: Generator) -> NDArray[np.uint8]:
    """A colour camera with automatic exposure, shot noise, read noise and gamma.

    Args:
        radiance: linear RGB, shape (3, P).
        exposure: mean linear intensity after exposure, in (0, 1).
        rng: source of the noise.

    Returns:
        Shape (3, P).
    """
    signal = radiance * (exposure / radiance.mean())
    variance = signal / _FULL_WELL_ELECTRONS + _READ_NOISE**2
    noisy = signal + np.sqrt(variance) * rng.standard_normal(signal.shape)
    stored: Floats = np.clip(noisy, 0, 1) ** (1 / GAMMA)
    return np.round(255 * stored).astype(np.uint8)


def sense_depth(hits: Hits, rng: Generator) -> NDArray[np.uint16]:
    """A structured-light depth camera: axial noise, a limited range and holes.

    Holes lie where a surface is seen edge-on, in random blobs and at single pixels.

    Args:
        hits: what the camera's P pixels see; the image is square.
        rng: source of noise and holes.

    Returns:
        Millimetres, 0 = no reading; shape (P,).

    Source:
        Nguyen, Izadi and Lovell, "Modeling Kinect Sensor Noise for Improved 3D Reconstruction
        and Tracking", 2012: a standard deviation of 0.0012 + 0.0019 (z - 0.4)² metres.
    """
    deviation = 0.0012 + 0.0019 * (hits.depth - 0.4) ** 2
    depth = hits.depth + deviation * rng.standard_normal(hits.depth.shape)
    nearest, farthest = DEPTH_RANGE_M
    lost = (depth < nearest) | (depth > farthest) | (hits.facing < _EDGE_ON_COSINE)
    lost |= _smooth_noise(rng, math.isqrt(lost.size)).ravel() > rng.uniform(1.6, 3.5)
    lost |= rng.random(lost.size) < _SINGLE_HOLES
    return np.where(lost, 0, np.round(1000 * depth)).astype(np.uint16)


def _smooth_noise(rng: Generator, size: int, cells: int = 6) -> Floats:
    """Standard normal numbers on a coarse grid, bilinearly enlarged to (size, size)."""
    position = np.linspace(0, cells, size)
    weights = np.maximum(1 - np.abs(position[:, None] - np.arange(cells + 1)), 0)
    enlarged: Floats = weights @ rng.standard_normal((cells + 1, cells + 1)) @ weights.T
    return enlarged
