"""The simulator: runs a program on a machine and counts values, cycles, bytes and energy."""

from ccnn.targets.simulator.errors import SimulationError
from ccnn.targets.simulator.simulate import simulate
from ccnn.targets.simulator.trace import Trace
from ccnn.targets.simulator.uniform import uniform
from ccnn.targets.simulator.values import Execution, execute

__all__ = ["Execution", "SimulationError", "Trace", "execute", "simulate", "uniform"]
