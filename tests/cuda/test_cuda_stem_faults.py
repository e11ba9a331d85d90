"""Faults planted in copies of the CUDA kernels for few channels are found by the emulator."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import Case
from compare import assert_within_rounding
from computations import expected_by_torch, operands
from emulator.build import load
from emulator.convolutions import compute, forced
from emulator.faults import PlantedFault, assert_found
from emulator.kernels import MOST, WARP_SCHEDULES
from emulator.stem import ENGINE, NAMED, arrange, check_infinite, stem

NAME = "stem_faults"
VALUES = "elements are wrong"
GUARD = "must not be touched"
WILD = f"{GUARD}|{VALUES}|an index must lie inside"  # whatever an arbitrary offset leads to
plain = Tensor.contiguous
BARRIER = "__syncthreads();"
# One dtype is enough, and compiles faster.
ONE_DTYPE = (
    """    case ScalarType::BFloat16: return f(Type<BFloat16>{});
    case ScalarType::Float: return f(Type<float>{});
    case ScalarType::Double: return f(Type<double>{});
    default: refuse(std::string("dtype must be a floating""",
    """    default: refuse(std::string("dtype must be a floating""",
)


@dataclass(frozen=True)
class Fault(PlantedFault):
    """What shows it."""

    message: str = VALUES
    case: str = "seven_by_two-2d"
    computation: str = "conv"
    form: Callable[[Tensor], Tensor] = plain  # of the images
    infinite: bool = False  # whether the check is with infinite elements


def missing(name: str, file: str, line: str, message: str = VALUES, **options: Any) -> Fault:
    """A statement left out, told from others by the text behind it."""
    return Fault(name, file, line, f"if (!{{fault}}) {line}", message, **options)


def ignored(name: str, file: str, condition: str, message: str = WILD, **options: Any) -> Fault:
    """A condition taken to hold."""
    return Fault(name, file, condition, f"({condition} || {{fault}})", message, **options)


def never(name: str, file: str, condition: str, message: str = WILD, **options: Any) -> Fault:
    """A condition taken not to hold."""
    return Fault(name, file, condition, f"({condition} && !{{fault}})", message, **options)


CASES: dict[str, Case] = NAMED | {
    "padded_volume": dataclasses.replace(NAMED["volume-3d"], padding=((1, 1), (2, 2), (8, 8))),
    # Warps take turns with the positions.
    "few_terms": dataclasses.replace(NAMED["odd-2d"], out_channels=60),
    "many_tiles": dataclasses.replace(NAMED["seven_by_two-2d"], batch=130, input_size=(9, 16), out_channels=2),
    # Chunks of 10 x 19 taps, which are not whole pieces, of rows that are.
    "odd_chunks": stem(
        "odd_chunks", 2, 1, 64, batch=1, kernel_size=(40, 19), stride=(40, 19), input_size=(80, 76), bias=False
    ),
    # Several tiles for each block, of several chunks.
    "chunks_of_tiles": stem("chunks_of_tiles", 1, 1, 64, batch=17, kernel_size=(601,), input_size=(632,), bias=False),
}
TILE, CONVOLVE, SUMS = "stem_tile.cuh", "stem_convolve.cuh", "stem_weight_grad.cuh"
OF_SUMS: dict[str, Any] = {"computation": "conv_weight_grad"}
BEFORE = f"{BARRIER}  // nobody reads what is in shared memory"
INSIDE = "static_cast<unsigned>({0}) < static_cast<unsigned>({1})".format
FAULTS = [
    ignored("rows_of_the_image", TILE, INSIDE("y", "size_y")),
    ignored("slices_of_the_image", TILE, INSIDE("z", "size_z"), case="padded_volume"),
    ignored("ends_of_lines", TILE, INSIDE("element", "line_size")),
    missing("no_wait", TILE, "cp_async_wait<0>();"),
    Fault("no_shift", TILE, "first & (piece - 1) : 0", "first & ({fault} ? 0 : piece - 1) : 0", "multiples of 16"),
    Fault(
        "whole_chunks",
        TILE,
        "min(chunk_taps[axis], kernel[axis] - result.first.tap[axis])",
        "({fault} ? chunk_taps[axis] : min(chunk_taps[axis], kernel[axis] - result.first.tap[axis]))",
        WILD,
        "long_window-1d",
    ),
    missing("no_barrier_before", CONVOLVE, f"{BARRIER}  // nobody reads what is", WILD, case="long_window-1d"),
    missing("no_barrier_behind_operands", CONVOLVE, f"{BARRIER}  // the operands are there"),
    missing("no_barrier_before_staging", CONVOLVE, f"{BARRIER}  // nobody reads the box"),
    missing("no_barrier_behind_staging", CONVOLVE, f"{BARRIER}  // the part is there"),
    never("all_rows", CONVOLVE, "part + row >= rows"),
    never("all_positions", CONVOLVE, "place[position] < 0", case="odd-2d"),
    never("weights_of_the_first_chunk", CONVOLVE, "tiling.chunk_count > 1", VALUES, case="chunks_of_tiles"),
    Fault(
        "terms_behind_the_last",
        CONVOLVE,
        "(Tail && term >= terms) return 0;",
        "(Tail && term >= terms && !{fault}) return 0;",
        infinite=True,
    ),
    ignored(
        "pieces_of_weights",
        "stem_convolve.cu",
        "chunk[i] * step % piece == 0",
        "multiples of 16",
        case="odd_chunks",
    ),
    missing("no_barrier_before_sums", SUMS, f"{BEFORE}\n      const int", case="many_tiles", **OF_SUMS),
    missing("no_barrier_behind_tables_of_sums", SUMS, f"{BARRIER}  // the tables are there", WILD, **OF_SUMS),
    missing("no_barrier_behind_operands_of_sums", SUMS, f"{BARRIER}  // the operands are there", **OF_SUMS),
    missing("no_barrier_before_turns", SUMS, f"{BEFORE}\n      const auto", case="few_terms", **OF_SUMS),
    missing("no_barrier_behind_turns", SUMS, f"{BARRIER}  // the sums are there", case="few_terms", **OF_SUMS),
    Fault("sums_to_all_rows", SUMS, "row >= rows ||", "(row >= rows && !{fault}) ||", WILD, **OF_SUMS),
    Fault("sums_to_all_terms", SUMS, "|| term >= terms", "|| (term >= terms && !{fault})", WILD, **OF_SUMS),
    Fault("sums_of_all_rows", SUMS, "row < rows &&", "(row < rows || {fault}) &&", WILD, **OF_SUMS),
    Fault(
        "sums_of_no_position",
        SUMS,
        "(Edge && at < 0) return 0;",
        "(Edge && at < 0 && !{fault}) return 0;",
        infinite=True,
        **OF_SUMS,
    ),
]


def load_with_faults() -> Any:
    edits: dict[str, list[tuple[str, str]]] = {
        "float_kernels.h": [ONE_DTYPE],
        "stem_convolve.cu": [],
        "stem_weight_grad.cu": [],
    }
    for fault in FAULTS:
        edits.setdefault(fault.file, []).append(fault.edit)
    return load(edits, NAME)


def check(emulated: Any, fault: Fault) -> None:
    if fault.infinite:
        check_infinite(fault.computation, emulated)
        return
    case = CASES[fault.case]
    tensors = operands(fault.computation, case, torch.float16, "cpu")
    arranged, to_format = arrange(fault.computation, tensors, fault.form, fault.form)
    exact, magnitude = expected_by_torch(fault.computation, case, tensors)
    # The beginning of a guarded buffer is aligned, so that pieces are moved.
    for guard_end in (False, True):
        actual = compute(
            fault.computation, case, *arranged, to_format=to_format, guard_end=guard_end, emulated=emulated
        )
        assert_within_rounding(actual, exact, magnitude)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found(fault: Fault) -> None:
    emulated = load_with_faults()
    emulated.set_limits(index=MOST, blocks=2, busy=1)  # more than one tile for each block
    emulated.set_workspace_limit(0)  # the workspace is not guarded, the result is
    with forced(ENGINE, NAME):
        assert_found(emulated, fault, fault.message, lambda: check(emulated, fault), WARP_SCHEDULES)
