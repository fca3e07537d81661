"""Tilings of layers whose gradients the array interleaves: one for both."""

from __future__ import annotations

from dataclasses import replace

from ccnn.compiler.codegen.pair import PairedGemm, pair_mode
from ccnn.compiler.codegen.pair_waves import pieces_of
from ccnn.compiler.mapper.rule import choose_tiling
from ccnn.compiler.mapping import GroupDoesNotFit, MappingError, Tiling
from ccnn.targets.machine import Machine


def as_paired(machine: Machine) -> Machine:
    """The machine as the mode for both gradients blocks it, and no other."""
    mode = pair_mode(machine)
    wave = pieces_of(machine, mode).wave
    return replace(machine, modes=(), rows=mode.rows, cols=mode.cols, acc_rows=wave)


def pair_tiling(gemm: PairedGemm, machine: Machine, name: str) -> Tiling:
    """The tiling of both gradients of a layer; raises GroupDoesNotFit for the group's `name`."""
    try:
        return choose_tiling(gemm, as_paired(machine))
    except MappingError as error:
        raise GroupDoesNotFit(name, str(error)) from error
