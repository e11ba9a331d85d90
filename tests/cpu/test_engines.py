"""The CPU engines of the floating-point types on every instruction set of the machine: right, and as promised."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import unfoldconv as uc
from cases import FLOATS, MEMORY_FORMATS, Case, make_case
from compare import assert_within_rounding, wide
from computations import COMPUTATIONS, expected_by_torch, operands
from engine_cases import ENGINE_CASES, LAYERS, PATH_CASES, SHARED_CASES
from engine_checks import (
    ARRANGEMENTS,
    check_batch,
    check_infinities_and_nan,
    check_small_workspaces,
    check_threads,
    check_values,
    op,
)
from instruction_sets import AVAILABLE, ISAS, set_isa

pytestmark = pytest.mark.usefixtures("isas")


def ends(isas: tuple[str, ...]) -> tuple[str, ...]:
    """The one without vectors of a processor and the best one."""
    return tuple(dict.fromkeys((isas[0], isas[-1])))


each_computation = pytest.mark.parametrize("name", COMPUTATIONS)


# --- values -----------------------------------------------------------------------------------------------------------


@each_computation
@pytest.mark.parametrize("case", ENGINE_CASES, ids=lambda case: case.name)
def test_every_instruction_set(case: Case, name: str, isas: tuple[str, ...]) -> None:
    for dtype in FLOATS:
        check_values(case, name, dtype, isas)


@each_computation
@pytest.mark.parametrize("case", PATH_CASES, ids=lambda case: case.name)
def test_other_memory_formats(case: Case, name: str) -> None:
    """Operands with other strides, and a bias with gaps. test_convolution.py has the other cases."""
    formats = [name for name in MEMORY_FORMATS if name not in ("contiguous", "channels_last")]
    for dtype, memory_format in itertools.product((torch.float32, torch.bfloat16), formats):
        first, second, bias = operands(name, case, dtype, "cpu")
        bias = None if bias is None else MEMORY_FORMATS["sliced"](bias)
        arrange = MEMORY_FORMATS[memory_format]
        for tensors in ([arrange(first), second, bias], [first, arrange(second), bias]):
            exact, magnitude = expected_by_torch(name, case, tensors)
            assert_within_rounding(op(name)(case, *tensors), exact, magnitude, f"{dtype}, {memory_format}")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gradients_in_a_line_whose_last_axis_is_one(dtype: torch.dtype) -> None:
    """Their neighbours along the axis before it lie side by side; the stride of the last one says something else."""
    case = make_case("column", 2, in_channels=5, out_channels=33, input_size=(20, 3), kernel_size=(3, 3))
    output, image, _ = operands("conv_weight_grad", case, dtype, "cpu")
    assert output is not None
    exact, magnitude = expected_by_torch("conv_weight_grad", case, [output, image, None])
    lying = output.as_strided(output.shape, (*output.stride()[:3], 18))
    assert output.shape[2:] == (18, 1)
    assert_within_rounding(op("conv_weight_grad")(case, lying, image, None), exact, magnitude, str(dtype))


@each_computation
@pytest.mark.parametrize("case", PATH_CASES, ids=lambda case: case.name)
def test_small_workspaces(case: Case, name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check_small_workspaces(case, name, dtype)


# --- determinism ------------------------------------------------------------------------------------------------------

each_shared_case = pytest.mark.parametrize("case", SHARED_CASES, ids=lambda case: case.name)


@each_computation
@each_shared_case
def test_results_do_not_depend_on_the_threads(
    case: Case, name: str, threads: Callable[[int], None], isas: tuple[str, ...]
) -> None:
    for dtype, isa in itertools.product(FLOATS, ends(isas)):
        check_threads(case, name, dtype, isa, threads)


@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
@each_shared_case
def test_an_image_does_not_depend_on_its_batch(case: Case, name: str, isas: tuple[str, ...]) -> None:
    for dtype, isa in itertools.product(FLOATS, isas):
        check_batch(case, name, dtype, isa)


# --- what is not a number ---------------------------------------------------------------------------------------------


@each_computation
@each_shared_case
@pytest.mark.parametrize("operand", [0, 1], ids=["first", "second"])
def test_infinities_and_nan(case: Case, name: str, operand: int, isas: tuple[str, ...]) -> None:
    for dtype in FLOATS:
        check_infinities_and_nan(case, name, operand, dtype, ends(isas))


# --- accuracy ---------------------------------------------------------------------------------------------------------

# The largest of few errors differs from draw to draw.
DRAWS = 4
# What our error may be, in those of torch's.
FACTOR = 1.5


def torchs(name: str, case: Case, first: Tensor, second: Tensor) -> Tensor:
    """torch's own op on the same operands."""
    window = (list(case.stride), list(case.torch_padding), list(case.dilation))
    if name == "conv":
        return torch.ops.aten.convolution(first, second, None, *window, False, [0] * case.rank, case.groups)
    transposed = name == "conv_transpose"
    image, weight = (
        (first.new_empty(case.input_shape), second) if transposed else (second, first.new_empty(case.weight_shape))
    )
    mask = [transposed, not transposed, False]
    gradients = torch.ops.aten.convolution_backward(
        first, image, weight, None, *window, False, [0] * case.rank, case.groups, mask
    )
    return gradients[0 if transposed else 1]


@each_computation
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_errors_are_not_above_torchs(case: Case, name: str) -> None:
    """The largest against float64 over some draws, beside torch's or the rounding of the result itself."""
    for dtype, arrange in itertools.product((torch.float32, torch.bfloat16, torch.float16), ARRANGEMENTS):
        error = torch_error = rounding = 0.0
        for _ in range(DRAWS):
            first, second, _ = operands(name, case, dtype, "cpu")
            exact, _ = expected_by_torch(name, case, [first, second, None])
            first, second = arrange(first), arrange(second)
            results = (op(name)(case, first, second, None), torchs(name, case, first, second), exact.to(dtype))
            errors = [float((wide(result) - exact).abs().max()) for result in results]
            error, torch_error, rounding = map(max, (error, torch_error, rounding), errors)
        what = f"{dtype}, {arrange.__name__}: {error} beside {torch_error} of torch's and {rounding} of rounding"
        assert error <= FACTOR * max(torch_error, rounding), what


# --- the choice of the instruction set --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "avx3", "AVX2", "avx512 "])
def test_an_unknown_instruction_set_is_refused(name: str) -> None:
    used = uc.build_info()["isa"]
    with pytest.raises(RuntimeError, match="isa must be generic, avx2, avx512, avx512_bf16 or amx, but got"):
        set_isa(name)
    assert uc.build_info()["isa"] == used


def test_an_instruction_set_that_the_processor_lacks_is_refused() -> None:
    for name in ISAS[len(AVAILABLE) :]:
        with pytest.raises(
            RuntimeError, match=f"must be an instruction set that the processor has .{AVAILABLE[-1]} or lower"
        ):
            set_isa(name)


def run_with(isa: str) -> subprocess.CompletedProcess[str]:
    code = "import unfoldconv; print(unfoldconv.build_info()['isa'])"
    environment = os.environ | {"UNFOLDCONV_ISA": isa}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_the_environment_chooses_the_instruction_set() -> None:
    """An empty variable is none."""
    for given, expected in ((AVAILABLE[0], AVAILABLE[0]), ("", AVAILABLE[-1])):
        done = run_with(given)
        assert (done.returncode, done.stdout) == (0, f"{expected}\n"), done.stderr


def test_a_wrong_environment_raises() -> None:
    for name in ("avx3", *ISAS[len(AVAILABLE) :][:1]):
        done = run_with(name)
        assert done.returncode == 1
        assert "UNFOLDCONV_ISA must be" in done.stderr.splitlines()[-1]
        assert f"but got {name}" in done.stderr.splitlines()[-1]
