"""benchmarks/flexsa.py: its networks, and its table against figures computed elsewhere.

The reference figures are from a calculation of the same accounting, made before this mapper, of
the utilisations that the FlexSA paper reports.
"""

from __future__ import annotations

import flexsa
import pytest
import resnet50_gemms
from architectures import densenet, inception_v4, mobilenet_v2, resnet50
from gemms import step_gemms

# utilisation of 1 x 128, 4 x 64, 16 x 32, FlexSA, 4G1F; then MACs left
REFERENCE = {
    "dense": ((0.839, 0.996, 0.999, 0.973, 0.999), 1.0),
    "0.1": ((0.790, 0.953, 0.959, 0.927, 0.958), 0.886),
    "0.2": ((0.647, 0.848, 0.921, 0.811, 0.915), 0.631),
    "0.3": ((0.551, 0.748, 0.885, 0.702, 0.870), 0.339),
}
# PE use of 1 x 128, 4 x 64, 16 x 32, FlexSA; words of the two split ones over 1 x 128
MEANS = {
    "0.1": ((0.802, 0.963, 0.971, 0.938), (1.53, 2.74)),
    "0.2": ((0.693, 0.885, 0.934, 0.851), (1.50, 2.62)),
    "0.3": ((0.612, 0.811, 0.912, 0.769), (1.46, 2.46)),
}
SHARES = {
    "dense": {"FW": 84.6, "VSW": 11.9, "HSW": 2.4, "ISW": 1.1},
    "0.2": {"FW": 75.1, "VSW": 18.5, "HSW": 3.6, "ISW": 2.8},
}


# convolutions, weights without biases and norms, multiplications of an inference
SIZES = {
    resnet50: (53, 25_502_912, 4_089_184_256),
    inception_v4: (149, 42_615_648, 12_253_974_624),
    lambda: densenet((6, 12, 24, 16)): (120, 7_894_208, 2_834_161_664),
    lambda: densenet((6, 12, 64, 48)): (264, 32_938_176, 5_751_653_376),
    mobilenet_v2: (52, 3_469_760, 300_774_272),
    lambda: mobilenet_v2(0.75): (52, 2_608_784, 209_069_792),
}


@pytest.mark.parametrize("build", SIZES)
def test_networks_have_their_known_sizes(build):
    """As in the ONNX files that frameworks export, and each layer reads what others write."""
    network = build()
    assert (len(network.convs), network.weights, network.macs) == SIZES[build]
    forward = [g for g in step_gemms(network, 1) if g.phase == "forward"]
    assert sum(g.macs for g in forward) == network.macs
    for v in network.convs:
        assert v.c % v.groups == v.k % v.groups == 0
        assert v.h in range(v.p, 2 * v.p + 8)


def test_pruned_networks_agree_on_every_shared_tensor():
    for ratio in resnet50_gemms.RATIOS:
        for epoch in resnet50_gemms.EPOCHS:
            network = resnet50_gemms.pruned(ratio, epoch)
            convs, outer = network.convs, network.outer
            for readers, writers in resnet50_gemms.nodes():
                counts = {convs[i].c if i >= 0 else outer for i in readers}
                counts |= {convs[i].k for i in writers}
                assert len(counts) == 1, (ratio, epoch, readers, writers)
            shared = {w for _, writers in resnet50_gemms.nodes() for w in writers}
            for i, conv in enumerate(convs[:-1]):
                if i not in shared and i + 1 < len(convs):
                    assert conv.k == convs[i + 1].c, (ratio, epoch, i)


@pytest.mark.parametrize("title", REFERENCE)
def test_utilisation_is_that_of_the_reference(title: str):
    """Within a tenth of a point."""
    expected, left = REFERENCE[title]
    found = [
        flexsa.totals(flexsa.network(title), name, flexsa.IDEAL, "heuristic")
        for name in flexsa.MACHINES
    ]
    assert [t.utilisation for t in found] == pytest.approx(expected, abs=0.001)
    forward = [
        sum(g.macs for g in flexsa.network(t) if g.phase == "forward") for t in (title, "dense")
    ]
    assert forward[0] / forward[1] == pytest.approx(left, abs=0.001)


@pytest.mark.parametrize("title", SHARES)
def test_mode_shares_are_those_of_the_reference(title: str):
    modes = flexsa.totals(flexsa.network(title), "flexsa-1g1f", flexsa.IDEAL, "heuristic").modes
    shares = {name: 100 * cycles / modes.total() for name, cycles in modes.items()}
    assert shares == pytest.approx(SHARES[title], abs=0.1)


def test_naive_splitting_moves_more_words():
    """1.53 and 2.74 times dense; FlexSA as the unsplit array of its outer size."""
    words = {
        name: flexsa.totals(flexsa.network("dense"), name, flexsa.IDEAL, "heuristic").words
        for name in flexsa.MACHINES
    }
    base = words["flexsa-1g1c"]
    assert words["flexsa-1g4c"] / base == pytest.approx(1.53, abs=0.01)
    assert words["flexsa-4g4c"] / base == pytest.approx(2.74, abs=0.01)
    assert words["flexsa-1g1f"] == base
    assert words["flexsa-4g1f"] == words["flexsa-1g4c"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*flexsa.MACHINES, "ccnn-flex", "intergrad-128"])
@pytest.mark.parametrize("title", ["dense", "0.2", "inception-v4", "densenet-121", "mobilenet-v2"])
def test_every_gemm_is_proven_and_no_worse_than_by_the_rule(name: str, title: str):
    steps = flexsa.network(title)
    assert flexsa.totals(steps, name, flexsa.MODELLED, "exact").open_gaps == 0
    assert flexsa.gains(steps, name, flexsa.MODELLED)[2] == 0


@pytest.mark.parametrize("ratio", MEANS)
def test_means_over_training_are_those_of_the_reference(ratio: str):
    use, words = MEANS[ratio]
    found = [flexsa.training_mean(ratio, name) for name in flexsa.MACHINES]
    assert [u for u, _ in found[:4]] == pytest.approx(use, abs=0.001)
    assert [w for _, w in found[1:3]] == pytest.approx(words, abs=0.01)


def test_what_is_public_of_the_paper_is_near():
    """1.7 times the reuse, 37 % more PE use; 28 % less energy, if a MAC costs less than here."""
    dense = flexsa.network("dense")
    words = [
        flexsa.totals(dense, name, flexsa.IDEAL, "heuristic").words
        for name in ("flexsa-4g4c", "flexsa-4g1f")
    ]
    assert words[0] / words[1] == pytest.approx(1.7, abs=0.1)
    gained = [
        flexible.utilisation / base.utilisation - 1
        for title in ("0.2", "0.3", "inception-v4", "mobilenet-v2")
        for base, flexible in [
            [
                flexsa.totals(flexsa.network(title), name, flexsa.IDEAL, "heuristic")
                for name in ("flexsa-1g1c", "flexsa-1g1f")
            ]
        ]
    ]
    assert all(gain > 0.2 for gain in gained)
    _, saved, mac = flexsa.savings(dense, "flexsa-4g1f", "flexsa-4g4c")
    assert 0.15 < saved < 0.28
    assert 0.5 < mac < 2


def test_a_price_of_macs_gives_the_papers_energy():
    """The price that `savings` names, put into the energies of both machines."""
    dense = flexsa.network("dense")
    _, _, price = flexsa.savings(dense, "flexsa-4g1f", "flexsa-4g4c")
    moved = []
    for name in ("flexsa-4g1f", "flexsa-4g4c"):
        found = flexsa.totals(dense, name, flexsa.MODELLED, "heuristic")
        rest = found.energy.total() - found.energy[flexsa.MAC]
        moved.append(rest + price * found.macs)
    assert 1 - moved[0] / moved[1] == pytest.approx(0.28)


def test_depthwise_convolutions_are_counted_once_a_channel():
    network = mobilenet_v2()
    gemms = step_gemms(network, 2)
    wide = [g for g in gemms if g.count > 1]
    assert {(g.n, g.k) for g in wide if g.phase == "forward"} == {(1, 9)}
    forward = sum(g.macs for g in wide if g.phase == "forward")
    assert forward == sum(2 * 9 * v.k * v.p * v.p for v in network.convs if v.groups > 1)
    one = flexsa.totals(
        [g for g in wide if g.layer == wide[0].layer], "flexsa-1g1c", flexsa.IDEAL, "heuristic"
    )
    assert one.macs == sum(g.macs for g in wide if g.layer == wide[0].layer)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ccnn-flex", "flexsa-4g1f"])
@pytest.mark.parametrize(("title", "least"), [("dense", 0.95), ("0.2", 0.90)])
def test_the_pes_are_busy_under_ideal_memory(name: str, title: str, least: float):
    """With fill, drain and buffers, dense and pruned."""
    found = flexsa.totals(flexsa.network(title), name, flexsa.IDEAL_MEMORY, "exact")
    assert found.utilisation >= least
