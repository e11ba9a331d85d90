"""Faults planted in copies of the implicit matrix products of CUDA are found by the emulator."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import channels_last
from compare import assert_within_rounding
from computations import expected_by_torch, operands
from emulator.build import load
from emulator.convolutions import compute, forced
from emulator.faults import PlantedFault, assert_found
from emulator.gemm import ENGINE, TILED
from emulator.kernels import MOST, WARP_SCHEDULES

NAME = "gemm_faults"
VALUES = "elements are wrong"
GUARD = "must not be touched"
WILD = f"{GUARD}|{VALUES}|an index must lie inside"  # whatever an arbitrary offset leads to
BARRIER = "__syncthreads();"


@dataclass(frozen=True)
class Fault(PlantedFault):
    """What shows it."""

    message: str = VALUES
    arrange: Callable[[Tensor], Tensor] = channels_last
    computation: str = "conv"
    changes: dict[str, Any] = field(default_factory=dict)  # of the case
    limits: dict[str, int] = field(default_factory=dict)


plain = Tensor.contiguous
SUMS = "conv_weight_grad"
# Channels that are whole pieces, and more chunks than slots.
AS_PIECES: dict[str, Any] = {"computation": SUMS, "changes": {"in_channels": 24, "input_size": (10, 8)}}


def no_line(text: str) -> tuple[str, str]:
    return text, f"if (!{{fault}}) {text}"


def no_barrier(name: str, file: str, comment: str, message: str = VALUES) -> Fault:
    return Fault(name, file, f"{BARRIER}  // {comment}", f"if (!{{fault}}) {BARRIER}  // {comment}", message)


TILE, GEMM, WEIGHT = "gemm_tile.cuh", "implicit_gemm.cuh", "weight_gemm.cuh"
GATHER, PIECES, TURNED, KNOWN = "weight_gather.cuh", "weight_pieces.cuh", "depth_major.cuh", "weight_parameters.cuh"
PATCHES, STORE, PARAMETERS = "gathered_patches.cuh", "stored_sums.cuh", "correlation_parameters.cuh"
COMMIT = "cp_async_commit();"
WAIT = "cp_async_wait<ahead - 1>();"
WEIGHT_INSIDE = "static_cast<unsigned>(position.corner[axis] + term.tap[axis]) < static_cast<unsigned>(size[axis])"
HALF = "(piece + (RowsFirst ? outer : inner)) * kCount + lane % 8"
TURN = "ldmatrix<4, true>(registers, at(row + 8 * (RowsFirst ? inner : outer), k));"
INSIDE = "static_cast<unsigned>(patch.corner[axis] + reach.tap[axis]) < static_cast<unsigned>(p_.size[axis])"
STRIDED = {"stride": (2, 3), "kernel_size": (3, 2), "padding": ((0, 1), (0, 1)), "input_size": (10, 9)}


def of_phases(name: str, file: str, text: str, replacement: str) -> Fault:
    """Of an input gradient with phases of every kind: of one and two variants, with taps and without."""
    return Fault(name, file, text, replacement, WILD, computation="conv_transpose", changes=STRIDED)


def of_segments(name: str, file: str, text: str, replacement: str, **limits: int) -> Fault:
    return Fault(name, file, text, replacement, limits={"segment": 2, **limits})


FAULTS = [
    Fault("no_wait", TILE, WAIT, f"if (!{{fault}}) {WAIT}"),
    # Without a group for each chunk a wait ends too early.
    Fault("wrong_group_count", TILE, f"{COMMIT}\n    multiply", f"{{ if (!{{fault}}) {COMMIT} }}\n    multiply"),
    Fault("no_barrier", TILE, f"{BARRIER}\n    const bool more", f"if (!{{fault}}) {BARRIER}\n    const bool more"),
    no_barrier("no_last_barrier", TILE, "whoever uses"),
    Fault("too_few_chunks", TILE, "chunk + ahead < end;", "chunk + ahead + {fault} < end;"),
    Fault("no_bounds", PATCHES, INSIDE, f"({INSIDE} || {{fault}})", f"{GUARD}|{VALUES}"),
    Fault(
        "all_positions",
        STORE,
        "if (first_position + i >= phase.position_count) continue;",
        "if (first_position + i >= phase.position_count && !{fault}) continue;",
        WILD,
    ),
    Fault(
        "all_rows",
        STORE,
        "const bool there = variant < phase.rows;",
        "const bool there = variant < phase.rows || {fault};",
        WILD,
    ),
    Fault(
        "all_channels",
        PATCHES,
        "reach.channel + k < p_.channels",
        "(reach.channel + k < p_.channels || {fault})",
        f"{GUARD}|{VALUES}",
        Tensor.contiguous,
    ),
    no_barrier("no_barrier_behind_tables", STORE, "the tables are written"),
    no_barrier("no_barrier_behind_tile", STORE, "the tile is written"),
    Fault("no_barrier_behind_terms", GATHER, *no_line(f"{BARRIER}  // the terms"), VALUES, plain, SUMS),
    Fault("no_warp_barrier", KNOWN, *no_line("__syncwarp();  // those of the"), computation=SUMS),
    Fault("no_warp_barrier_before", KNOWN, *no_line("__syncwarp();  // the positions of"), computation=SUMS),
    Fault("sum_without_bounds", KNOWN, WEIGHT_INSIDE, f"({WEIGHT_INSIDE} || {{fault}})", WILD, computation=SUMS),
    Fault("sum_of_all_rows", GATHER, "row < count_ &&", "(row < count_ || {fault}) &&", WILD, computation=SUMS),
    Fault("sum_to_all_rows", WEIGHT, "|| row >= p.rows)", "|| (row >= p.rows && !{fault}))", WILD, computation=SUMS),
    Fault("sum_of_all_pieces", PIECES, "row_ < p_.rows &&", "(row_ < p_.rows || {fault}) &&", WILD, **AS_PIECES),
    Fault("not_turned", TURNED, TURN, f"if ({{fault}}) {TURN.replace('true', 'false')} else {TURN}", **AS_PIECES),
    Fault("wrong_half_turned", TURNED, HALF, HALF.replace("RowsFirst", "RowsFirst != {fault}"), **AS_PIECES),
    Fault("positions_of_another_chunk", KNOWN, "[chunk % kChunks", "[(chunk + {fault}) % kChunks", **AS_PIECES),
    Fault(
        "one_piece_for_all", GATHER, "position_at(piece() * ", "position_at(piece() * !{fault} * ", VALUES, plain, SUMS
    ),
    no_barrier("no_barrier_before_next_tile", STORE, "the tile and the tables are read", WILD),
    of_phases(
        "phase_too_late",
        PARAMETERS,
        "item >= phases[of_item + 1].first_item)",
        "item >= phases[of_item + 1].first_item + {fault})",
    ),
    of_phases("no_variants", STORE, "shift[axis] * p.variant_stride", "shift[axis] * !{fault} * p.variant_stride"),
    of_phases("one_place", STORE, "+ phase.output_offset;", "+ phase.output_offset * !{fault};"),
    of_phases(
        "no_fill", GEMM, "if (!aside)", "if (!aside && !({fault} && p.template locate<Shape>(same).phase.chunks == 0))"
    ),
    of_phases(
        "one_padding",
        PATCHES,
        "- phase.padding_low[axis];",
        "- p.phases[{fault} ? 0 : &phase - p.phases].padding_low[axis];",
    ),
    # The first or the last segment is left out; a block adds what another one has put aside.
    of_segments("first_segment", GEMM, "for (int segment = 0; segment <", "for (int segment = {fault}; segment <"),
    of_segments("last_segment", GEMM, "+ segment, sum);", "+ segment - ({fault} && segment > 0), sum);"),
    of_segments("no_sum_so_far", GEMM, "!alone && segment > 0)", "!alone && segment > 0 && !{fault})", busy=1),
    of_segments("one_slot", GEMM, "alone ? same : blockIdx.x;", "alone ? same * !{fault} : blockIdx.x;"),
    of_segments("too_long", GEMM, "min(first + phase.segment_chunks,", "min(first + phase.segment_chunks + {fault},"),
]


def load_with_faults() -> Any:
    edits: dict[str, list[tuple[str, str]]] = {"implicit_gemm_half.cu": []}
    for fault in FAULTS:
        edits.setdefault(fault.file, []).append(fault.edit)
    return load(edits, NAME)


def check(emulated: Any, fault: Fault) -> None:
    """More than one tile of positions and of rows, of which the last ones are not full. The last chunk lies where the
    tables of the result do."""
    case = dataclasses.replace(TILED[0], batch=2, in_channels=48 if fault.arrange is channels_last else 23)
    if fault.computation == SUMS:
        case = dataclasses.replace(case, in_channels=15, input_size=(6, 4))
    case = dataclasses.replace(case, **fault.changes)
    tensors = operands(fault.computation, case, torch.float16, "cpu")
    exact, magnitude = expected_by_torch(fault.computation, case, tensors)
    to_format = Tensor.contiguous if fault.computation == SUMS else fault.arrange
    arranged = map(fault.arrange, tensors[:2])
    actual = compute(fault.computation, case, *arranged, tensors[2], to_format=to_format, emulated=emulated)
    assert_within_rounding(actual, exact, magnitude)


PIPELINE = ("no_wait", "wrong_group_count", "no_barrier", "too_few_chunks")


@pytest.mark.parametrize(
    "fault",
    [*FAULTS, *(dataclasses.replace(fault, **AS_PIECES) for fault in FAULTS if fault.name in PIPELINE)],
    ids=lambda fault: f"{fault.name}-{fault.computation}",
)
def test_a_planted_fault_is_found(fault: Fault) -> None:
    emulated = load_with_faults()
    # More than one tile for each block.
    emulated.set_limits(**{"index": MOST, "blocks": 2, **fault.limits})
    with forced(ENGINE, NAME):
        assert_found(emulated, fault, fault.message, lambda: check(emulated, fault), WARP_SCHEDULES)
