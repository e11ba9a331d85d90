import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import accuracy, memory, results, timing
from benchmarks.cases import DTYPES, Case, make_operands, precision
from benchmarks.ceilings import Ceilings
from benchmarks.harness import Limits, run_case
from benchmarks.peers import OURS, PEERS, TORCH, UNFOLD
from benchmarks.problems import COLUMN_PASSES, CONVOLUTION_PASSES, LAYERS_FILE, Problem, load_problems
from benchmarks.timing import CpuClock, Quartiles, Race, race
from tiny_layers import TINY, raising, spoiled, tiny_case, tiny_problems

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


# --- layers and their costs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_layers_are_convolutions_that_torch_accepts(device_type: str) -> None:
    problems = load_problems(LAYERS_FILE, device_type)
    assert len({problem.name for problem in problems}) == len(problems) >= 40
    for problem in problems:
        x = torch.empty(problem.input_shape, device="meta")
        weight = torch.empty(problem.weight_shape, device="meta")
        convolution: Callable[..., Tensor] = CONVOLUTIONS[problem.rank]
        output = convolution(x, weight, None, problem.stride, problem.padding, problem.dilation, problem.groups)
        assert output.shape == problem.output_shape, problem.name


def test_a_layer_takes_its_cpu_size_on_a_cpu_only() -> None:
    on_cpu, on_cuda = (load_problems(LAYERS_FILE, device)[0] for device in ("cpu", "cuda"))
    assert (on_cpu.batch, on_cuda.batch) == (8, 32)
    assert on_cpu.weight_shape == on_cuda.weight_shape


@pytest.mark.parametrize(("change", "message"), [({"stride": [1, 1, 1]}, "2 entries"), ({"kernel": None}, "'kernel'")])
def test_a_malformed_layer_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {key: value for key, value in (TINY[1] | change).items() if value is not None}
    path = tmp_path / "layers.json"
    path.write_text(json.dumps({"layers": [row]}))
    with pytest.raises(ValueError, match=message):
        load_problems(path)


def test_costs_of_a_layer_by_hand() -> None:
    # 4 inputs, padded by 1 on each side, 3 taps: 4 positions, and the first and the last each lose one tap.
    problem = Problem("", "", 1, 1, 2, (4,), (3,), (1,), (1,), (1,), 1)
    assert problem.output_size == (4,)
    forward = problem.work("forward")
    assert (forward.flop, forward.valid_flop, forward.elements) == (2 * 2 * 12, 2 * 2 * 10, 4 + 6 + 8)
    assert problem.work("fold").valid_flop == 10
    assert problem.work("fold").elements == 10 + 4
    assert problem.work("unfold").elements == 4 + 12


def test_a_strided_pointwise_layer_reads_only_what_it_uses() -> None:
    problem = Problem("", "", 1, 1, 1, (5, 5), (1, 1), (2, 2), (0, 0), (1, 1), 1)
    assert problem.work("forward").elements == 9 + 1 + 9
    assert problem.work("grad_weight").elements == 9 + 1 + 9
    assert problem.work("grad_input").elements == 25 + 1 + 9  # zeros are written too


@pytest.mark.parametrize("name", [row["name"] for row in TINY])
def test_costs_agree_with_convolutions_of_ones(tmp_path: Path, name: str) -> None:
    problem = tiny_problems(tmp_path)[name]
    geometry = {"stride": problem.stride, "padding": problem.padding, "dilation": problem.dilation}
    x, weight = torch.ones(problem.input_shape), torch.ones(problem.weight_shape)
    convolution: Callable[..., Tensor] = CONVOLUTIONS[problem.rank]
    output = convolution(x, weight, groups=problem.groups, **geometry)
    assert problem.work("forward").valid_flop == 2 * int(output.sum())
    no_padding = convolution(
        F.pad(x, [p for axis in reversed(problem.padding) for p in (axis, axis)], value=1.0),
        weight,
        stride=problem.stride,
        dilation=problem.dilation,
        groups=problem.groups,
    )
    assert problem.work("forward").flop == 2 * int(no_padding.sum())
    grad_input = torch.autograd.functional.vjp(
        lambda x: convolution(x, weight, groups=problem.groups, **geometry), x, torch.ones_like(output)
    )[1]
    expected = int(grad_input.count_nonzero()) + weight.numel() + output.numel()
    assert problem.work("forward").elements == expected


# --- implementations and accuracy ---------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("pass_", [*CONVOLUTION_PASSES, *COLUMN_PASSES])
@pytest.mark.parametrize("name", [row["name"] for row in TINY])
def test_every_implementation_computes_the_same(
    tmp_path: Path, name: str, pass_: str, memory_format: str, device: torch.device
) -> None:
    case = tiny_case(tmp_path, name, pass_, device, memory_format=memory_format)
    if case.refusal() or TORCH.refusal(case):
        assert case.problem.rank != 2 or (pass_, memory_format) == ("fold", "channels_last")
        return
    operands = make_operands(case)
    with precision(case):
        reference = accuracy.Reference(case, operands)
        for peer in (OURS, *PEERS.values()):
            if peer.refusal(case) is None:
                assert reference.error(peer.prepare(case, operands)()).max < 1e-5, peer.name


def test_the_operands_have_the_memory_format_asked_for(tmp_path: Path) -> None:
    for name, expected in (("plane", torch.channels_last), ("volume", torch.channels_last_3d)):
        operands = make_operands(tiny_case(tmp_path, name, "forward", memory_format="channels_last"))
        for tensor in (operands.input, operands.weight, operands.grad_output):
            assert tensor.is_contiguous(memory_format=expected)


def test_errors_are_relative_and_never_forgive_nan() -> None:
    expected = torch.full((100,), 2.0, dtype=torch.float64)
    result = expected.to(torch.float32)
    result[7] += 1.0
    error = accuracy.error(result, expected)
    assert error.max == pytest.approx(0.5)
    assert error.rms == pytest.approx(0.05)
    assert error.within(error)
    assert not error.within(accuracy.Error(1.0, 0.4))
    result[7] = math.nan
    assert not accuracy.error(result, expected).within(accuracy.Error(math.inf, math.inf))
    assert accuracy.error(result[1:], expected).rms == math.inf


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("plane", lambda result: result.view(-1)[3].add_(0.01)),
        ("plane", lambda result: result.view(-1)[3].fill_(math.nan)),
        ("plane", lambda result: result.mul_(1.0001)),
        ("depthwise", lambda result: result[:, 1].add_(0.01)),  # not one of the groups compared with float64
    ],
)
def test_a_wrong_result_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, spoil: Callable[[Tensor], object]
) -> None:
    monkeypatch.setattr(results, "OURS", spoiled(spoil))
    result = run_case(tiny_case(tmp_path, name, "forward"), [], Limits(1, 0.0), CpuClock(), Ceilings(1e9, 1e9))
    assert result.status == "wrong"
    assert "must be at most" in result.message
    assert result.ours.seconds is None


def test_an_exception_of_ours_fails_the_case_and_one_of_a_peer_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, limits = tiny_case(tmp_path, "plane", "forward"), Limits(1, 0.0)
    broken = dataclasses.replace(UNFOLD, prepare=raising)
    result = run_case(case, [broken], limits, CpuClock(), Ceilings(1e9, 1e9))
    assert result.status == "ok"
    assert result.theirs[1].refusal == "no such engine"
    monkeypatch.setattr(results, "OURS", dataclasses.replace(OURS, prepare=raising))
    result = run_case(case, [], limits, CpuClock(), Ceilings(1e9, 1e9))
    assert (result.status, result.message) == ("failed", "no such engine")


def test_precision_is_set_for_convolutions_and_products_and_put_back(tmp_path: Path) -> None:
    cudnn: Any = torch.backends.cudnn

    def settings() -> tuple[object, ...]:
        matmul = torch.backends.cuda.matmul
        modes = (cudnn.conv.fp32_precision == "tf32", matmul.fp32_precision == "tf32")
        return cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32, *modes

    before = settings()
    for name, tf32 in (("f32", False), ("tf32", True)):
        with precision(tiny_case(tmp_path, "plane", "forward", dtype=DTYPES[name])):
            assert settings() == (True, tf32, tf32, tf32, tf32)
        assert settings() == before


# --- time and memory ----------------------------------------------------------------------------------------------


class FakeClock:
    """Time passes only in calls that are measured, by a script of seconds for each side."""

    def __init__(self, script: dict[str, list[float]]) -> None:
        self._script = {name: iter(seconds) for name, seconds in script.items()}
        self._now = 0.0
        self.running = ""

    def now(self) -> float:
        return self._now

    def measure(self, run: Callable[[], object]) -> float:
        run()
        seconds = next(self._script[self.running])
        self._now += seconds
        return seconds


def fake_race(ours: list[float], theirs: list[float], max_rounds: int, seconds: float) -> tuple[Race, str]:
    clock = FakeClock({"A": ours, "B": theirs})
    order: list[str] = []

    def side(name: str) -> Callable[[], None]:
        def run() -> None:
            clock.running = name
            order.append(name)

        return run

    return race(side("A"), side("B"), clock, max_rounds, seconds), "".join(order)


def test_a_race_takes_turns_and_reports_the_median_of_ratios() -> None:
    times, order = fake_race([1.0, 10.0, 1.0, 2.0, 1.0], [2.0, 30.0, 2.0, 2.0, 8.0], max_rounds=5, seconds=1e9)
    warm_up = "A" * timing.WARM_UP_CALLS + "B" * timing.WARM_UP_CALLS
    assert order == warm_up + "AB" * 5
    assert times.ratio == Quartiles(2.0, 2.0, 3.0)  # of 2, 3, 2, 1, 8
    assert Quartiles.of(times.ours).median == 1.0


def test_a_race_ends_by_rounds_or_by_time_but_never_before_three() -> None:
    assert len(fake_race([1.0] * 9, [1.0] * 9, max_rounds=4, seconds=1e9)[0].ours) == 4
    assert len(fake_race([1.0] * 9, [1.0] * 9, max_rounds=9, seconds=9.0)[0].ours) == 5
    assert len(fake_race([1.0] * 9, [1.0] * 9, max_rounds=9, seconds=0.0)[0].ours) == timing.MIN_ROUNDS
    assert len(fake_race([1.0] * 9, [1.0] * 9, max_rounds=1, seconds=0.0)[0].ours) == 1


def test_the_cpu_clock_repeats_short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def run() -> None:
        nonlocal now
        now += timing.CPU_MIN_SECONDS / 4

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    assert CpuClock().measure(run) == pytest.approx(timing.CPU_MIN_SECONDS / 4)
    assert now == pytest.approx(timing.CPU_MIN_SECONDS)


@pytest.mark.parametrize("pass_", CONVOLUTION_PASSES)
def test_extra_memory_sees_the_column_matrix(tmp_path: Path, pass_: str, device: torch.device) -> None:
    problem = Problem("", "", 8, 32, 32, (64, 64), (3, 3), (1, 1), (1, 1), (1, 1), 1)
    case = Case(problem, pass_, DTYPES["f32"], "contiguous", device)
    operands = make_operands(case)
    call = UNFOLD.prepare(case, operands)
    call()
    extra = memory.peak_extra_bytes(call, device)
    if extra is None:
        pytest.skip("the peak of resident memory cannot be reset here")
    mebibyte = 1 << 20
    assert case.columns_bytes == 36 * mebibyte  # above 32 MiB, malloc returns it to the system at once
    # The products of grad_weight may copy an operand, which is as large as the input at most, or pack the columns.
    most = 2 * case.columns_bytes if pass_ == "grad_weight" else case.columns_bytes + 4 * mebibyte
    assert case.columns_bytes - mebibyte <= extra <= most
    assert (memory.peak_extra_bytes(lambda: operands.input.clone(), device) or 0) <= mebibyte
