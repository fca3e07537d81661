"""Values: every opcode of the program against numpy, and what the simulator refuses."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnn.targets.machine import EnergyRow, Machine
from ccnn.targets.program import (
    ZERO,
    Affine,
    Buffer,
    Drain,
    Exec,
    Extent,
    Instruction,
    Kernel,
    Load,
    LoadH,
    LoadV,
    Loop,
    Map,
    Matrix,
    NodeRef,
    Placed,
    Program,
    Random,
    Reduce,
    Shift,
    Slot,
    Store,
    View,
    var,
)
from ccnn.targets.simulator import Execution, SimulationError, execute, lanes, uniform

MACHINE = Machine(
    name="test",
    description="a small machine",
    clock_ghz=1.0,
    rows=4,
    cols=4,
    weight_buffers=2,
    lbuf_v_slots=2,
    lbuf_h_rows=8,
    lbuf_h_slots=2,
    acc_rows=8,
    acc_slots=2,
    gbuf_bytes=1 << 16,
    lanes=4,
    vector_startup_cycles=2,
    dram_bandwidth_gib_s=1.0,
    dram_latency_cycles=3,
    dram_bytes=1 << 20,
    barrier_cycles=5,
    energy=(EnergyRow("dram_byte", 1.0, "test"),),
)
SIZE = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "i32": 4, "u8": 1}
DTYPES = {
    "bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32, "f64": np.float64
}  # fmt: skip
RNG = np.random.default_rng(7)


def dims(*pairs: tuple[int, int]) -> tuple[tuple[Extent, int], ...]:
    """(count, stride) pairs as dims."""
    return tuple((Extent(n), s) for n, s in pairs)


def row_major(shape: tuple[int, ...]) -> tuple[tuple[Extent, int], ...]:
    """A dense block."""
    strides = [int(np.prod(shape[d + 1 :], dtype=int)) for d in range(len(shape))]
    return dims(*zip(shape, strides, strict=True))


def program(tensors, buffers, body, dtype="f32", accum="f32") -> Program:
    """One kernel; tensors as (name, shape, dtype, role), buffers as (name, dtype, size)."""
    placed, at = [], 0
    for name, shape, kind, role in tensors:
        placed.append(Placed(name, shape, kind, role, at))
        at += int(np.prod(shape, dtype=int)) * SIZE[kind]
        at += -at % 8
    found, address = [], 0
    for b in buffers:
        if isinstance(b, Buffer):
            found.append(b)
            continue
        name, kind, size, *depth = b
        found.append(Buffer(name, "gbuf", kind, size, *(depth or [1]), address=address))
        address += size * SIZE[kind] * (depth[0] if depth else 1)
        address += -address % 8
    kernel = Kernel("k", tuple(found), (), tuple(body))
    node = NodeRef("node", "map", "", "forward")
    return Program("p", "test", dtype, accum, at, tuple(placed), (node,), (kernel,))


def load(buffer: str, tensor: str, shape, start=None, step=None, fill=0.0) -> Load:
    """A dense LD into a buffer."""
    start = start or (ZERO,) * len(shape)
    return Load(0, View(buffer, row_major(shape)), tensor, start, step or (1,) * len(shape), fill)


def store(tensor: str, buffer: str, shape, start=None) -> Store:
    """A dense ST from a buffer."""
    start = start or (ZERO,) * len(shape)
    return Store(0, tensor, start, (1,) * len(shape), View(buffer, row_major(shape)))


def rand(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def vector(code, x: np.ndarray, axes=None, kind="", y=None, accum="f32", **more) -> np.ndarray:
    """Run one VMAP or VRED over x (and y, broadcast along rows)."""
    shape = x.shape
    out = tuple(1 if axes and d in axes else n for d, n in enumerate(shape))
    srcs = [View("a", row_major(shape))]
    tensors = [("x", shape, "f32", "input"), ("z", out, "f32", "value")]
    buffers = [("a", "f32", x.size), ("o", "f32", x.size)]
    body: list = [load("a", "x", shape)]
    values = {"x": x}
    if y is not None:
        tensors.insert(1, ("y", y.shape, "f32", "input"))
        buffers.append(("b", "f32", y.size))
        body.append(load("b", "y", y.shape))
        srcs.append(View("b", dims((shape[0], 0), (shape[1], 1))))
        values["y"] = y
    strides = [0 if axes and d in axes else s for d, (_, s) in enumerate(row_major(out))]
    dst = View("o", tuple((Extent(n), s) for n, s in zip(shape, strides, strict=True)))
    if axes is None:
        body.append(Map(0, dst, tuple(srcs), code, **more))
    else:
        body.append(Reduce(0, kind, axes, dst, tuple(srcs), code, **more))
    body.append(store("z", "o", out))
    return execute(program(tensors, buffers, body, accum=accum), MACHINE, values)["z"]


def test_map_broadcasts_and_uses_scalars():
    x, y = rand(3, 5), rand(5)
    code = ("s0", "s1", "mul", "k0", "add", 2.0, "max")
    got = vector(code, x, y=y, scalars=(Affine(1),))
    np.testing.assert_array_equal(got, np.maximum(x * y + 1, 2))


@pytest.mark.parametrize(("kind", "want"), [("sum", np.sum), ("max", np.max), ("min", np.min)])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_reduce(kind, want, axes):
    x = rand(3, 4, 5)
    got = vector(("s0", "s0", "mul"), x, axes=axes, kind=kind)
    np.testing.assert_allclose(got, want(x * x, axis=axes, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize("at_once", [1, 7, 60])
@pytest.mark.parametrize("kind", ["sum", "max", "min", "argmax"])
@pytest.mark.parametrize("axes", [(1, 2), (0, 2), (0, 1, 2)])
def test_a_large_reduction_in_parts_gives_the_same_bits(kind, axes, at_once, monkeypatch):
    x = rand(5, 4, 11)
    whole = vector(("s0", "s0", "mul"), x, axes=axes, kind=kind)
    monkeypatch.setattr(lanes, "_AT_ONCE", at_once)
    np.testing.assert_array_equal(vector(("s0", "s0", "mul"), x, axes=axes, kind=kind), whole)


def test_argmax_takes_the_first_maximum_row_major():
    x = np.zeros((2, 3, 4), np.float32)
    x[0, 1, 2] = x[0, 2, 0] = 5
    x[1, 0, 3] = x[1, 2, 1] = 7
    got = vector(("s0",), x, axes=(1, 2), kind="argmax")
    np.testing.assert_array_equal(got.ravel(), [1 * 4 + 2, 3])


def test_reduce_accumulates_from_the_second_iteration_on():
    x = rand(4, 6)
    row = View("a", dims((6, 1)), offset=var("i", 6))
    total = Reduce(0, "sum", (0,), View("o", dims((6, 0))), (row,), ("s0",), accumulate=var("i"))
    body = [load("a", "x", (4, 6)), Loop("i", 4, (total,)), store("z", "o", (1,))]
    p = program(
        [("x", (4, 6), "f32", "input"), ("z", (1,), "f32", "value")],
        [("a", "f32", 24), ("o", "f32", 1)],
        body,
    )
    got = execute(p, MACHINE, {"x": x}, poison=True)["z"]
    np.testing.assert_allclose(got, [x.sum()], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32", "f64"])
def test_results_are_rounded_once_when_written(dtype):
    kind = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32, "f64": np.float64}[
        dtype
    ]
    accum = "f64" if dtype == "f64" else "f32"
    wide = np.float64 if dtype == "f64" else np.float32
    x = RNG.standard_normal(64).astype(kind)
    p = program(
        [("x", (64,), dtype, "input"), ("z", (64,), dtype, "value")],
        [("a", dtype, 64), ("o", dtype, 64)],
        [
            load("a", "x", (64,)),
            Map(0, View("o", dims((64, 1))), (View("a", dims((64, 1))),), ("s0", 3.0, "div")),
            store("z", "o", (64,)),
        ],
        dtype=dtype,
        accum=accum,
    )
    got = execute(p, MACHINE, {"x": x})["z"]
    want = (x.astype(wide) / wide(3)).astype(kind)
    assert got.dtype == kind
    np.testing.assert_array_equal(got.astype(wide), want.astype(wide))


@given(
    start=st.integers(-6, 12),
    step=st.sampled_from([-2, -1, 1, 2, 3]),
    count=st.integers(1, 7),
    by_loop=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_load_and_store_clip_at_the_edges(start, step, count, by_loop):
    x = np.arange(1, 9, dtype=np.float32)
    first = Affine(start) if not by_loop else Affine(start - 3) + var("i", 3)
    ld = Load(0, View("a", dims((count, 1))), "x", (first,), (step,), fill=-5.0)
    st_ = Store(0, "z", (first,), (step,), View("a", dims((count, 1))))
    trips = 2 if by_loop else 1
    p = program(
        [("x", (8,), "f32", "input"), ("z", (8,), "f32", "input"), ("y", (7,), "f32", "value")],
        [("a", "f32", 7)],
        [Loop("i", trips, (ld, st_)), store("y", "a", (7,))],
    )
    run = execute(p, MACHINE, {"x": x, "z": np.zeros(8)})
    places = [start + step * i for i in range(count)]
    want = [x[q] if 0 <= q < 8 else -5.0 for q in places]
    np.testing.assert_array_equal(run["y"][:count], want)
    touched = set(places) | ({q - 3 for q in places} if by_loop else set())
    want_z = [x[q] if q in touched else 0.0 for q in range(8)]
    np.testing.assert_array_equal(run["z"], want_z)


def gemm_buffers(*gbuf) -> list:
    """The matrix buffers of the test machine behind some GBUF buffers."""
    return [
        *gbuf,
        Buffer("v", "lbuf_v", "f32", 16, 2),
        Buffer("h", "lbuf_h", "f32", 32, 2),
        Buffer("pe", "pe", "f32", 16, 2),
        Buffer("c", "acc", "f32", 32, 2),
    ]


def plain(buffer: str, rows: int, cols: int, ld: int, r0, rn, c0, cn) -> Matrix:
    """A window of a dense matrix."""
    return Matrix(buffer, dims((rows, ld)), dims((cols, 1)), r0, rn, c0, cn)


def tiled_gemm(m: int, k: int, n: int, bias: bool) -> tuple[Instruction | Loop, ...]:
    """M x N tiles of 8 x 4, K in pieces of 4, K innermost in the accumulators."""
    me, ke, ne = (
        Extent(8, Affine(m) + var("i", -8)),
        Extent(4, Affine(k) + var("l", -4)),
        Extent(4, Affine(n) + var("j", -4)),
    )
    i, j, el = var("i", 8), var("j", 4), var("l", 4)
    row = plain("bias", 1, n, n, ZERO, Extent(1), j, ne) if bias else None
    inner = Loop(
        "l",
        -(-k // 4),
        (
            LoadV(0, Slot("v", var("l")), plain("b", k, n, n, el, ke, j, ne)),
            Shift(0, Slot("pe", var("l")), Slot("v", var("l")), ke, ne),
            LoadH(0, Slot("h", var("l")), plain("a", m, k, k, i, me, el, ke)),
            Exec(0, Slot("c"), Slot("h", var("l")), Slot("pe", var("l")), me, ke, ne, var("l")),
        ),
    )
    drain = Drain(0, plain("o", m, n, n, i, me, j, ne), Slot("c"), bias=row)
    return (Loop("i", -(-m // 8), (Loop("j", -(-n // 4), (inner, drain)),)),)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("m", "k", "n"), [(8, 4, 4), (19, 10, 7), (1, 1, 1), (3, 9, 12)])
def test_gemm_in_ragged_tiles(m, k, n, bias):
    a, b, c = rand(m, k), rand(k, n), rand(n)
    p = program(
        [("a", (m, k), "f32", "input"), ("b", (k, n), "f32", "parameter"),
         ("bias", (n,), "f32", "parameter"), ("o", (m, n), "f32", "value")],
        gemm_buffers(("a", "f32", m * k), ("b", "f32", k * n), ("bias", "f32", n),
                     ("o", "f32", m * n)),
        [load("a", "a", (m, k)), load("b", "b", (k, n)), load("bias", "bias", (n,)),
         *tiled_gemm(m, k, n, bias), store("o", "o", (m, n))],
    )  # fmt: skip
    got = execute(p, MACHINE, {"a": a, "b": b, "bias": c}, poison=True)["o"]
    np.testing.assert_allclose(got, a @ b + (c if bias else 0), rtol=1e-5, atol=1e-6)


def test_16_bit_operands_accumulate_in_float32():
    a = (1 + RNG.integers(0, 64, (8, 4)) / 128).astype(ml_dtypes.bfloat16)
    b = (1 + RNG.integers(0, 64, (4, 4)) / 128).astype(ml_dtypes.bfloat16)
    buffers = [("a", "bf16", 32), ("b", "bf16", 16), ("bias", "bf16", 4), ("o", "f32", 32)]
    p = program(
        [("a", (8, 4), "bf16", "input"), ("b", (4, 4), "bf16", "input"),
         ("o", (8, 4), "f32", "value")],
        gemm_buffers(*buffers),
        [load("a", "a", (8, 4)), load("b", "b", (4, 4)), *tiled_gemm(8, 4, 4, False),
         store("o", "o", (8, 4))],
        dtype="bf16",
    )  # fmt: skip
    got = execute(p, MACHINE, {"a": a, "b": b})["o"]
    np.testing.assert_array_equal(got, a.astype(np.float32) @ b.astype(np.float32))


def test_drain_accumulates_into_its_destination():
    a, b, start = rand(8, 4), rand(4, 4), rand(8, 4)
    window = plain("o", 8, 4, 4, ZERO, Extent(8), ZERO, Extent(4))
    body = [load("a", "a", (8, 4)), load("b", "b", (4, 4)), load("o", "s", (8, 4))]
    body += [
        LoadV(0, Slot("v"), plain("b", 4, 4, 4, ZERO, Extent(4), ZERO, Extent(4))),
        Shift(0, Slot("pe"), Slot("v"), Extent(4), Extent(4)),
        LoadH(0, Slot("h"), plain("a", 8, 4, 4, ZERO, Extent(8), ZERO, Extent(4))),
        Exec(0, Slot("c"), Slot("h"), Slot("pe"), Extent(8), Extent(4), Extent(4), ZERO),
        Drain(0, window, Slot("c"), accumulate=Affine(1)),
        store("z", "o", (8, 4)),
    ]
    p = program(
        [("a", (8, 4), "f32", "input"), ("b", (4, 4), "f32", "input"),
         ("s", (8, 4), "f32", "input"), ("z", (8, 4), "f32", "value")],
        gemm_buffers(("a", "f32", 32), ("b", "f32", 16), ("o", "f32", 32)),
        body,
    )  # fmt: skip
    got = execute(p, MACHINE, {"a": a, "b": b, "s": start})["z"]
    np.testing.assert_allclose(got, a @ b + start, rtol=1e-6)


@pytest.mark.parametrize("flip", [False, True])
def test_convolution_by_implicit_im2col(flip):
    """A padded 3x3 convolution: rows (p, q), columns (c, r, s); flipped: strides below 0."""
    c, size, kout = 2, 5, 3
    x, w = rand(1, c, size, size), rand(kout, c, 3, 3)
    pad = size + 2
    sign = -1 if flip else 1
    offset = Affine(2 * pad + 2 if flip else 0)
    rows = dims((size, pad), (size, 1))
    cols = dims((c, pad * pad), (3, sign * pad), (3, sign))
    m, k = size * size, c * 9
    me, ke = Extent(8, Affine(m) + var("i", -8)), Extent(4, Affine(k) + var("l", -4))
    a = Matrix("x", rows, cols, var("i", 8), me, var("l", 4), ke, offset)
    b = Matrix("w", dims((k, 1)), dims((kout, k)), var("l", 4), ke, ZERO, Extent(kout))
    o = Matrix("o", dims((m, 1)), dims((kout, m)), var("i", 8), me, ZERO, Extent(kout))
    ne = Extent(kout)
    inner = (
        LoadV(0, Slot("v"), b),
        Shift(0, Slot("pe"), Slot("v"), ke, ne),
        LoadH(0, Slot("h"), a),
        Exec(0, Slot("c"), Slot("h"), Slot("pe"), me, ke, ne, var("l")),
    )
    body = [
        load("x", "x", (1, c, pad, pad), start=(ZERO, ZERO, Affine(-1), Affine(-1))),
        load("w", "w", (kout, c, 3, 3)),
        Loop("i", -(-m // 8), (Loop("l", -(-k // 4), inner), Drain(0, o, Slot("c")))),
        store("o", "o", (1, kout, size, size)),
    ]
    p = program(
        [("x", x.shape, "f32", "input"), ("w", w.shape, "f32", "input"),
         ("o", (1, kout, size, size), "f32", "value")],
        gemm_buffers(("x", "f32", c * pad * pad), ("w", "f32", k * kout), ("o", "f32", m * kout)),
        body,
    )  # fmt: skip
    got = execute(p, MACHINE, {"x": x, "w": w}, poison=True)["o"]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    kernel = w[:, :, ::-1, ::-1] if flip else w
    want = np.zeros((1, kout, size, size))
    for r in range(3):
        for s in range(3):
            part = padded[:, :, r : r + size, s : s + size]
            want += np.einsum("kc,nchw->nkhw", kernel[:, :, r, s], part)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_random_depends_on_step_and_start_not_on_tiling():
    tile = Random(0, View("a", dims((5, 1)), offset=var("i", 5)), 9, var("i", 5))
    p = program(
        [("z", (15,), "f32", "value")], [("a", "f32", 15)], [Loop("i", 3, (tile,)),
        store("z", "a", (15,))],
    )  # fmt: skip
    run = Execution(p, MACHINE)
    for step in range(2):
        run.step()
        np.testing.assert_array_equal(run["z"], uniform(9, step, 0, 15).astype(np.float32))


def test_state_persists_and_updates_alias_their_parameter():
    body = [
        load("a", "w", (4,)),
        Map(0, View("a", dims((4, 1))), (View("a", dims((4, 1))),), ("s0", 2.0, "mul")),
        store("w_new", "a", (4,)),
    ]
    p = program([("w", (4,), "f32", "parameter")], [("a", "f32", 4)], body)
    alias = Placed("w_new", (4,), "f32", "value", 0)
    p = Program(**{**p.__dict__, "tensors": (*p.tensors, alias)})
    run = execute(p, MACHINE, {"w": np.ones(4)}, steps=3)
    np.testing.assert_array_equal(run["w"], np.full(4, 8.0))


def test_slots_alternate():
    """Two slots, filled in turn, are both there afterwards."""
    ld = Load(0, View("a", dims((2, 1)), slot=var("i")), "x", (var("i", 2),), (1,))
    st_ = Store(0, "z", (var("i", 2),), (1,), View("a", dims((2, 1)), slot=var("i") + 1))
    p = program(
        [("x", (8,), "f32", "input"), ("z", (8,), "f32", "input")],
        [("a", "f32", 2, 2)],
        [Loop("i", 4, (ld, st_))],
    )
    x = np.arange(8.0)
    got = execute(p, MACHINE, {"x": x, "z": np.zeros(8)})["z"]
    np.testing.assert_array_equal(got, [0, 0, 0, 1, 2, 3, 4, 5])


def test_poison_shows_what_was_never_written():
    p = program([("z", (4,), "f32", "value")], [("a", "f32", 4)], [store("z", "a", (4,))])
    assert np.isnan(execute(p, MACHINE, {}, poison=True)["z"]).all()
    assert not np.isnan(execute(p, MACHINE, {})["z"]).any()


def bad(body, message: str, buffers=None, values=None) -> None:
    p = program([("x", (8,), "f32", "input")], buffers or [("a", "f32", 8)], body)
    with pytest.raises(SimulationError, match=message):
        execute(p, MACHINE, {"x": np.zeros(8)} if values is None else values)


def test_errors_say_where():
    wide = Map(0, View("a", dims((9, 1))), (), (1.0,))
    bad([wide], "node node, VMAP: .* outside slot 0 of buffer a")
    bad([Map(0, View("a", dims((8, 1)), offset=Affine(-1)), (), (1.0,))], "outside slot 0")
    bad([Map(0, View("b", dims((8, 1))), (), (1.0,))], "no buffer 'b'")
    bad([load("a", "y", (8,))], "no tensor 'y'")
    bad([load("a", "x", (2, 4))], "rank 1")
    bad([Map(0, View("a", dims((8, 1)), offset=var("q")), (), (1.0,))], "'q' is used outside")
    bad([Map(0, View("a", dims((8, 1))), (), ("s0",))], "only 0 of these")
    bad([load("a", "x", (8,))], "x; give every input", values={})
    bad([load("a", "x", (8,))], "has shape", values={"x": np.zeros(7)})
    bad([], "ends at byte", buffers=[("a", "f32", 1 << 20)])
    read = Exec(0, Slot("c"), Slot("h"), Slot("pe"), Extent(1), Extent(1), Extent(1), ZERO)
    bad([read], "holds nothing", buffers=gemm_buffers())
    over = LoadH(0, Slot("h"), plain("a", 8, 1, 1, Affine(1), Extent(8), ZERO, Extent(1)))
    bad([over], "rows 1 to 9 of a matrix that has 8", buffers=gemm_buffers(("a", "f32", 8)))
    bad([Loop("i", 2, (Loop("i", 2, ()),))], "used by an outer loop")
