"""The three GEMMs of a convolution: forward, data gradient and weight gradient."""

from __future__ import annotations

from ccnn.compiler.codegen.gemm import Gemm, Phase, Product, Start, divide, phases, plain
from ccnn.compiler.codegen.nest import Level, Position, Tile, named
from ccnn.compiler.codegen.place import Held
from ccnn.targets.program import ZERO, Affine, Dim


class _Conv(Gemm):
    """What the three share: the geometry, and groups.

    Either a tile holds whole groups (`g` > 1 together), or parts of one group.
    """

    def geometry(self, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> None:
        """Take sizes from the shapes of x [N,C,H,W], w [K,C/groups,R,S] and y [N,K,P,Q]."""
        a = self.node.attributes
        self.groups = a["group"]
        self.n, _, self.h, self.w = x
        self.kg, self.cg, self.r, self.s = w[0] // self.groups, *w[1:]
        self.p, self.q = y[2:]
        (self.sh, self.sw), (self.dh, self.dw) = a["strides"], a["dilations"]
        self.top, self.left = a["pads"][:2]

    def rows(self, p: int) -> int:
        """Input rows that p result rows need."""
        return (p - 1) * self.sh + (self.r - 1) * self.dh + 1

    def columns(self, q: int) -> int:
        """Input columns that q result columns need."""
        return (q - 1) * self.sw + (self.s - 1) * self.dw + 1

    def start(self, at: Position, channel: str, each: int) -> Affine:
        """First channel of a tile: its group's, plus where it is inside the group."""
        return at["g"][0] * each + at[channel][0]

    def windows(
        self, at: Position, held: Held, ct: int, pt: int, qt: int
    ) -> tuple[tuple[Dim, ...], tuple[Dim, ...]]:
        """Dims over (n, p, q) and over (c, r, s) of an input tile."""
        image, plane, row, step = held.strides
        pixels = plain((at["n"][1], image), (pt, self.sh * row), (qt, self.sw * step))
        taps = plain((ct, plane), (self.r, self.dh * row), (self.s, self.dw * step))
        return pixels, taps

    def repeats(self, position: Position) -> int:
        return position["g"][1]


class Conv(_Conv):
    """y = conv(x, w) (+ bias)."""

    def setup(self) -> None:
        x, w = self.shapes[:2]
        self.geometry(x, w, self.graph[self.out].shape)
        self.levels = named(
            Level("g", self.groups),
            Level("n", self.n),
            Level("p", self.p),
            Level("q", self.q),
            Level("k", self.kg),
            Level("c", self.cg),
        )
        self.orders = (("g", "n", "p", "q", "k", "c"), ("g", "k", "n", "p", "q", "c"))
        self.reducing = frozenset("c")
        self.moving_on, self.stationary_on = frozenset("gnpqc"), frozenset("gkc")
        self.spatial = ("p", "q")
        self.bias_on, self.bias_level = frozenset("gk"), "k"
        self.grouped = ("k", "c")
        self.axes = {
            "M": (("n", "p", "q"), 1),
            "N": (("k",), 1),
            "K": (("c",), self.r * self.s),
        }

    def tile_shapes(self, tile: Tile) -> dict[str, tuple[int, ...]]:
        g, k, c = tile["g"], tile["k"], tile["c"]
        return {
            "moving": (tile["n"], g * c, self.rows(tile["p"]), self.columns(tile["q"])),
            "stationary": (g * k, c, self.r, self.s),
            "result": (tile["n"], g * k, tile["p"], tile["q"]),
        }

    def box(self, operand: str, position: Position) -> tuple[Start, tuple[int, ...]]:
        at = position
        if operand == "moving":
            corner = (
                at["n"][0],
                self.start(at, "c", self.cg),
                at["p"][0] * self.sh - self.top,
                at["q"][0] * self.sw - self.left,
            )
            (p, q) = at["p"][1], at["q"][1]
            return corner, (at["n"][1], at["g"][1] * at["c"][1], self.rows(p), self.columns(q))
        k0 = self.start(at, "k", self.kg)
        if operand == "stationary":
            sizes = (at["g"][1] * at["k"][1], at["c"][1], self.r, self.s)
            return (k0, at["c"][0], ZERO, ZERO), sizes
        sizes = (at["n"][1], at["g"][1] * at["k"][1], at["p"][1], at["q"][1])
        return (at["n"][0], k0, at["p"][0], at["q"][0]), sizes

    def bias_size(self, tile: Tile) -> int:
        return tile["g"] * tile["k"]

    def bias_box(self, position: Position) -> tuple[Affine, int]:
        return self.start(position, "k", self.kg), position["g"][1] * position["k"][1]

    def bias_dims(self, shape: tuple[int, ...]) -> tuple[Dim, ...]:
        return plain(*((n, int(i == 1)) for i, n in enumerate(shape)))

    def products(
        self, position: Position, held: tuple[Held, Held, Held], index: Affine
    ) -> list[Product]:
        at = position
        n, p, q, k, c = (at[v][1] for v in "npqkc")
        x, w, y = held
        pixels, taps = self.windows(at, x, c, p, q)
        weights = plain((c, w.strides[1]), (self.r, w.strides[2]), (self.s, w.strides[3]))
        lands = plain((n, y.strides[0]), (p, y.strides[2]), (q, y.strides[3]))
        return [
            (
                x.block(pixels, taps, index * (c * x.strides[1])),
                w.block(weights, plain((k, w.strides[0])), index * (k * w.strides[0])),
                y.block(lands, plain((k, y.strides[1])), index * (k * y.strides[1])),
                (n * p * q, k, c * self.r * self.s),
                index * k,
            )
        ]


class ConvDx(_Conv):
    """dx = conv_dx(dy, w), one stride-1 convolution a stride phase."""

    def setup(self) -> None:
        dy, w = self.shapes[:2]
        self.geometry(self.graph[self.out].shape, w, dy)
        self.levels = named(
            Level("g", self.groups),
            Level("n", self.n),
            Level("h", self.h, self.sh),
            Level("w", self.w, self.sw),
            Level("c", self.cg),
            Level("k", self.kg),
        )
        self.orders = (("g", "n", "h", "w", "c", "k"), ("g", "c", "n", "h", "w", "k"))
        self.reducing = frozenset("k")
        self.moving_on, self.stationary_on = frozenset("gnhwk"), frozenset("gck")
        self.spatial = ("h", "w")
        self.grouped = ("k", "c")
        # the stride phases share out both the pixels and the filter's places
        share = self.r * self.s / (self.sh * self.sw)
        self.axes = {"M": (("n", "h", "w"), 1), "N": (("c",), 1), "K": (("k",), share)}

    def row_phases(self, size: int) -> list[Phase]:
        """Stride phases of `size` result rows."""
        return phases(size, self.r, self.sh, self.top, self.dh)

    def column_phases(self, size: int) -> list[Phase]:
        """Stride phases of `size` result columns."""
        return phases(size, self.s, self.sw, self.left, self.dw)

    def clears(self) -> bool:
        found = self.row_phases(self.h) + self.column_phases(self.w)
        return any(f.taps == 0 for f in found)

    def tile_shapes(self, tile: Tile) -> dict[str, tuple[int, ...]]:
        g, k, c = tile["g"], tile["k"], tile["c"]
        height = _reach(self.row_phases(tile["h"]))[1]
        width = _reach(self.column_phases(tile["w"]))[1]
        return {
            "moving": (tile["n"], g * k, height, width),
            "stationary": (g * k, c, self.r, self.s),
            "result": (tile["n"], g * c, tile["h"], tile["w"]),
        }

    def box(self, operand: str, position: Position) -> tuple[Start, tuple[int, ...]]:
        at = position
        g, n, c, k = (at[v][1] for v in "gnck")
        if operand == "moving":
            p0, height = _reach(self.row_phases(at["h"][1]))
            q0, width = _reach(self.column_phases(at["w"][1]))
            corner = (
                at["n"][0],
                self.start(at, "k", self.kg),
                divide(at["h"][0], self.sh) + p0,
                divide(at["w"][0], self.sw) + q0,
            )
            return corner, (n, g * k, height, width)
        if operand == "stationary":
            return (self.start(at, "k", self.kg), at["c"][0], ZERO, ZERO), (
                g * k,
                c,
                self.r,
                self.s,
            )
        corner = (at["n"][0], self.start(at, "c", self.cg), at["h"][0], at["w"][0])
        return corner, (n, g * c, at["h"][1], at["w"][1])

    def products(
        self, position: Position, held: tuple[Held, Held, Held], index: Affine
    ) -> list[Product]:
        at = position
        ups, lefts = self.row_phases(at["h"][1]), self.column_phases(at["w"][1])
        return [
            self.product(at, u, v, index, held) for u in ups for v in lefts if u.taps and v.taps
        ]

    def product(
        self, at: Position, u: Phase, v: Phase, g: Affine, held: tuple[Held, Held, Held]
    ) -> Product:
        """The GEMM of row phase u and column phase v in group g of the tile."""
        n, c, k, ht, wt = (at[x][1] for x in "nckhw")
        p0, q0 = _reach(self.row_phases(ht))[0], _reach(self.column_phases(wt))[0]
        dy, w, dx = held
        image, plane, row, step = dy.strides
        pixels = plain((n, image), (u.count, row), (v.count, step))
        reads = plain((k, plane), (u.taps, u.step * row), (v.taps, v.step * step))
        w_k, w_c, w_r, w_s = w.strides
        weights = plain((k, w_k), (u.taps, u.filter_step * w_r), (v.taps, v.filter_step * w_s))
        lands = plain(
            (n, dx.strides[0]),
            (u.count, self.sh * dx.strides[2]),
            (v.count, self.sw * dx.strides[3]),
        )
        return (
            dy.block(
                pixels, reads, g * (k * plane) + ((u.first - p0) * row + (v.first - q0) * step)
            ),
            w.block(
                weights,
                plain((c, w_c)),
                g * (k * w_k) + (u.filter_first * w_r + v.filter_first * w_s),
            ),
            dx.block(
                lands,
                plain((c, dx.strides[1])),
                g * (c * dx.strides[1]) + (u.a * dx.strides[2] + v.a * dx.strides[3]),
            ),
            (n * u.count * v.count, c, k * u.taps * v.taps),
            ZERO,
        )


def _reach(found: list[Phase]) -> tuple[int, int]:
    """First row that any phase reads (relative to start / stride), and how many rows."""
    used = [f for f in found if f.taps]
    if not used:
        return 0, 1
    low = min(f.first for f in used)
    high = max(f.count - 1 + f.first + (f.taps - 1) * f.step for f in used)
    return low, high - low + 1


class ConvDw(_Conv):
    """dw = conv_dw(x, dy), reduced over samples and pixels."""

    def setup(self) -> None:
        x, dy = self.shapes[:2]
        self.geometry(x, self.graph[self.out].shape, dy)
        self.levels = named(
            Level("g", self.groups),
            Level("k", self.kg),
            Level("c", self.cg),
            Level("n", self.n),
            Level("p", self.p),
            Level("q", self.q),
        )
        self.orders = (("g", "k", "c", "n", "p", "q"), ("g", "c", "k", "n", "p", "q"))
        self.reducing = frozenset("npq")
        self.moving_on, self.stationary_on = frozenset("gcnpq"), frozenset("gknpq")
        self.spatial = ("p", "q")
        self.grouped = ("k", "c")
        self.axes = {
            "M": (("c",), self.r * self.s),
            "N": (("k",), 1),
            "K": (("n", "p", "q"), 1),
        }

    def tile_shapes(self, tile: Tile) -> dict[str, tuple[int, ...]]:
        g, k, c = tile["g"], tile["k"], tile["c"]
        return {
            "moving": (tile["n"], g * c, self.rows(tile["p"]), self.columns(tile["q"])),
            "stationary": (tile["n"], g * k, tile["p"], tile["q"]),
            "result": (g * k, c, self.r, self.s),
        }

    def box(self, operand: str, position: Position) -> tuple[Start, tuple[int, ...]]:
        at = position
        g, n, p, q, k, c = (at[v][1] for v in "gnpqkc")
        if operand == "moving":
            corner = (
                at["n"][0],
                self.start(at, "c", self.cg),
                at["p"][0] * self.sh - self.top,
                at["q"][0] * self.sw - self.left,
            )
            return corner, (n, g * c, self.rows(p), self.columns(q))
        k0 = self.start(at, "k", self.kg)
        if operand == "stationary":
            return (at["n"][0], k0, at["p"][0], at["q"][0]), (n, g * k, p, q)
        return (k0, at["c"][0], ZERO, ZERO), (g * k, c, self.r, self.s)

    def products(
        self, position: Position, held: tuple[Held, Held, Held], index: Affine
    ) -> list[Product]:
        at = position
        n, p, q, k, c = (at[v][1] for v in "npqkc")
        x, dy, dw = held
        pixels, taps = self.windows(at, x, c, p, q)
        reads = plain((n, dy.strides[0]), (p, dy.strides[2]), (q, dy.strides[3]))
        places = plain((c, dw.strides[1]), (self.r, dw.strides[2]), (self.s, dw.strides[3]))
        return [
            (
                x.block(taps, pixels, index * (c * x.strides[1])),
                dy.block(reads, plain((k, dy.strides[1])), index * (k * dy.strides[1])),
                dw.block(places, plain((k, dw.strides[0])), index * (k * dw.strides[0])),
                (c * self.r * self.s, k, n * p * q),
                ZERO,
            )
        ]
