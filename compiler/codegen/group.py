"""Writes a group of nodes as one kernel: a hardware loop over sub-batches, data staying on chip.

The kernel of a group is a row of sections, one a node, with a section in front where something is
fetched into a region and one behind where a region goes to DRAM as well.  First and last iterations
stand outside the loop when results gather over the batch, since those begin and end differently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ccnn.compiler.codegen.bands import Turn
from ccnn.compiler.codegen.emit import KernelWriter, Region
from ccnn.compiler.codegen.hand_over import Handed
from ccnn.compiler.codegen.lives import beside
from ccnn.compiler.codegen.place import Held
from ccnn.compiler.codegen.plan import GroupPlan, regions_of
from ccnn.compiler.codegen.scope import Scope, dense, view_of, with_margin
from ccnn.passes.graph import Node
from ccnn.passes.row_work import Rows
from ccnn.targets.program import ZERO, Affine, Kernel, Load, Map

WriteNode = Callable[[Scope, KernelWriter, Node, str], None]
"""What writes a node whose tiling has this name."""


def group_scope(
    context: Scope, plan: GroupPlan, samples: int, finds: bool = False, leaves: bool = False
) -> Scope:
    """The scope of the group's nodes in an iteration of so many samples, with whole images: of
    those that the group before left in the buffer, or of those left for the next."""
    regions = regions_of(plan, context.dtypes, context.accum)
    margins = plan.turns[0].margins if len(plan.turns) == 1 else {}
    passage, handed = plan.passage, _handed(plan, finds, leaves)
    skipped = {h.tensor: h.skipped for h in passage.made}
    only = {h.tensor for h in passage.left if leaves and h.only}
    return replace(
        context,
        graph=plan.local(context.graph, samples),
        budget=plan.budget * 2 // 5 if plan.names else plan.budget,
        rows=plan.axis.rows,
        regions={t: regions[name] for t, name in plan.names.items()}
        | {g.region: regions[g.region] for g in plan.guests}
        | {region: regions[region] for region in plan.above.values()}
        | {t: h.region for t, h in handed.items()},
        skipped={t: skipped[r] for t, r in plan.roots.items() if r in skipped},
        found=frozenset(t for t, h in handed.items() if h.region.found),
        margins={t: margins[name] for t, name in plan.names.items() if name in margins},
        sums={t: regions[t] for t in plan.sums},
        partial={t: partial_name(t) for t in plan.partial},
        published=frozenset(t for t in plan.published if plan.roots[t] not in only),
        batch=plan.axis.batch,
    )


def _handed(plan: GroupPlan, finds: bool, leaves: bool) -> dict[str, Handed]:
    """Where tensors lie in an iteration on samples that the group finds, or leaves."""
    lies = plan.passage.lies(finds, leaves)
    return {t: lies[r] for t, r in plan.roots.items() if r in lies and t in plan.axis.rows}


def with_guests(scope: Scope, plan: GroupPlan, node: str) -> Scope:
    """The scope of a node, in which its guests lie in their regions."""
    guests = {g.tensor: scope.regions[g.region] for g in plan.guests if g.node == node}
    return replace(scope, regions={**scope.regions, **guests}) if guests else scope


def partial_name(tensor: str) -> str:
    """The DRAM tensor in which a sum over the batch gathers."""
    return f"{tensor}/partial"


def write_group(
    context: Scope,
    plan: GroupPlan,
    numbers: Mapping[str, int],
    write: WriteNode,
    roots: Mapping[str, str],
) -> Kernel:
    """The kernel of a group; `numbers` gives each node's place in the program's table."""
    kw = KernelWriter(plan.name, min(numbers.values()), plan.passage.room)
    keys = [(s, r.finds, r.leaves) for r in plan.runs for _, s in plan.parts(r.part.size)]
    scopes = {key: group_scope(context, plan, *key) for key in keys}
    shared: dict[str, Region] = {}
    for scope in scopes.values():
        for region in (*scope.regions.values(), *scope.sums.values()):
            shared.setdefault(region.name, region)
    kw.regions = shared
    kw.roots = roots
    scopes = {
        key: replace(
            scope,
            regions={t: shared[r.name] for t, r in scope.regions.items()},
            sums={t: shared[r.name] for t, r in scope.sums.items()},
        )
        for key, scope in scopes.items()
    }
    for run in plan.runs:
        part = run.part
        with kw.loop(run.rounds) as turns, kw.loop(part.count) as index:
            passed = (turns * part.count + index) * part.size + part.start
            loops = ((turns, run.rounds), (index, part.count))
            trips = {v: n for a, n in loops for v, _ in a.terms}
            for turn in plan.turns:
                kw.fresh = run.fresh and turn is plan.turns[0]
                final = run.final and turn is plan.turns[-1]
                parts = plan.parts(run.part.size)
                halves = [
                    replace(
                        scopes[size, run.finds, run.leaves],
                        first=plan.first(passed + start, size),
                        slots={
                            t: h.at(plan.first(passed + start, size), trips)
                            for t, h in _handed(plan, run.finds, run.leaves).items()
                        },
                        passed=passed + start,
                        half=half,
                        fresh=kw.fresh and half == 0,
                        final=final and half == len(parts) - 1,
                    )
                    for half, (start, size) in enumerate(parts)
                ]
                with kw.loop(turn.count) as band:
                    for stage in plan.stages:
                        for scope, (_, size) in zip(halves, parts, strict=True):
                            part = _Part(kw, scope, plan, turn, band, size)
                            part.write(stage, numbers, write)
    return kw.finish()


def tiling_key(node: Node, plan: GroupPlan, samples: int, turn: Turn) -> str:
    """The name of a node's tiling in an iteration of so many samples."""
    key = node.name if samples == plan.sizes[0] else f"{node.name}@{samples}"
    return f"{key}/{turn.number}" if turn.number else key


@dataclass(frozen=True)
class _Part:
    """One band of some samples; `scope` shows whole images, `band` counts the turn's bands."""

    kw: KernelWriter
    scope: Scope
    plan: GroupPlan
    turn: Turn
    band: Affine
    samples: int

    def section(self, stage: Sequence[int], place: int) -> int:
        """The number of a node's first section: both halves of a stage come before the next."""
        return 1000 * (stage[0] + place + self.scope.half * len(stage))

    def write(self, stage: Sequence[int], numbers: Mapping[str, int], write: WriteNode) -> None:
        """The sections of a stage."""
        kw, plan, turn = self.kw, self.plan, self.turn
        there = turn.shows(self.scope, turn.needs, self.band)
        for place in stage:
            node, section = plan.nodes[place], self.section(stage, place)
            if node.op == "reshape" or node.attr("fused"):
                continue
            self.fetch(there, place, numbers, section, now=True)
            kw.node = numbers[node.name]
            self.carry(node, turn.carried, section + 400, back=False)
            with kw.part(section + 500):
                scope = turn.at(with_guests(self.scope, plan, node.name), node, self.band)
                write(scope, kw, turn.node(node), tiling_key(node, plan, self.samples, turn))
            for i, tensor in enumerate(node.outputs):
                if tensor in there.margins:  # a section of its own: behind what the drain wrote
                    with kw.part(section + 550 + i):
                        _surround(kw, there, tensor)
            self.publish(node, section + 600)
            self.carry(node, turn.ahead, section + 700, back=True)
            self.fetch(there, place, numbers, section + 800, now=False)

    def fetch(
        self, there: Scope, place: int, numbers: Mapping[str, int], section: int, now: bool
    ) -> None:
        """Loads into regions that the node needs `now`, or that later nodes need: those wait until
        its own loads have been issued, unless these last as long as the node does, those of sums
        in DRAM, and the vector unit works meanwhile."""
        kw, plan = self.kw, self.plan
        lasting = plan.group.ahead and not set(plan.partial).isdisjoint(plan.nodes[place].outputs)
        first = beside(plan.nodes, place, lasting)
        for i, (tensor, reader) in enumerate(plan.fetches.get(place, ())):
            if (reader in first) is not now:
                continue
            kw.node = numbers[reader]
            if any((g.node, g.tensor) == (reader, tensor) for g in plan.guests):
                if not self.scope.half:  # the other half finds it there
                    guests = with_guests(there, plan, reader)
                    _fetch(kw, guests, tensor, section + i, always=True)
            elif tensor in there.found or tensor not in there.regions:
                with kw.part(section + i):  # there in every iteration, for the tokens' sake
                    pass
            else:
                _fetch(kw, there, tensor, section + i, always=tensor in there.rows)

    def carry(self, node: Node, rows: Mapping[str, Rows], section: int, back: bool) -> None:
        """Rows that two bands need are copied in front of those that the band makes, or set aside
        (`back`) for the next."""
        for i, tensor in enumerate(node.outputs):
            if tensor not in self.plan.above:
                continue
            with self.kw.part(section + i):  # there in every band, for the tokens' sake
                if tensor in rows:
                    there = self.turn.shows(self.scope, {tensor: rows[tensor]}, self.band)
                    self._copy(there, tensor, self.plan.above[tensor], back)

    def _copy(self, scope: Scope, tensor: str, above: str, back: bool) -> None:
        shape = scope.graph[tensor].shape
        held = scope.held(tensor, (ZERO,) * len(shape))
        aside = Held(scope.regions[above], dense(shape), ZERO)
        pair = view_of(held, shape), view_of(aside, shape)
        source, target = pair if back else reversed(pair)
        self.kw.emit(Map(self.kw.node, target, (source,), ("s0",)))

    def publish(self, node: Node, section: int) -> None:
        """Results that somebody outside needs go to DRAM, each row once."""
        for i, tensor in enumerate(node.outputs):
            # also where it stays for the next group alone, for the tokens' sake
            if tensor in self.plan.published and tensor in self.scope.regions:
                mine = {tensor: self.turn.owns[tensor]} if tensor in self.turn.owns else {}
                with self.kw.part(section + i):
                    self.turn.shows(self.scope, mine, self.band).publish(self.kw, tensor)


def _fetch(kw: KernelWriter, scope: Scope, tensor: str, section: int, always: bool) -> None:
    """Bring a tensor that was made elsewhere into its region, `always` or in the first iteration
    only; of one that carries the batch, the iteration's part."""
    if not always and not scope.fresh:
        return
    shape = scope.graph[tensor].shape
    starts: tuple[Affine, ...] = (ZERO,) * len(shape)
    margin = scope.margins.get(tensor)
    if margin:  # what lies outside the tensor is loaded as zeros
        starts = (*starts[:-2], *(Affine(-before) for before, _ in margin))
        shape = with_margin(shape, margin)
    with kw.part(section, once=not always):
        target = view_of(scope.held(tensor, starts), shape)
        where = scope.in_dram(tensor, starts)
        kw.emit(Load(kw.node, target, tensor, where, (1,) * len(shape)))


def _surround(kw: KernelWriter, scope: Scope, tensor: str) -> None:
    """Write the zeros around the planes of a tensor that was made in its region."""
    *outer, height, width = scope.graph[tensor].shape
    (above, below), (left, right) = scope.margins[tensor]
    strips = (
        (-above, above, -left, left + width + right),
        (height, below, -left, left + width + right),
        (0, height, -left, left),
        (0, height, width, right),
    )
    for row, rows, column, columns in strips:
        if rows and columns:
            corner = (*(ZERO for _ in outer), Affine(row), Affine(column))
            target = view_of(scope.held(tensor, corner), (*outer, rows, columns))
            kw.emit(Map(kw.node, target, (), (0.0,)))
