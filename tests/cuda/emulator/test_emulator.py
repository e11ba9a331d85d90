"""The emulator finds what it is there to find, and runs what is right; and so do launch.cuh and index.cuh."""

import pytest
import torch
from torch import Tensor

from .build import load

SCHEDULES = [("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2), ("by_warp", 0)]


@pytest.fixture(params=SCHEDULES, ids=lambda schedule: f"{schedule[0]}{schedule[1]}")
def schedule(request: pytest.FixtureRequest) -> None:
    name, seed = request.param
    load().set_schedule(getattr(load().Order, name), seed)


# For what the order of threads might change.
in_any_order = pytest.mark.usefixtures("schedule")


def probe(
    name: str,
    values: Tensor,
    *,
    out: Tensor | None = None,
    grid: tuple[int, int, int] = (1, 1, 1),
    shared_bytes: int = 0,
) -> Tensor:
    """Runs a kernel of probes.cu with one thread for each value and returns what it wrote."""
    values = values.to(torch.int32)
    out = torch.full_like(values, 12345) if out is None else out
    load().probe(name, grid, (len(values), 1, 1), shared_bytes, values.data_ptr(), out.data_ptr())
    return out


# --- barriers and shared memory ---------------------------------------------------------------------------------------


@in_any_order
@pytest.mark.parametrize("threads", [1, 31, 64, 1024])
def test_a_barrier_makes_all_writes_visible(threads: int) -> None:
    values = torch.randperm(threads)
    assert probe("reverse", values).tolist() == values.flip(0).tolist()
    assert probe("reverse_in_dynamic_memory", values, shared_bytes=4 * threads).tolist() == values.flip(0).tolist()


@in_any_order
def test_a_missing_barrier_shows() -> None:
    values = torch.randperm(64)
    assert probe("reverse_without_barrier", values).tolist() != values.flip(0).tolist()


def test_a_warp_can_be_ahead_of_another() -> None:
    """Every warp waits for itself between writing and reading; only by_warp shows that it must wait for others too."""
    values = torch.randperm(64)
    load().set_schedule(load().Order.by_warp)
    found = probe("reverse_behind_warp_barrier", values)
    assert found.tolist() != values.flip(0).tolist()
    assert found[32:].tolist() == values[:32].flip(0).tolist(), "what the first warp has written is there"
    load().set_schedule(load().Order.forward)
    assert probe("reverse_behind_warp_barrier", values).tolist() == values.flip(0).tolist()


@in_any_order
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (
            "return_before_barrier",
            r"must reach a barrier, but thread \(3, 0, 0\) has returned .* waits at .*probes.cu:",
        ),
        ("wait_at_two_barriers", r"must wait at the same barrier, but thread .* waits at .*probes.cu:"),
        ("wait_for_half_a_warp", r"wait forever: .* in __sync(warp|threads) at .*probes.cu:\d+, .* 32 in all"),
        ("wait_for_another_mask", r"wait forever: .* in __ballot_sync at .*probes.cu:\d+, .* 16 in all"),
        ("call_without_own_lane", r"the mask of __ballot_sync must name its caller"),
    ],
)
def test_threads_that_would_wait_forever_are_an_error(kernel: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        probe(kernel, torch.arange(32))


@in_any_order
def test_shared_memory_is_overwritten_before_each_block() -> None:
    for blocks in (1, 2, 3):
        out = probe("read_unwritten_shared", torch.arange(32), grid=(blocks, 1, 1), shared_bytes=128)
        assert out.tolist() == [-1] * 32


# --- memory and arithmetic --------------------------------------------------------------------------------------------


@in_any_order
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("leave_static_array", r"an index must lie inside of its array.* \[thread \((1[6-9]|2\d|3[01]), 0, 0\)\]"),
        ("leave_dynamic_memory", r"byte 0 behind a buffer of 128 bytes was \[thread \(31, 0, 0\)\]"),
        ("overflow", r"an integer must not overflow"),
    ],
)
def test_undefined_behaviour_is_an_error(kernel: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        probe(kernel, torch.arange(32), shared_bytes=128)


def test_the_emulator_goes_on_after_an_error() -> None:
    for _ in range(3):
        with pytest.raises(RuntimeError):
            probe("leave_static_array", torch.arange(32))
        assert probe("reverse", torch.arange(5)).tolist() == [4, 3, 2, 1, 0]


@pytest.mark.parametrize(("bytes", "guard_end"), [(4096, True), (4096, False), (20, True), (20, False), (0, True)])
def test_a_guarded_buffer_is_memory_up_to_its_guard(bytes: int, guard_end: bool) -> None:
    memory = load().Guarded(bytes, guard_end)
    view = memoryview(memory).cast("B")
    view[:] = b"\7" * bytes
    assert view.tobytes() == b"\7" * bytes


@pytest.mark.parametrize(
    ("guard_end", "first", "message"),
    [(True, 1, "byte 0 behind a buffer of 128 bytes"), (False, -1, "byte 4 before a buffer of 128 bytes")],
)
def test_a_guard_catches_the_element_next_to_the_buffer(guard_end: bool, first: int, message: str) -> None:
    memory = load().Guarded(128, guard_end)
    address = torch.frombuffer(memory, dtype=torch.int32).data_ptr() + 4 * first
    out = torch.empty(32, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=message):
        load().probe("reverse", (1, 1, 1), (32, 1, 1), 0, address, out.data_ptr())


# --- warps ------------------------------------------------------------------------------------------------------------


@in_any_order
def test_shuffles() -> None:
    values = torch.randint(-100, 100, (64,))
    lane = torch.arange(64)
    expected = {
        "shuffle_index": lane // 8 * 8 + (lane + 1) % 8,
        "shuffle_up": torch.where(lane % 16 >= 3, lane - 3, lane),
        "shuffle_down": torch.where(lane % 32 + 5 < 32, lane + 5, lane),
    }
    for kernel, source in expected.items():
        assert probe(kernel, values).tolist() == values[source].tolist(), kernel
    sums = values.reshape(2, 32).sum(1).repeat_interleave(32)
    assert probe("sum_by_xor", values).tolist() == sums.tolist()


@in_any_order
def test_votes() -> None:
    values = torch.cat([torch.zeros(32), torch.ones(32), torch.arange(32) % 3])  # no lane, every lane, 11 odd ones
    assert probe("vote", values).tolist() == [-1] * 32 + [132] * 32 + [11] * 32
    halves = (values.reshape(-1, 16) % 2).sum(1).int().repeat_interleave(16)
    assert probe("vote_in_halves", values).tolist() == halves.tolist()


@in_any_order
def test_atomic_additions_all_count() -> None:
    values = torch.randint(-100, 100, (100,))
    out = probe("add_atomically", values, out=torch.zeros(1, dtype=torch.int32), grid=(3, 2, 1))
    assert out.item() == 6 * values.sum().item()


# --- launching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "block"),
    [
        ((0, 1, 1), (32, 1, 1)),
        ((1, 65536, 1), (32, 1, 1)),
        ((1, 1, 65536), (32, 1, 1)),
        ((1, 1, 1), (1025, 1, 1)),
        ((1, 1, 1), (32, 33, 1)),
        ((1, 1, 1), (1, 1, 65)),
    ],
)
def test_a_launch_beyond_the_limits_of_cuda_is_an_error(grid: tuple[int, ...], block: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match="must stay within the limits of CUDA"):
        load().probe("reverse", grid, block, 0, 0, 0)


def test_a_failed_launch_is_reported_and_names_the_library() -> None:
    with pytest.raises(
        RuntimeError, match=r"CUDA error while launching a kernel of unfoldconv: .* must reach a barrier"
    ):
        load().probe_launch("return_before_barrier", 1, 0, torch.zeros(256, dtype=torch.int32).data_ptr())


def test_no_work_is_no_launch() -> None:
    before = load().launch_count()
    load().probe_launch("reverse", 0, 0, 0)
    assert load().launch_count() == before


@in_any_order
@pytest.mark.parametrize("most_blocks", [1, 2, 5])
def test_a_smaller_grid_does_all_items_and_tiles_once(most_blocks: int) -> None:
    items, tiles = 1100, 5
    counts = torch.zeros(items + tiles, dtype=torch.int32)
    sizes = torch.tensor([items, tiles], dtype=torch.int32)
    load().set_limits(index=2**31 - 1, blocks=most_blocks)
    try:
        load().probe_launch("count_items", 5, sizes.data_ptr(), counts.data_ptr())
    finally:
        load().set_limits(index=2**31 - 1, blocks=2**31 - 1)
    assert load().last_launch()[1:] == (most_blocks, 256)
    assert counts[:items].tolist() == [1] * items
    assert counts[items:].tolist() == [256] * tiles


# --- division ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 64])
def test_the_divider_divides(bits: int) -> None:
    most = 2 ** (bits - 1) - 1
    powers = [2**exponent for exponent in range(bits - 1)]
    interesting = sorted(
        {n for power in powers for n in (power - 1, power, power + 1, most // power) if n <= most} | {most}
    )
    some = torch.randint(0, most, (1000 - len(interesting),)).tolist()
    dividends = torch.tensor(interesting + some)
    for divisor in [*interesting[1:], *some[:100]]:
        quotients, remainders = torch.empty_like(dividends), torch.empty_like(dividends)
        load().probe_divider(
            bits, len(dividends), dividends.data_ptr(), divisor, quotients.data_ptr(), remainders.data_ptr()
        )
        assert torch.equal(quotients, dividends // divisor), divisor
        assert torch.equal(remainders, dividends % divisor), divisor
