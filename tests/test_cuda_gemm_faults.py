"""Faults planted in copies of the implicit matrix products of CUDA are found by the emulator."""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import channels_last
from compare import assert_within_rounding
from computations import expected_of, operands
from emulator.build import load
from emulator.convolutions import compute, forced
from emulator.kernels import MOST, SCHEDULES, set_schedule
from test_cuda_implicit_gemm import ENGINE, TILED

NAME = "gemm_faults"
VALUES = "elements are wrong"
GUARD = "must not be touched"
BARRIER = "__syncthreads();"


@dataclass(frozen=True)
class Fault:
    """An edit of a header, which takes effect while the emulator is told to have the fault of that name."""

    name: str
    file: str
    text: str
    replacement: str  # {fault} is an expression that says whether the fault is in effect
    message: str = VALUES
    arrange: Callable[[Tensor], Tensor] = channels_last

    @property
    def edit(self) -> tuple[str, str]:
        return self.text, self.replacement.replace("{fault}", f'emulator::planted("{self.name}")')


def no_barrier(name: str, file: str, comment: str) -> Fault:
    return Fault(name, file, f"{BARRIER}  // {comment}", f"if (!{{fault}}) {BARRIER}  // {comment}")


TILE, GEMM = "gemm_tile.cuh", "implicit_gemm.cuh"
COMMIT = "cp_async_commit();"
WAIT = "cp_async_wait<ahead - 1>();"
INSIDE = "static_cast<unsigned>(patch.corner[axis] + reach.tap[axis]) < static_cast<unsigned>(p_.size[axis])"
FAULTS = [
    Fault("no_wait", TILE, WAIT, f"if (!{{fault}}) {WAIT}"),
    # Of two groups for a chunk one is empty, so a wait that counts one for each ends too early.
    Fault("wrong_group_count", TILE, f"{COMMIT}\n    multiply", f"{{ {COMMIT} if ({{fault}}) {COMMIT} }}\n    multiply"),
    Fault("no_barrier", TILE, f"{BARRIER}\n    const bool more", f"if (!{{fault}}) {BARRIER}\n    const bool more"),
    no_barrier("no_last_barrier", TILE, "whoever uses"),
    Fault("too_few_chunks", TILE, "chunk + ahead < chunks;", "chunk + ahead + {fault} < chunks;"),
    Fault("no_bounds", GEMM, INSIDE, f"({INSIDE} || {{fault}})", f"{GUARD}|{VALUES}"),
    Fault(
        "all_positions",
        GEMM,
        "if (first_position + i >= p.position_count) continue;",
        "if (first_position + i >= p.position_count && !{fault}) continue;",
        f"{GUARD}|{VALUES}|a pointer must be aligned",
    ),
    Fault(
        "all_rows",
        GEMM,
        "const bool there = variant < p.rows;",
        "const bool there = variant < p.rows || {fault};",
        f"{GUARD}|{VALUES}|an index must lie inside",
    ),
    Fault(
        "all_channels",
        GEMM,
        "reach.channel + k < p_.channels",
        "(reach.channel + k < p_.channels || {fault})",
        f"{GUARD}|{VALUES}",
        Tensor.contiguous,
    ),
    no_barrier("no_barrier_behind_tables", GEMM, "the tables are written"),
    no_barrier("no_barrier_behind_tile", GEMM, "the tile is written"),
    no_barrier("no_barrier_before_next_tile", GEMM, "the tile and the tables are read"),
]


def load_with_faults() -> Any:
    edits: dict[str, list[tuple[str, str]]] = {"cuda/implicit_gemm_half.cu": []}
    for fault in FAULTS:
        edits.setdefault(f"cuda/{fault.file}", []).append(fault.edit)
    return load(edits, NAME)


def check(emulated: Any, arrange: Any) -> None:
    """More than one tile of positions and of rows, of which the last ones are not full."""
    case = dataclasses.replace(TILED[0], in_channels=24 if arrange is channels_last else 23)
    tensors = operands("conv", case, torch.float16, "cpu")
    exact, magnitude = expected_of("conv", case, tensors)
    actual = compute("conv", case, *map(arrange, tensors[:2]), tensors[2], to_format=arrange, emulated=emulated)
    assert_within_rounding(actual, exact, magnitude)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found(fault: Fault) -> None:
    emulated = load_with_faults()
    emulated.set_limits(index=MOST, blocks=2)  # more than one tile for each block
    found = []
    with forced(ENGINE, NAME):
        for order in SCHEDULES:
            set_schedule(emulated, *order)
            emulated.set_fault("")
            check(emulated, fault.arrange)
            emulated.set_fault(fault.name)
            try:
                check(emulated, fault.arrange)
            except (AssertionError, RuntimeError) as error:
                found.append(str(error))
    assert found, "no order of threads shows it"
    assert all(re.search(fault.message, text) for text in found), found
