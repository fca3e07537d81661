"""What tiles are expected to read again, against the tilings the mapper finds, and its laws."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mapper import conv_case, matmul_case

from ccnn.compiler.codegen import gemm_of, make_context
from ccnn.compiler.mapper.rule import choose_tiling
from ccnn.passes.batch_axis import batch_axis
from ccnn.passes.steps import ElementBytes, make_steps
from ccnn.passes.tile_traffic import Products, TileRoom
from ccnn.targets.machine import load_machine

WAVECORE = load_machine("wavecore")
ALL = TileRoom(share=1.0)
SHAPES = {
    "VGG's conv5": (8, 512, 512, 14, 14, 3),
    "VGG's conv3": (2, 256, 256, 56, 56, 3),
    "back again": (8, 1024, 256, 14, 14, 1),
    "ResNet's last 3x3": (16, 512, 512, 7, 7, 3),
}


def products_of(graph, tiles=ALL):
    return Products(make_steps(graph, batch_axis(graph, 0), ElementBytes()), tiles)


def again(graph, left, on_chip=(), rounds=1, tiles=ALL):
    return products_of(graph, tiles).again(0, 1, np.array(on_chip, np.int64), rounds, left)


@pytest.mark.parametrize("room", [2**18, 2**20])
@pytest.mark.parametrize("kind", ["conv", "conv_dx", "conv_dw"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_is_about_what_the_mapper_finds(shape, kind, room):
    graph = conv_case(kind, *shape, 1)
    context = make_context(graph, WAVECORE, "bfloat16")
    tiling = choose_tiling(gemm_of(context, graph.nodes[0]), replace(WAVECORE, gbuf_bytes=room))
    once = sum(t.size * 2 for t in graph.tensors.values())
    assert 0.45 <= (once + again(graph, room)) / tiling.dram_bytes <= 2.2


sizes = st.integers(1, 700)
rooms = st.integers(2**12, 2**22)


@settings(deadline=None)
@given(sizes, sizes, sizes, rooms, rooms)
def test_more_room_reads_no_more(m, n, k, one, other):
    graph = matmul_case(m, n, k)
    assert again(graph, max(one, other)) <= again(graph, min(one, other))


@settings(deadline=None)
@given(sizes, sizes, sizes, rooms)
def test_operands_on_chip_are_not_read(m, n, k, room):
    graph = matmul_case(m, n, k)
    assert again(graph, room, on_chip=[0, 1]) == 0
    assert again(graph, room, on_chip=[0]) <= again(graph, room)


def test_a_buffer_that_holds_all_reads_all_once():
    graph = conv_case("conv", 8, 64, 64, 14, 14, 3, 1)
    assert again(graph, 2**24) == 0


def test_weights_pass_by_once_in_each_iteration_when_a_strip_of_them_fits():
    # 3x3, 512 channels: a strip of 128 columns is 512 * 9 * 128 * 2 bytes, held in half the room
    graph = conv_case("conv", 32, 512, 512, 7, 7, 3, 1)
    strip = 512 * 9 * 128 * 2
    assert again(graph, 2 * strip, on_chip=[0], rounds=2) == 0
    assert again(graph, strip // 2, on_chip=[0], rounds=2) > 0
