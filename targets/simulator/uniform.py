"""The random numbers of VRAND: a counter-based hash, so order and tiling never change them.

All arithmetic is modulo 2^64, with G = 0x9E3779B97F4A7C15 (splitmix64's increment):

    mix(z):  z ^= z >> 30;  z *= 0xBF58476D1CE4E5B9;  z ^= z >> 27;  z *= 0x94D049BB133111EB;
             z ^= z >> 31
    key      = mix(mix(seed + G) + (step + 1) * G)
    u(pos)   = (mix(key + (pos + 1) * G) >> 40) / 2^24          for pos = start, start + 1, ...

Each number is a multiple of 2^-24 in [0, 1), exact in float32.  Steps count from 0.
"""

from __future__ import annotations

import numpy as np

GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)


def uniform(seed: int, step: int, start: int, count: int) -> np.ndarray:
    """`count` float64 numbers in [0, 1) at positions start, start + 1, … of (seed, step)."""
    key = _mix((_mix((seed + GAMMA) & _MASK) + (step + 1) * GAMMA) & _MASK)
    z = np.arange(count, dtype=np.uint64)
    z *= np.uint64(GAMMA)
    z += np.uint64((key + (start + 1) * GAMMA) & _MASK)
    z ^= z >> np.uint64(30)
    z *= np.uint64(_FIRST)
    z ^= z >> np.uint64(27)
    z *= np.uint64(_SECOND)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) * 2.0**-24
