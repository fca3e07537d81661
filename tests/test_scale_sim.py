"""benchmarks/scale_sim.py: what SCALE-Sim reported, explained; ours executed beside it."""

from __future__ import annotations

import pytest
import scale_sim

from ccnn.targets.formulas import os_cycles, ws_cycles

# M, N, K: total cycles that scalesim 3.0.0 printed for its convolutions of ResNet-50 on one image,
# weight- and output-stationary on 128 x 128
RESNET50 = {
    (12544, 64, 147): (25851, 39297), (3136, 64, 64): (3517, 7949),
    (3136, 64, 576): (17589, 20749), (3136, 256, 64): (7035, 15899),
    (3136, 64, 256): (7035, 12749), (3136, 128, 256): (7035, 12749),
    (784, 128, 1152): (10493, 9841), (784, 512, 128): (4663, 10695),
    (784, 512, 256): (9327, 14279), (784, 128, 512): (4663, 5361),
    (784, 256, 512): (9327, 10723), (196, 256, 2304): (20807, 10231),
    (196, 1024, 256): (9247, 8159), (196, 1024, 512): (18495, 12255),
    (196, 256, 1024): (9247, 5111), (196, 512, 1024): (18495, 10223),
    (49, 512, 4608): (62063, 19447), (49, 2048, 512): (27583, 12255),
    (49, 2048, 1024): (55167, 20447), (49, 512, 2048): (27583, 9207),
}  # fmt: skip


def test_every_convolution_is_explained():
    """By the closed formulas, and as streaming, loads and skew of each fold."""
    assert {scale_sim.lowered(conv) for conv in scale_sim.CONVS} == set(RESNET50)
    for gemm, measured in RESNET50.items():
        assert measured == tuple(formula(*gemm, 128, 128) for formula in (ws_cycles, os_cycles))
        for dataflow, loads, cycles in zip(("ws", "os"), (128, 0), measured, strict=True):
            count, stream = scale_sim.folds(*gemm, dataflow)
            assert cycles == stream + count * (loads + 254) - 1


SHOWN = [scale_sim.GEMMS[2], *scale_sim.CONVS[3:5], scale_sim.CONVS[-1]]


@pytest.mark.parametrize("item", SHOWN)
def test_ours_streams_as_much(item):
    """What else it takes is stalls by cause, and the ends."""
    _, stream = scale_sim.folds(*scale_sim.lowered(item), "ws")
    one, two = (scale_sim.execute(item, name) for name in ("wavecore-base", "wavecore"))
    assert one.busy == two.busy == stream
    for found in (one, two):
        assert 0 < found.ends <= 254 + 256 + 3  # skew and drain of the last wave
        assert set(found.stalls) <= {"shift", "drain", "feed_v", "feed_h"}
    assert two.cycles <= one.cycles


@pytest.mark.parametrize("item", SHOWN)
def test_a_stationary_result_streams_the_reduction(item):
    """Once for every block of results, and there are more where tiles cut some smaller."""
    m, n, k = scale_sim.lowered(item)
    count, stream = scale_sim.folds(m, n, k, "os")
    found = scale_sim.execute(item, "intergrad-128", "result stays")
    assert found.busy % k == 0
    assert count <= found.busy // k <= 1.5 * count
    assert 0 < found.ends <= 254 + 128 + 3
    words = found.words(stream)
    assert f"ends {found.ends}" in words
    assert ("edges" in words) == (found.busy > stream)


def test_a_convolution_in_scale_sims_words():
    """Padding is part of the image: 7 x 7 with stride 2 from 229 pixels to 112."""
    assert scale_sim._row(scale_sim.CONVS[0]) == (229, 229, 7, 7, 3, 64, 2)
    assert scale_sim._row((5, 6, 7)) == (5, 6, 7)
