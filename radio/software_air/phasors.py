"""Rotation at a steady rate: what a carrier that is off does to samples."""

from __future__ import annotations

import math

import numpy as np

from radio.arrays import Complex128Array


def turns(cycles_per_sample: float, count: int) -> Complex128Array:
    """exp(2 pi j f i) for i = 0..count-1 [count], as products of a coarse and a fine row."""
    width = math.isqrt(count - 1) + 1
    fine = np.exp(2j * math.pi * cycles_per_sample * np.arange(width))
    coarse = np.exp(2j * math.pi * np.fmod(cycles_per_sample * width * np.arange(width), 1.0))
    rotation: Complex128Array = np.multiply.outer(coarse, fine).reshape(-1)[:count]
    return rotation


def turn(cycles: float) -> complex:
    """exp(2 pi j cycles)."""
    angle = 2.0 * math.pi * math.fmod(cycles, 1.0)
    return complex(math.cos(angle), math.sin(angle))
