"""What one group leaves in the buffer for the next one.

A group that goes through the batch from the other end than the group before finds those samples
first that the other had last.  As many of them as both have room for stay where they are: they are
not read again, and not even written where nobody else reads them.  For each two neighbours it is
open which tensors they hand over and how many samples, and for each group its sub-batch, since a
smaller one leaves more room.  The best of all is found by dynamic programming along the groups:

    cost    the price of each group at its sub-batch, less the bytes that neighbours hand over
    room    of a group: what it holds, and what it finds or leaves, whichever is more; both
            together where their samples overlap

What is handed over lies at the upper end of the buffer, in two layers where it has to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ccnn.passes.group_plan import Plan
from ccnn.passes.steps import ARRAY_OPS, Steps
from ccnn.passes.traffic import Use, handed, uses

Span = tuple[int, int]
"""Positions of a group: the first, one past the last."""

Smaller = Callable[[Span, Plan, int, float], Plan | None]
"""A group's plan at another sub-batch, with so many bytes of the buffer taken by what it finds and
leaves; None where that does not fit."""

_SHARES = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)
"""Sixteenths of the batch that may be handed over."""

_TOGETHER = 3
"""Tensors that are handed over at once, at most."""


@dataclass(frozen=True)
class Offer:
    """Tensors that may stay between two groups, and how many samples of them."""

    names: tuple[str, ...] = ()
    samples: int = 0
    room: float = 0.0
    """Bytes in the buffer."""
    gain: float = 0.0
    """Bytes that need not be moved."""

    def suits(self, sub_batch: int, batch: int) -> bool:
        """Whether a group of this sub-batch can take part without torn iterations."""
        return self.samples % (sub_batch or batch) == 0


@dataclass(frozen=True)
class _State:
    """The best choice for the groups so far; what they leave lies `above` bytes below the top."""

    cost: float
    above: float
    offer: Offer
    plan: Plan | None = None
    before: _State | None = None


def hand_over(
    steps: Steps, groups: Sequence[tuple[Span, Plan]], smaller: Smaller
) -> list[tuple[Span, Plan]]:
    """The groups with the sub-batches, and with what they hand over, that are best together."""
    found = [uses(steps, *span) for span, _ in groups]
    states = [_State(0.0, 0.0, Offer())]
    for k, (span, plan) in enumerate(groups):
        offers = [Offer()]
        if k + 1 < len(groups):
            offers += _offers(steps, groups[k : k + 2], found[k : k + 2])
        best: dict[tuple[Offer, float], _State] = {}
        for state in states:
            for offer in offers:
                if not _apart(state.offer, offer, steps.axis.batch):
                    continue
                above, taken = _laid(state, offer, steps.axis.batch)
                for size in _sizes(plan, steps.axis.batch, state.offer, offer):
                    new = smaller(span, plan, size, taken) if size else plan
                    if new is None or (new.leaving and offer.names):
                        continue
                    cost = state.cost + new.cost - offer.gain
                    old = best.get((offer, above))
                    if old is None or cost < old.cost:
                        best[offer, above] = _State(cost, above, offer, new, state)
        states = list(best.values())
    last = min(states, key=lambda s: s.cost)
    return [(span, plan) for (span, _), plan in zip(groups, _plans(last), strict=True)]


def _apart(found: Offer, left: Offer, batch: int) -> bool:
    """False where some samples of a tensor would be found and left by one group."""
    return found.samples + left.samples <= batch or set(found.names).isdisjoint(left.names)


def _laid(state: _State, offer: Offer, batch: int) -> tuple[float, float]:
    """How far below the top the offer lies, and the bytes taken at the top."""
    low = state.above + state.offer.room
    if state.offer.samples + offer.samples <= batch or offer.room <= state.above:
        return 0.0, max(low, offer.room)
    return low, low + offer.room


def _sizes(plan: Plan, batch: int, found: Offer, left: Offer) -> list[int]:
    """Sub-batches to try, 0 for the plan as it is; none where it cannot hand anything over."""
    if not found.names and not left.names:
        return [0]
    if plan.alone or plan.rows:
        return []
    own = plan.sub_batch or batch
    sizes = sorted({own, *(1 << k for k in range(own.bit_length()))}, reverse=True)
    return [s for s in sizes if s <= own and found.suits(s, batch) and left.suits(s, batch)]


def _plans(state: _State) -> list[Plan]:
    """The plans along the way to a state."""
    way: list[_State] = []
    at: _State | None = state
    while at is not None and at.plan is not None:
        way.append(at)
        at = at.before
    plans, before, backwards = [], Offer(), False
    for at in reversed(way):
        assert at.plan is not None
        backwards = not backwards if before.names else False
        plans.append(
            replace(
                at.plan,
                backwards=backwards,
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
    offers = []
    for count in range(1, min(len(names), _TOGETHER) + 1):
        some = tuple(names[:count])
        for share in _SHARES:
            samples = batch * share // 16
            if samples and (samples * 16 == batch * share):
                part = samples / batch
                room = sum(steps.stores[n].size for n in some) * part
                offers.append(Offer(some, samples, room, sum(gain[n] for n in some) * part))
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
