"""The one exception of the simulator."""

from __future__ import annotations


class SimulationError(Exception):
    """A program that does what no machine can, or a run that lacks what the program needs."""
