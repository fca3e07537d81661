"""An explanation as text: a paragraph a kernel, the longest told in full."""

from __future__ import annotations

from typing import TextIO

from rich.text import Text

from ccnn.compiler.explain import Explanation, KernelStory
from ccnn.compiler.report.fields import quantity
from ccnn.compiler.report.show import console_for

_SHORT = 0.02
"""A kernel with a smaller part of the layer's cycles gets one line unless all is asked for."""

_NAMED = 4
"""Nodes of the same block that are listed."""

_SEEN = 0.5
"""Percent below which a change is called none."""


def show_explanation(e: Explanation, out: TextIO, verbose: bool = False) -> None:
    """Print an explanation."""
    console = console_for(out)
    share = 100 * e.cycles / e.step_cycles if e.step_cycles else 0.0
    kernels = len({story.detail.start for story in e.kernels})
    count = f"{kernels} kernel{'s' if kernels != 1 else ''}"
    console.print(
        Text(
            f"{e.name} on {e.machine}: {count}, {e.cycles:,} cycles ({share:.1f} % of the step)",
            style="bold",
        )
    )
    if e.free:
        console.print(Text(f"free: {', '.join(e.free)} (another name for the same bytes)"))
    short = 0
    for story in e.kernels:
        if verbose or story.layer_cycles >= _SHORT * e.cycles:
            console.print(Text("\n".join(_lines(e, story))), soft_wrap=True)
        else:
            short += 1
    if short:
        console.print(f"and {short} kernels below 2 % of that; -v shows them")


def _lines(e: Explanation, s: KernelStory) -> list[str]:
    d = s.detail
    work = quantity("macs", d.counts.macs)
    if s.tiling is not None and s.tiling.on_lanes:
        work += f", {d.counts.vector_ops:,} vector operations"
    head = f"{s.phase}: {s.node} ({s.op}) {' '.join(s.reads)} -> {' '.join(s.writes)}"
    lines = [
        head,
        f"  took       {d.cycles:,} cycles from cycle {d.start:,}; "
        f"{d.counts.instructions:,} instructions, {work}, "
        f"DRAM {quantity('dram_read_bytes', d.counts.dram_read_bytes)} read, "
        f"{quantity('dram_write_bytes', d.counts.dram_write_bytes)} written",
    ]
    if s.shared_with:
        more = len(s.shared_with) - _NAMED
        words = ", ".join(s.shared_with[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        lines.append(
            f"  one block  with {words}; all figures are the block's, of its cycles this node's "
            f"are {s.own_cycles:,}"
        )
    lines += _tiling(s)
    lines += _placed(e, s)
    lines += _engines(s)
    lines.append(f"  bound by   {s.bound_by}")
    lines += _what_if(s)
    return lines


def _what_if(s: KernelStory) -> list[str]:
    """What each change of the machine does to the kernel, the best first."""
    took = max(1, s.detail.cycles)
    known = [(w.cycles, w.name) for w in s.what_if if w.cycles is not None]
    changes = sorted((100 * (cycles - took) / took, name) for cycles, name in known)
    moved = [f"{name} {percent:+.1f} %" for percent, name in changes if abs(percent) >= _SEEN]
    still = [name for percent, name in changes if abs(percent) < _SEEN]
    lines = [f"  what if    {', '.join(moved)}"] if moved else []
    return lines + ([f"  no matter  {', '.join(still)}"] if still else [])


def _tiling(s: KernelStory) -> list[str]:
    if s.tiling is None:
        return []
    t = s.tiling
    sizes = " ".join(f"{name}={size}" for name, size in t.tiles)
    lines = [f"  tiles      {sizes}; loops {' '.join(t.order)}; {t.depth} slots a buffer"]
    moved = s.detail.counts.dram_read_bytes + s.detail.counts.dram_write_bytes
    # Bytes and bound of a tiling in a block are of one sub-batch, the kernel's of all of them.
    if t.bound and not s.shared_with:
        over = 100 * (moved - t.bound) / t.bound
        lines.append(
            f"  traffic    {moved:,} bytes; proven: no tiling of {t.depth} slots moves fewer than "
            f"{t.bound:,} ({over:+.1f} %)"
        )
    if s.elsewhere is not None:
        units = ("vector unit", "array") if t.on_lanes else ("array", "vector unit")
        slower = 100 * (s.elsewhere.cycles - s.detail.cycles) / max(1, s.detail.cycles)
        lines.append(
            f"  unit       {units[0]}; on the {units[1]} the kernel takes "
            f"{s.elsewhere.cycles:,} cycles ({slower:+.1f} %)"
        )
    r = s.runner_up
    if r is None:
        lines.append("  runner-up  none: no other tiling of the grid fits")
    else:
        more = 100 * (r.dram_bytes - moved) / moved if moved else 0.0
        slower = 100 * (r.cycles - s.detail.cycles) / max(1, s.detail.cycles)
        by = f" ({r.cycles - s.detail.cycles:+,})" if s.shared_with else ""
        lines.append(f"  runner-up  {more:+.1f} % bytes, {slower:+.1f} % cycles{by}: {r.tiling}")
    return lines


def _placed(e: Explanation, s: KernelStory) -> list[str]:
    own = [b for b in s.detail.buffers if b.space == "gbuf"]
    if not own:
        return []
    most = sorted(own, key=lambda b: -b.bytes)[:8]
    words = ", ".join(
        f"{b.name} {quantity('gbuf_bytes', b.bytes)} in {b.depth} slot{'s' if b.depth > 1 else ''} "
        f"@{b.address}"
        for b in sorted(most, key=lambda b: b.address)
    )
    rest = f", and {len(own) - 8} smaller" if len(own) > 8 else ""
    top = max(b.address + b.bytes for b in own)
    return [f"  GBUF       {100 * top / e.gbuf_bytes:.1f} % used: {words}{rest}"]


def _engines(s: KernelStory) -> list[str]:
    cycles = max(1, s.detail.cycles)
    working = sorted((t for t in s.detail.engines if t.busy_cycles), key=lambda t: -t.busy_cycles)
    busy = [f"{t.name} {100 * t.busy_cycles / cycles:.0f} %" for t in working]
    waits = sorted(
        ((n, t.name, cause) for t in s.detail.engines for cause, n in t.stalls), reverse=True
    )
    lines = [f"  busy       {', '.join(busy)}"]
    if waits:
        words = [f"{name} for {cause} {100 * n / cycles:.0f} %" for n, name, cause in waits[:4]]
        lines.append(f"  waits      {', '.join(words)}")
    return lines
