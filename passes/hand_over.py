"""What one group leaves in the buffer for the next one.

A group that goes through the batch from the other end than the group before finds those samples
first that the other had last.  As many of them as both have room for stay where they are: they are
not read again, and not even written where nobody else reads them.  For each two neighbours it is
open which tensors they hand over and how many samples, and for each group its sub-batch, since a
smaller one leaves more room.  The best of all is found by dynamic programming along the groups:

    cost    the price of each group at its sub-batch, less the bytes that neighbours hand over
    room    of a group: what it holds, and what it finds or leaves, whichever reaches lower

What is handed over lies at the upper end of the buffer (passes/stacks.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ccnn.passes.group_plan import Plan
from ccnn.passes.stacks import Stack, together
from ccnn.passes.steps import ARRAY_OPS, Steps
from ccnn.passes.traffic import Use, handed, uses

Span = tuple[int, int]
"""Positions of a group: the first, one past the last."""

Smaller = Callable[[Span, Plan, int, float], Plan | None]
"""A group's plan at another sub-batch, with so many bytes of the buffer taken by what it finds and
leaves; None where that does not fit."""

_SHARES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32)
"""Shares of the batch that may be handed over, of _WHOLE."""

_WHOLE = 32

_TOGETHER = 3
"""Tensors that are handed over at once, at most."""

_DEEPER = (1.0, 1.5, 2.0)
"""How much lower than it must a stack may begin, so that the next one has more room above it."""


@dataclass(frozen=True)
class Offer:
    """Tensors that may stay between two groups, and how many samples of them."""

    names: tuple[str, ...] = ()
    stack: Stack = field(default_factory=Stack)
    gain: float = 0.0
    """Bytes that need not be moved."""

    @property
    def samples(self) -> int:
        """How many samples."""
        return self.stack.samples

    def suits(self, sub_batch: int) -> bool:
        """Whether a group of this sub-batch can take part without torn iterations."""
        return not self.names or self.stack.slot % sub_batch == 0


@dataclass(frozen=True)
class _State:
    """The best choice for the groups so far."""

    cost: float
    depth: float
    """What they leave reaches so many bytes below the top of the buffer."""
    backwards: bool
    """Which way the last of them goes."""
    offer: Offer
    plan: Plan | None = None
    before: _State | None = None

    @property
    def goes_on(self) -> bool:
        """Whether the next group goes backwards."""
        return bool(self.offer.names) and not self.backwards


def hand_over(
    steps: Steps, groups: Sequence[tuple[Span, Plan]], smaller: Smaller
) -> list[tuple[Span, Plan]]:
    """The groups with the sub-batches, and with what they hand over, that are best together."""
    found = [uses(steps, *span) for span, _ in groups]
    states = [_State(0.0, 0.0, True, Offer())]
    for k, (span, plan) in enumerate(groups):
        offers = [Offer()]
        if k + 1 < len(groups):
            offers += _offers(steps, groups[k : k + 2], found[k : k + 2])
        states = _worthy(_behind(states, offers, (span, plan), smaller, steps.axis.batch))
    last = min(states, key=lambda s: s.cost)
    return [(span, plan) for (span, _), plan in zip(groups, _plans(last), strict=True)]


def _behind(
    states: Sequence[_State],
    offers: Sequence[Offer],
    group: tuple[Span, Plan],
    smaller: Smaller,
    batch: int,
) -> list[_State]:
    """The best states with one group more, by what it leaves, how deep, and which way it goes."""
    sizes = _sizes(group[1], batch)
    plans = [smaller(*group, size, 0.0) for size in sizes]
    least = min((plan.cost for plan in (group[1], *plans) if plan), default=0.0)
    states, out = sorted(states, key=lambda s: s.cost), []
    for way in (False, True):
        mine = [s for s in states if s.goes_on is way]
        for offer in offers:
            best: dict[float, _State] = {}
            for state in mine:
                most = max((s.cost for s in best.values()), default=float("inf"))
                if state.cost + least - offer.gain >= most:
                    break  # and so would all that follow
                for new in _further(state, offer, group, sizes, smaller, batch):
                    old = best.get(new.depth)
                    if old is None or new.cost < old.cost:
                        best[new.depth] = new
            out += best.values()
    return out


def _further(
    state: _State,
    offer: Offer,
    group: tuple[Span, Plan],
    sizes: Sequence[int],
    smaller: Smaller,
    batch: int,
) -> Iterator[_State]:
    """The state with one group more, which leaves the offer."""
    if not offer.names and not state.offer.names:
        yield _State(state.cost + group[1].cost, 0.0, False, offer, group[1], state)
        return
    if not _apart(state.offer, offer, batch):
        return
    for size in sizes:
        if not state.offer.suits(size) or not offer.suits(size):
            continue
        meets = together(state.offer.stack, offer.stack, size, batch)
        for depth in _depths(state, offer, meets, batch):
            new = smaller(*group, size, max(depth, state.depth))
            if new is not None and not (new.leaving and offer.names):
                cost = state.cost + new.cost - offer.gain
                yield _State(cost, depth, state.goes_on, offer, new, state)


def _depths(state: _State, offer: Offer, meets: float, batch: int) -> Iterable[float]:
    """How deep what a group leaves may reach: down from the top, or up towards what it finds."""
    if state.goes_on:
        return (offer.stack.room,) if meets <= state.depth else ()
    least = max(offer.stack.room, meets)
    if 2 * offer.samples <= batch:  # whatever the next one leaves
        return (least,)
    return sorted({max(least, state.depth), *(least * more for more in _DEEPER)})


def _worthy(states: Iterable[_State]) -> list[_State]:
    """The states that cost less than to leave nothing."""
    states = list(states)
    idle = min((s.cost for s in states if not s.offer.names), default=float("inf"))
    return [s for s in states if s.cost < idle or not s.offer.names]


def _apart(found: Offer, left: Offer, batch: int) -> bool:
    """False where some samples of a tensor would be found and left by one group."""
    return found.samples + left.samples <= batch or set(found.names).isdisjoint(left.names)


def _sizes(plan: Plan, batch: int) -> list[int]:
    """Sub-batches of a group that finds or leaves something; none where it cannot."""
    if plan.alone or plan.rows:
        return []
    own = plan.sub_batch or batch
    sizes = sorted({own, *(1 << k for k in range(own.bit_length()))}, reverse=True)
    return [s for s in sizes if batch % s == 0]


def _plans(state: _State) -> list[Plan]:
    """The plans along the way to a state."""
    way: list[_State] = []
    at: _State | None = state
    while at is not None and at.plan is not None:
        way.append(at)
        at = at.before
    plans, before = [], Offer()
    for at in reversed(way):
        assert at.plan is not None
        plans.append(
            replace(
                at.plan,
                backwards=at.backwards,
                found=before.names,
                found_samples=before.samples,
                left=at.offer.names,
                left_samples=at.offer.samples,
            )
        )
        before = at.offer
    return plans


def _offers(
    steps: Steps, pair: Sequence[tuple[Span, Plan]], found: Sequence[Mapping[str, Use]]
) -> list[Offer]:
    """What two neighbours may hand over."""
    if any(plan.alone or plan.rows for _, plan in pair) or steps.axis.grain > 1:
        return []
    batch = steps.axis.batch
    sides = [(span, uses, {*plan.resident}) for (span, plan), uses in zip(pair, found, strict=True)]
    gain = {
        name: sum(handed(steps, name, batch, *sides))
        for name in found[0]
        if all(_may_stay(steps, name, *side) for side in sides)
    }
    names = sorted(
        (n for n in gain if gain[n] > 0), key=lambda n: (-gain[n] / steps.stores[n].size, n)
    )
    names = [n for n in names if steps.graph[n].dtype == steps.graph[names[0]].dtype]
    own = {plan.sub_batch or batch for _, plan in pair}
    slots = sorted(own | {1 << k for k in range(max(own).bit_length())})
    offers = []
    for count in range(1, min(len(names), _TOGETHER) + 1):
        some = tuple(names[:count])
        size, most = sum(steps.stores[n].size for n in some), sum(gain[n] for n in some)
        for samples in sorted({-(-batch * s // _WHOLE) for s in _SHARES}):
            offers += [
                Offer(some, Stack(samples, slot, size * slot / batch), most * samples / batch)
                for slot in slots
                if samples % slot == 0
            ]
    return offers


def _may_stay(
    steps: Steps, name: str, span: Span, found: Mapping[str, Use], resident: set[str]
) -> bool:
    """True when a group can work on a store wherever it lies: images without zeros around them,
    of which the array reads and writes none that is not resident in all iterations."""
    use = found.get(name)
    if use is None or not use.store.batched or name in steps.padded:
        return False
    if steps.axis.rows[name].denominator != 1 or (use.written and name not in resident):
        return False
    touching = [
        n
        for k, n in enumerate(steps.nodes[span[0] : span[1]], span[0])
        if name in steps.reads[k] or name in steps.writes[k]
    ]
    if not any(name in (*n.inputs, *n.outputs) for n in touching):
        return False
    return name in resident or not any(n.op in ARRAY_OPS for n in touching)
