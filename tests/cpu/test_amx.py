"""The AMX kernels, whose tile instructions a model in plain C++ executes: few machines have them."""

import ctypes
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from amx.build import CSRC, ROOT, SOURCES, build_modelled
from compare import assert_same_bits
from module_build import module_objects
from unfoldconv._build import RELEASE, Profile, exclusive, select_toolkit
from unfoldconv._build.library import build_library

BUILD = ROOT / "build" / "amx"

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="all but the tiles of these kernels needs a processor with AVX-512",
)

# --- one tile ---------------------------------------------------------------------------------------------------------

# Lengths of the runs of a sum: steps of 16, less, and more; none at all.
RUNS = [(1,), (15,), (16,), (17,), (32, 5, 48), (0, 3), (40, 16), ()]
STARTS = ["zero", "sum", "row_bias", "lane_bias"]
ROWS, LANES, OFFSET = 32, 64, 3


@pytest.fixture(scope="module")
def tiles() -> ctypes.CDLL:
    folder = BUILD / "tiles"
    library = folder / "tiles.so"
    options = Profile(compile=("-O2", "-Werror"), link=())
    with exclusive(folder, lambda: None):
        build_library(library, [SOURCES / "tiles.cpp"], folder, profile=options, toolkit=None, include=[CSRC])
    return ctypes.CDLL(str(library))


class Sum:
    """Operands of one sum, in memory that holds NaN wherever nothing may be read, and its exact value."""

    def __init__(self, lengths: tuple[int, ...], gap: int | None) -> None:
        terms = sum(lengths)
        torch.manual_seed(terms)
        self.lengths = lengths
        a, b = torch.randn(ROWS, 2 * terms).bfloat16(), torch.randn(2 * terms, LANES).bfloat16()
        self.exact = a.double() @ b.double()
        self.magnitude = a.double().abs() @ b.double().abs()
        # Each run of each row of a as a line of its own, the rows of one run at one distance, or with a gap after one.
        pitch = OFFSET + max(lengths, default=0) + 1
        self.a = torch.full((len(lengths), 2 * ROWS, pitch, 2), torch.nan, dtype=torch.bfloat16)
        self.place = torch.arange(ROWS)
        if gap is not None:
            self.place += self.place > gap
        # Runs of b with a row of NaN after each.
        self.b = torch.full((terms + len(lengths) + 1, LANES + 1, 2), torch.nan, dtype=torch.bfloat16)
        self.b_rows = []
        first = row = 0
        for run, length in enumerate(lengths):
            part = slice(2 * first, 2 * (first + length))
            self.a[run, self.place, OFFSET : OFFSET + length] = a[:, part].unflatten(1, (length, 2))
            self.b[row : row + length, :LANES] = b[part].unflatten(0, (length, 2)).transpose(1, 2)
            self.b_rows.append(row)
            first += length
            row += length + 1

    def multiply(self, tiles: ctypes.CDLL, rows: int, vectors: int, start: str, c: Tensor, bias: Tensor) -> None:
        addresses = [
            self.a[run, int(place)].data_ptr() for run in range(len(self.lengths)) for place in self.place[:rows]
        ]
        runs = len(self.lengths)
        tiles.multiply(
            *map(ctypes.c_int, (rows, vectors, runs)),
            (ctypes.c_int64 * runs)(*self.lengths),
            (ctypes.c_void_p * len(addresses))(*addresses),
            ctypes.c_int64(OFFSET),
            ctypes.c_void_p(self.b.data_ptr()),
            (ctypes.c_int64 * runs)(*self.b_rows),
            ctypes.c_int64(self.b.shape[1]),
            ctypes.c_void_p(c.data_ptr()),
            ctypes.c_int64(c.shape[1]),
            ctypes.c_int(STARTS.index(start)),
            ctypes.c_void_p(bias.data_ptr()),
        )


@pytest.mark.parametrize("lengths", RUNS, ids=str)
@pytest.mark.parametrize("start", STARTS)
def test_a_tile(tiles: ctypes.CDLL, lengths: tuple[int, ...], start: str) -> None:
    """Its elements are right, do not depend on its size or on where its rows lie, and nothing else is written."""
    bias, before = torch.randn(LANES), torch.randn(ROWS + 1, LANES + 3)
    whole = None
    for gap in (None, 0, 6, 7, 14, 15, 20, 29):
        operands = Sum(lengths, gap)
        for rows, vectors in itertools.product((32, 31, 17, 16, 15, 6, 1), (4, 3, 2, 1)):
            lanes = 16 * vectors
            c = before.clone()
            operands.multiply(tiles, rows, vectors, start, c, bias)
            if whole is None:
                added = {"zero": 0, "sum": before[:ROWS, :LANES], "row_bias": bias[:ROWS, None], "lane_bias": bias}[
                    start
                ]
                exact = operands.exact + added
                assert ((c[:ROWS, :LANES] - exact).abs() <= 1e-5 * (operands.magnitude + exact.abs())).all()
                whole = c
            expected = before.clone()
            expected[:rows, :lanes] = whole[:rows, :lanes]
            assert_same_bits(c, expected, f"{rows} rows, {vectors} vectors, {gap=}")


# --- the engines ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library() -> Path:
    toolkit = select_toolkit(default=True)
    objects = {source: path for source, path in module_objects(toolkit).items() if source.name != "module.cpp"}
    return build_modelled(BUILD / "engines", objects, toolkit, RELEASE)


def test_engines_on_modelled_tiles(library: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--capture=sys", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(SOURCES / "engines.py")],
        cwd=ROOT,
        env=os.environ | {"UNFOLDCONV_LIBRARY": str(library), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-10_000:]
