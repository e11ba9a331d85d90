"""The functions that stand in for instructions: matrix products, matrices from shared memory, asynchronous copies."""

import itertools

import pytest
import torch
from torch import Tensor

from .build import load
from .test_emulator import SCHEDULES, in_any_order, probe, schedule

__all__ = ["schedule"]


def run(name: str, operands: list[Tensor], out: Tensor) -> Tensor:
    """Runs a kernel of instruction_probes.cu on one warp, with the operands behind each other in memory."""
    memory = torch.cat([operand.contiguous().flatten().view(torch.uint8) for operand in operands])
    load().probe(name, (1, 1, 1), (32, 1, 1), 0, memory.data_ptr(), out.data_ptr())
    return out


# --- matrix products --------------------------------------------------------------------------------------------------


@in_any_order
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_of_16_bit_numbers(dtype: torch.dtype) -> None:
    # Small whole numbers, so that sums are exact in any order.
    left, right = torch.randint(-8, 9, (16, 16)).to(dtype), torch.randint(-8, 9, (8, 16)).to(dtype)
    expected = left.float() @ right.float().T + 1
    name = f"multiply_{str(dtype).removeprefix('torch.')}"
    assert torch.equal(run(name, [left, right], torch.empty(16, 8)), expected)
    assert torch.equal(run(f"{name}_transposed", [left, right.T], torch.empty(16, 8)), expected)


@in_any_order
def test_products_of_turing() -> None:
    left, right = torch.randint(-8, 9, (16, 8)).half(), torch.randint(-8, 9, (8, 8)).half()
    expected = left.float() @ right.float().T + 1
    assert torch.equal(run("multiply_f16_k8", [left, right], torch.empty(16, 8)), expected)


@in_any_order
def test_products_of_tf32_read_ten_bits_of_fraction() -> None:
    left, right = torch.randint(-8, 9, (16, 8)).float(), torch.randint(-8, 9, (8, 8)).float()
    expected = left @ right.T + 1
    assert torch.equal(run("multiply_tf32", [left, right], torch.empty(16, 8)), expected)
    longer = left * (1 + 2**-11)
    assert torch.equal(run("multiply_tf32", [longer, right], torch.empty(16, 8)), expected)


def test_rounding_to_tf32() -> None:
    unit = 2.0**-10
    values = torch.tensor(
        [1 + unit / 2, 1 + unit * 0.49, -1 - unit / 2, 1 + unit * 1.5, 0.0, -0.0, torch.inf, torch.nan]
    )
    expected = torch.tensor([1 + unit, 1, -1 - unit, 1 + 2 * unit, 0.0, -0.0, torch.inf, torch.nan])
    found = probe("round_to_tf32", values.view(torch.int32)).view(torch.float32)
    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))
    assert torch.equal(found.signbit()[:6], expected.signbit()[:6])


@in_any_order
def test_products_of_doubles() -> None:
    left, right = torch.randint(-99, 99, (8, 4)).double(), torch.randint(-99, 99, (8, 4)).double()
    found = run("multiply_f64", [left, right], torch.empty(8, 8, dtype=torch.float64))
    assert torch.equal(found, left @ right.T + 1)


# --- matrices from shared memory --------------------------------------------------------------------------------------


@in_any_order
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_from_shared_memory(count: int) -> None:
    matrices = torch.randint(-999, 999, (4, 8, 8), dtype=torch.int16)
    # Register i of lane 4 g + t holds the elements (g, 2 t) and (g, 2 t + 1) of matrix i.
    for suffix, shown in (("", matrices), ("_transposed", matrices.mT)):
        found = run(f"load_{count}{suffix}", [matrices], torch.empty(count, 32, dtype=torch.int32))
        expected = shown[:count].contiguous().view(torch.int32).reshape(count, 32)
        assert torch.equal(found, expected), suffix


def test_what_each_lane_holds_of_a_matrix() -> None:
    """Lane by lane as the PTX ISA has it: row lane / 4 and columns lane % 4 * 2 and the next, or with .trans the same
    row and columns of the transposed matrix."""
    matrices = torch.arange(4 * 64, dtype=torch.int16).reshape(4, 8, 8)
    straight, turned = (
        run(f"load_4{suffix}", [matrices], torch.empty(4, 32, dtype=torch.int32)).view(torch.int16).reshape(4, 32, 2)
        for suffix in ("", "_transposed")
    )
    for i, lane, half in itertools.product(range(4), range(32), range(2)):
        row, column = lane // 4, lane % 4 * 2 + half
        assert straight[i, lane, half] == 64 * i + 8 * row + column
        assert turned[i, lane, half] == 64 * i + 8 * column + row


@in_any_order
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_operand_that_lies_turned_must_be_turned(dtype: torch.dtype) -> None:
    left, right = torch.randint(-8, 9, (16, 16)).to(dtype), torch.randint(-8, 9, (8, 16)).to(dtype)
    expected = left.float() @ right.float().T + 1
    name = f"multiply_{str(dtype).removeprefix('torch.')}"
    assert torch.equal(run(f"{name}_both_transposed", [left.T, right.T], torch.empty(16, 8)), expected)
    assert not torch.equal(run(f"{name}_left_not_transposed", [left.T, right.T], torch.empty(16, 8)), expected)
    assert not torch.equal(run(name, [left.T, right], torch.empty(16, 8)), expected)


@in_any_order
def test_matrices_are_loaded_by_whole_warps_from_shared_memory() -> None:
    with pytest.raises(RuntimeError, match=r"wait forever: .* in ldmatrix"):
        probe("load_half_a_warp", torch.zeros(128))
    with pytest.raises(RuntimeError, match="ldmatrix must be called by whole warps"):
        probe("load_1", torch.zeros(16))
    aligned = torch.zeros(4, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="ldmatrix must have an address in shared memory"):
        load().probe("load_from_global", (1, 1, 1), (32, 1, 1), 0, aligned.data_ptr(), 0)


# --- asynchronous copies ----------------------------------------------------------------------------------------------


@in_any_order
@pytest.mark.parametrize("words", [1, 2, 4])
def test_a_copy_is_there_after_its_wait_and_a_barrier(words: int) -> None:
    values = torch.randint(1, 999, (64, words), dtype=torch.int32)
    out = torch.empty_like(values)
    load().probe(f"copy_{words}", (1, 1, 1), (64, 1, 1), 0, values.data_ptr(), out.data_ptr())
    expected = values.clone()
    expected[-1, 1:] = 0  # beyond what it was told to read
    assert torch.equal(out, expected.roll(-1, 0))


@in_any_order
def test_a_wait_leaves_the_latest_groups_under_way() -> None:
    values = torch.randint(1, 999, (64,))
    for kernel in ("copy_wait_for_all", "copy_wait_for_first"):
        assert probe(kernel, values).tolist() == values.tolist(), kernel
    for kernel in ("copy_wait_for_too_few", "copy_without_wait", "copy_without_commit"):
        assert probe(kernel, values).tolist() == [-1] * 64, kernel


@pytest.mark.parametrize("kernel", ["copy_without_barrier", "copy_too_early"])
def test_a_copy_that_others_may_not_see_yet_shows(kernel: str) -> None:
    values = torch.randperm(64)
    for name, seed in SCHEDULES:
        load().set_schedule(getattr(load().Order, name), seed)
        assert probe(kernel, values).tolist() != values.flip(0).tolist(), name
    load().set_schedule(load().Order.forward)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("copy_to_global", "cp_async must have an address in shared memory"),
        ("copy_unaligned", "cp_async must have addresses that are multiples of 8"),
    ],
)
def test_a_copy_from_or_to_a_wrong_address_is_an_error(kernel: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        probe(kernel, torch.zeros(64))


def test_a_copy_reads_no_more_than_it_is_told_to() -> None:
    """The last thread reads one word of four, and behind that word no memory may be touched."""
    memory = load().Guarded(4 * (4 * 31 + 1) + 12, False)
    values = torch.frombuffer(memory, dtype=torch.int32)[: 4 * 31 + 1]
    values.copy_(torch.arange(4 * 31 + 1))
    out = torch.empty(128, dtype=torch.int32)
    load().probe("copy_4", (1, 1, 1), (32, 1, 1), 0, values.data_ptr(), out.data_ptr())
    assert out.roll(4).tolist() == [*range(4 * 31 + 1), 0, 0, 0]
