"""Calls that are refused: each with the rule and the value, and in a class that code written for torch catches.

A wrong call is a line of Python in which the functions are ours or torch's and the operands are those below, which fit
together until the call spoils one of them.
"""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import unfoldconv as uc

OPS = SimpleNamespace(
    **{
        name: getattr(torch.ops.unfoldconv, name)
        for name in ("im2col", "col2im", "conv", "conv_input_grad", "conv_weight_grad", "set_workspace_limit")
    }
)

OPERANDS: dict[str, Any] = {
    "SIGNAL": torch.ones(2, 4, 9),
    "IMAGE": torch.ones(2, 4, 6, 5),
    "VOLUME": torch.ones(2, 4, 4, 4, 4),
    "WEIGHT": torch.ones(6, 4, 3, 2),  # of a convolution of IMAGE, and of a transposed convolution of OUTPUT
    "OUTPUT": torch.ones(2, 6, 4, 4),
    "COLUMNS": torch.ones(2, 24, 16),
    "WINDOW": ([1, 1], [0, 0], [0, 0], [1, 1]),  # stride, padding_low, padding_high, dilation
    "FAR": 2**62,  # fits 64 bits, but no sum or product with another of its kind does
    "BEYOND": 2**63,  # does not fit 64 bits
    "torch": torch,
}

# The call, and the message. torch refuses these too, in a class that ours belongs to.
REFUSED_BY_TORCH_TOO = [
    # unfold
    ("unfold(IMAGE, 2, stride=0)", r"stride must be positive.*got \(0, 0\)"),
    ("unfold(IMAGE, 2, stride=(1, -3))", r"stride must be positive.*got \(1, -3\)"),
    ("unfold(IMAGE, 2, stride=(1, 2, 3))", r"stride must .*one number per spatial axis \(2\).*got \(1, 2, 3\)"),
    ("unfold(IMAGE, 2, dilation=0)", r"dilation must be positive.*got \(0, 0\)"),
    ("unfold(IMAGE, 2, dilation=(-1, 1))", r"dilation must be positive.*got \(-1, 1\)"),
    ("unfold(IMAGE, 2, padding=-1)", "padding must be non-negative.*got .*-1"),
    ("unfold(IMAGE, (2, 0))", r"kernel_size must be positive.*got \(2, 0\)"),
    ("unfold(IMAGE, -2)", r"kernel_size must be positive.*got \(-2, -2\)"),
    ("unfold(IMAGE, (3, 6))", "kernel must fit.*empty.*got span 6 .*axis 1"),
    ("unfold(IMAGE, ())", r"kernel_size must have 1, 2 or 3 axes, but got \(\)"),
    ("unfold(IMAGE, (1, 1, 1, 1))", r"1, 2 or 3 axes, but got \(1, 1, 1, 1\)"),
    ("unfold(VOLUME, 2)", r"input must have 3 .* or 4 .*got.*\[2, 4, 4, 4, 4\]"),
    # fold
    ("fold(COLUMNS[:, :23], (6, 5), (3, 2))", "columns must .*divisible.*got 23 rows"),
    ("fold(COLUMNS[..., :15], (6, 5), (3, 2))", "columns must have 16 positions.*got 15"),
    ("fold(COLUMNS, (6, 5), (3, 2), stride=2)", "columns must have 4 positions.*got 16"),
    ("fold(COLUMNS, (-6, 5), (3, 2))", "size must be non-negative, but got -6|must fit.*-6"),
    ("fold(COLUMNS, (6, 1), (3, 2))", "kernel must fit.*axis 1"),
    ("fold(COLUMNS, (6, 5, 4), (3, 2))", r"output_size must .*\(2\).*got \(6, 5, 4\)"),
    ("fold(IMAGE, (6, 5), (3, 2))", r"input must have 2 .* or 3 .*got.*\[2, 4, 6, 5\]"),
    ("fold(torch.ones(4), (6, 5), (3, 2))", r"input must have 2 .* or 3 .*got.*\[4\]"),
    ("fold(COLUMNS.to(torch.float8_e5m2), (6, 5), (3, 2))", "dtype must be one that can be added, but got Float8"),
    ("fold(COLUMNS, (6, 5), (3, 0))", r"kernel_size must be positive.*got \(3, 0\)"),
    ("fold(COLUMNS, (6, 5), (3, 2), stride=(0, 1))", r"stride must be positive.*got \(0, 1\)"),
    ("fold(COLUMNS, (6, 5), (3, 2), dilation=0)", r"dilation must be positive.*got \(0, 0\)"),
    ("fold(COLUMNS, (6, 5), (3, 2), padding=(-1, 0))", "padding must be non-negative.*got.*-1"),
    # convolution
    ("conv2d(IMAGE[:, :3], WEIGHT)", "channels.*but got 3 channels"),
    ("conv2d(IMAGE, WEIGHT, groups=2)", "channels.*but got 4 channels"),
    ("conv2d(IMAGE, WEIGHT, groups=0)", "groups must be positive.*got 0"),
    ("conv2d(IMAGE, WEIGHT, groups=-1)", "groups must be positive.*got -1"),
    ("conv2d(IMAGE, WEIGHT[:5, :2], groups=2)", r"divisible by groups \(2\), but got 5"),
    ("conv2d(IMAGE, WEIGHT, groups=FAR)", "groups.*but got"),
    ("conv2d(SIGNAL[0], WEIGHT)", r"input must have 3 .* or 4 .*got.*\[4, 9\]"),
    ("conv1d(SIGNAL, WEIGHT)", r"weight must have 3 dimensions.*got shape \(6, 4, 3, 2\)"),
    ("conv2d(IMAGE, WEIGHT[..., :0])", r"kernel_size must be positive.*got \(3, 0\)"),
    ("conv2d(IMAGE, WEIGHT.double())", r"Input type \(Float\) and weight type \(Double\) should be the same"),
    ("conv2d(IMAGE, WEIGHT, torch.ones(4))", r"bias must be .* with 6 elements.*got shape \(4,\)"),
    ("conv2d(IMAGE, WEIGHT, torch.ones(6, 1))", r"bias must be 1-dimensional.*got shape \(6, 1\)"),
    ("conv2d(IMAGE, WEIGHT, torch.ones(6).half())", r"bias type \(Half\) should be the same"),
    ("conv2d(IMAGE.bool(), WEIGHT.bool())", "dtype.*but got Bool"),
    ("conv2d(IMAGE.to(torch.uint16), WEIGHT.to(torch.uint16))", "dtype.*but got UInt16"),
    ("conv2d(IMAGE.to(torch.float8_e5m2), WEIGHT.to(torch.float8_e5m2))", "dtype.*but got Float8"),
    ("conv2d(IMAGE[..., :1], WEIGHT)", "kernel must fit.*axis 1.*Kernel size can't be greater than actual input size"),
    ("conv2d(IMAGE, WEIGHT, stride=0)", r"stride must be positive.*got \(0, 0\)"),
    ("conv2d(IMAGE, WEIGHT, stride=(1, 1, 1))", r"stride must .*\(2\).*got \(1, 1, 1\)"),
    ("conv2d(IMAGE, WEIGHT, dilation=(1, 0))", r"dilation must be positive.*got \(1, 0\)"),
    ("conv2d(IMAGE, WEIGHT, padding=(0, -1))", "padding must be non-negative.*got.*-1"),
    ("conv2d(IMAGE, WEIGHT, padding=(1, 1, 1))", r"padding must .*\(2\).*got \(1, 1, 1\)"),
    ('conv2d(IMAGE, WEIGHT, padding="reflect")', "padding must be 'same', 'valid'.*got 'reflect'"),
    # transposed convolution
    ("conv_transpose2d(IMAGE, WEIGHT)", "channels.*but got 4 channels"),
    ("conv_transpose2d(OUTPUT, WEIGHT, groups=0)", "groups must be positive.*got 0"),
    ("conv_transpose2d(OUTPUT, WEIGHT, groups=4)", r"divisible by groups \(4\), but got 6"),
    ("conv_transpose2d(OUTPUT, WEIGHT, torch.ones(6))", r"bias must be .* with 4 elements.*got shape \(6,\)"),
    ("conv_transpose2d(OUTPUT, WEIGHT.half())", r"type \(Float\) and weight type \(Half\) should be the same"),
    ("conv_transpose1d(SIGNAL, WEIGHT)", r"weight must have 3 dimensions.*got shape \(6, 4, 3, 2\)"),
    ("conv_transpose2d(OUTPUT, WEIGHT[..., :0])", "kernel_size must be positive.*got"),
    ("conv_transpose3d(OUTPUT[0], torch.ones(6, 4, 2, 2, 2))", "input must have 4 .* or 5 .*got"),
    ("conv_transpose2d(OUTPUT, WEIGHT, stride=-1)", r"stride must be positive.*got \(-1, -1\)"),
    ("conv_transpose2d(OUTPUT, WEIGHT, dilation=0)", r"dilation must be positive.*got \(0, 0\)"),
    ("conv_transpose2d(OUTPUT, WEIGHT, padding=-1)", "padding must be non-negative.*got.*-1"),
    ("conv_transpose2d(OUTPUT, WEIGHT, padding=3)", "(?=.*Output size is too small).*but got"),
    ("conv_transpose2d(OUTPUT, WEIGHT[..., :1, :1], padding=2)", "(?=.*Output size is too small).*but got"),
    ("conv_transpose2d(OUTPUT, WEIGHT, output_padding=-1)", r"output_padding must be non-negative, but got \(-1, -1\)"),
    (
        "conv_transpose2d(OUTPUT, WEIGHT, stride=2, output_padding=2)",
        r"output padding must be smaller than either stride or dilation.*got \(2, 2\)",
    ),
    ("conv_transpose2d(OUTPUT, WEIGHT, output_padding=(0, 0, 0))", r"output_padding must .*\(2\).*got \(0, 0, 0\)"),
]

# Calls that torch does not know, crashes on, or lets pass.
REFUSED = [
    # unfold
    ("unfold(IMAGE, 2, stride=2**63 - 1)", "stride must .*63 bits.*got 9223372036854775807"),
    ("unfold(IMAGE, 2, stride=BEYOND)", "64-bit.*got.*9223372036854775808"),
    ("unfold(IMAGE, 2, dilation=FAR)", "kernel must fit.*got span 4611686018427387905"),
    ("unfold(IMAGE, 4, dilation=FAR)", "span must fit.*got kernel_size=4 .*4611686018427387904"),
    ("unfold(torch.ones(4, 4), 2)", r"input must have 3 .* or 4 .*got.*\[4, 4\]"),
    ("unfold(SIGNAL, (2,), dilation=(1, 1))", r"dilation must .*\(1\).*got \(1, 1\)"),
    ("unfold(IMAGE, 2, padding=((0, 1), (-2, 0)))", "padding must be non-negative.*got .*-2"),
    ("unfold(IMAGE, 2, padding=((0, 1), (2, -1)))", "padding must be non-negative.*got .*-1"),
    ("unfold(IMAGE, 2, padding=FAR)", "padded size must fit.*got 6 .*4611686018427387904"),
    ("unfold(IMAGE, 2, padding=2**40)", "positions must fit 63 bits, but got"),
    ("unfold(IMAGE, 2, padding=((1, 2, 3), 1))", r"padding must have one \(low, high\) pair.*got \(\(1, 2, 3\), 1\)"),
    ('unfold(IMAGE, 2, padding="full")', "padding must be 'same', 'valid'.*got 'full'"),
    ("unfold(IMAGE, FAR)", "kernel must fit.*got span 4611686018427387904"),
    ("unfold(SIGNAL, (FAR,), padding=((FAR - 1, 0),))", "must take fewer than 2.63 bytes, but got"),
    # fold
    (
        "fold(COLUMNS[..., :1], (2**40, 2**40), 1, stride=2**40)",
        r"output must take fewer than 2\^63 bytes, but got .*1099511627776",
    ),
    ("fold(COLUMNS, (BEYOND, 5), (3, 2))", "9223372036854775808"),
    ("fold(COLUMNS.to(torch.complex32), (6, 5), (3, 2))", "dtype must be one that can be added, but got ComplexHalf"),
    ('fold(COLUMNS, (6, 5), (3, 2), reduction="max")', "reduction must be 'sum' or 'mean', but got 'max'"),
    ('fold(COLUMNS.int(), (6, 5), (3, 2), reduction="mean")', "'mean' must .*got torch.int32"),
    # the patches of a transposed convolution
    ("unfold_transpose(IMAGE, 2, stride=0)", r"stride must be positive.*got \(0, 0\)"),
    ("unfold_transpose(IMAGE, 2, dilation=0)", r"dilation must be positive.*got \(0, 0\)"),
    ("unfold_transpose(IMAGE, 0)", r"kernel_size must be positive.*got \(0, 0\)"),
    ("unfold_transpose(IMAGE, (-2, 1))", r"kernel_size must be positive.*got \(-2, 1\)"),
    ("unfold_transpose(IMAGE, 2, dilation=(-1, 1))", r"dilation must be positive.*got \(-1, 1\)"),
    ("unfold_transpose(IMAGE, 2, padding=-1)", "padding must be non-negative.*got.*-1"),
    ("unfold_transpose(IMAGE, 2, padding=4)", "(?=.*Output size is too small).*but got"),
    ("unfold_transpose(IMAGE, 2, output_padding=-1)", r"output_padding must be non-negative, but got \(-1, -1\)"),
    ("unfold_transpose(IMAGE, 2, stride=2, output_padding=2)", r"output_padding must be smaller.*got \(2, 2\)"),
    (
        'unfold_transpose(IMAGE, 2, stride=2, padding="same", output_padding=1)',
        r"output_padding must be 0 with padding='same', but got \(1, 1\)",
    ),
    ("unfold_transpose(IMAGE, 2, stride=FAR)", "must fit 64-bit integers, but got"),
    ("unfold_transpose(IMAGE[..., :0], 2)", "empty.*but got"),
    ("unfold_transpose(torch.ones(4, 4), 2)", r"input must have 3 .* or 4 .*got.*\[4, 4\]"),
    # convolution
    ("conv2d(IMAGE, WEIGHT, stride=2**63 - 1)", "stride must .*63 bits.*got 9223372036854775807"),
    ("conv2d(IMAGE, WEIGHT, dilation=FAR)", "must fit.*but got.*(4611686018427387904|span)"),
    ("conv2d(IMAGE, WEIGHT, padding=FAR)", "padded size must fit.*got"),
    ("conv2d(IMAGE, WEIGHT, padding=BEYOND)", "64-bit.*got.*9223372036854775808"),
    ("conv2d(IMAGE, WEIGHT, padding=2**40)", "positions must fit 63 bits, but got"),
    ("conv2d(IMAGE, WEIGHT, padding=((1, 1),))", r"pair per spatial axis \(2\).*got \(\(1, 1\),\)"),
    ('conv2d(IMAGE, WEIGHT, stride=0, padding="same")', r"stride must be positive.*got \(0, 0\)"),
    # transposed convolution
    ("conv_transpose2d(OUTPUT[..., :0], WEIGHT)", "empty.*but got"),
    ("conv_transpose2d(OUTPUT, WEIGHT, stride=FAR)", "must fit 64-bit integers, but got"),
    ("conv_transpose2d(OUTPUT, WEIGHT, stride=2**40)", r"output must take fewer than 2\^63 bytes, but got size"),
    ("conv_transpose2d(OUTPUT, WEIGHT, padding=FAR)", "(?=.*Output size is too small).*but got"),
    ('conv_transpose2d(OUTPUT, WEIGHT, padding="full")', "padding must be 'same', 'valid'.*got 'full'"),
]

# Arguments of a wrong type, which torch refuses with a TypeError as well.
WRONG_TYPES = [
    # unfold
    ("unfold(IMAGE, 2, stride=1.5)", "stride must be an int.*got 1.5"),
    ('unfold(IMAGE, 2, stride="2")', "stride must be an int.*got '2'"),
    ("unfold(IMAGE, (2.0, 2))", "kernel_size must be an int.*got 2.0"),
    ("unfold(IMAGE, None)", "kernel_size must be an int.*got None"),
    ("unfold(IMAGE, True)", "kernel_size must be an int.*got True"),
    ("unfold([[1.0]], 2)", "input must be a Tensor, but got list"),
    # fold
    ("fold(COLUMNS, (6.5, 5), (3, 2))", "output_size must be an int.*got 6.5"),
    # convolution
    ("conv2d(IMAGE, WEIGHT, groups=1.5)", "groups must be an int.*got 1.5"),
    ("conv2d(IMAGE, WEIGHT, groups=True)", "groups must be an int.*got True"),
    ("conv2d(IMAGE, WEIGHT, stride=(True, 1))", "stride must be an int.*got True"),
    ("conv2d(IMAGE, WEIGHT, stride={1, 2})", r"stride must be an int.*got \{1, 2\}"),
    ("conv2d(IMAGE, WEIGHT, stride=torch.tensor(1.5))", r"stride must be an int.*got tensor\(1.5000"),
    ("conv2d(IMAGE, WEIGHT, padding=True)", "padding must be an int.*got True"),
    ("conv2d(IMAGE, WEIGHT, padding={1, 2})", r"padding must be an int.*got \{1, 2\}"),
    ("conv2d(None, WEIGHT)", "input must be a Tensor, but got NoneType"),
    ("conv2d(IMAGE, None)", "weight must be a Tensor, but got NoneType"),
    ("conv2d(IMAGE, WEIGHT, 1.0)", "bias must be a Tensor, but got float"),
]

# The ops themselves, which stand in for no function of torch. Their refusals are RuntimeErrors, as those of any op.
REFUSED_BY_OPS = [
    ("im2col(IMAGE, [], [], [], [], [])", "kernel_size must have 1, 2 or 3 axes, but got 0"),
    ("im2col(IMAGE, [1] * 4, [1] * 4, [0] * 4, [0] * 4, [1] * 4)", "1, 2 or 3 axes, but got 4"),
    (
        "im2col(IMAGE, [2, 2], [1, 1], [0], [0, 0], [1, 1])",
        r"padding_low must have one number per spatial axis \(2\), but got \(0,\)",
    ),
    ("im2col(SIGNAL, [2, 2], *WINDOW)", r"input must have 4 dimensions.*got shape \(2, 4, 9\)"),
    ("im2col(IMAGE, [2, 2], [1, 1], [-1, 0], [0, 0], [1, 1])", r"padding must be non-negative.*got.*\(-1, 0\)"),
    ("im2col(SIGNAL[:0], [FAR], [1], [FAR - 9], [0], [1])", "must .*63.*but got"),
    (
        "im2col(torch.empty(2, 4, 6, 5, dtype=torch.float4_e2m1fn_x2), [3, 2], *WINDOW)",
        "dtype must be a plain number type, but got Float4_e2m1fn_x2",
    ),
    (
        "col2im(COLUMNS, [6], [3, 2], *WINDOW)",
        r"output_size must have one number per spatial axis \(2\), but got \(6,\)",
    ),
    ("col2im(COLUMNS[:, 1:], [6, 5], [3, 2], *WINDOW)", "divisible.*got 23 rows"),
    ("col2im(COLUMNS[0], [6, 5], [3, 2], *WINDOW)", r"columns must have 3 dimensions.*got shape \(24, 16\)"),
    ("conv(IMAGE[:, 1:], WEIGHT, None, *WINDOW, 1)", "channels.*but got 3 channels"),
    ("conv(IMAGE, WEIGHT[0], None, *WINDOW, 1)", r"weight must have 4 dimensions.*got shape \(4, 3, 2\)"),
    ("conv(IMAGE, WEIGHT.double(), None, *WINDOW, 1)", "should be the same, but got"),
    ("conv(IMAGE, WEIGHT, torch.ones(7), *WINDOW, 1)", r"bias must be .*got shape \(7,\)"),
    ("conv(IMAGE, WEIGHT, None, *WINDOW, 0)", "groups must be positive.*got 0"),
    ("conv(IMAGE, WEIGHT[:0], None, *WINDOW, FAR)", r"channels must fit 63 bits, but got 4 \* 4611686018427387904"),
    ("conv(SIGNAL, WEIGHT, None, *WINDOW, 1)", r"input must have 4 dimensions \(batch.*got shape \(2, 4, 9\)"),
    ("conv(IMAGE.bool(), WEIGHT.bool(), None, *WINDOW, 1)", "dtype must be a floating.*but got Bool"),
    ("conv_input_grad(OUTPUT[:, :0], WEIGHT[:0], None, [6, 5], *WINDOW, FAR)", r"channels must fit 63 bits.*4 \* 46"),
    ("conv_input_grad(OUTPUT, WEIGHT[0], None, [6, 5], *WINDOW, 1)", r"weight must have 4 dimensions \(in_channels"),
    (
        "conv_input_grad(OUTPUT, WEIGHT, None, [7, 5], *WINDOW, 1)",
        r"grad_output must have the size.*\(5, 4\), but got \(2, 6, 4, 4\)",
    ),
    (
        "conv_input_grad(OUTPUT, WEIGHT, None, [6], *WINDOW, 1)",
        r"input_size must have one number per spatial axis \(2\), but got \(6,\)",
    ),
    ("conv_input_grad(OUTPUT, WEIGHT, None, [6, -5], *WINDOW, 1)", "must be non-negative, but got -5"),
    ("conv_input_grad(OUTPUT[:, 1:], WEIGHT, None, [6, 5], *WINDOW, 1)", "channels.*but got 5 channels"),
    (
        "conv_input_grad(OUTPUT, WEIGHT, torch.ones(6), [6, 5], *WINDOW, 1)",
        r"bias must be .* with 4 elements.*got shape \(6,\)",
    ),
    (
        "conv_weight_grad(OUTPUT[1:], IMAGE, [3, 2], *WINDOW, 1)",
        "grad_output must have the input's batch size 2, but got 1",
    ),
    (
        "conv_weight_grad(OUTPUT, IMAGE, [2, 2], *WINDOW, 1)",
        r"grad_output must have the size.*\(5, 4\), but got \(2, 6, 4, 4\)",
    ),
    ("conv_weight_grad(OUTPUT, IMAGE, [3, 2], *WINDOW, 3)", r"divisible by groups \(3\), but got 4"),
    ("conv_weight_grad(OUTPUT, SIGNAL, [3, 2], *WINDOW, 1)", "input must have 4 dimensions of a 2-D convolution"),
    ("conv_weight_grad(OUTPUT.double(), IMAGE, [3, 2], *WINDOW, 1)", "should be the same, but got"),
    ("conv_weight_grad(OUTPUT, IMAGE, [0, 2], *WINDOW, 1)", r"kernel_size must be positive.*got \(0, 2\)"),
]

# Settings take no tensors, so there is no fake kernel.
REFUSED_SETTINGS = [("set_workspace_limit(0, 1)", "workspace limit must be positive, but got 0 and 1")]

# Rules that other tests break: two devices (test_compile.py), and what packed ops demand (test_fast_path.py).
BROKEN_ELSEWHERE = ("must be on the same device", "a packed convolution must", "operands must have 1, 2 or 3")


# Calls of the ops that are not wrong, and the shape of the result.
FITTING = [
    ("im2col(IMAGE, [3, 2], *WINDOW)", "COLUMNS"),
    ("col2im(COLUMNS, [6, 5], [3, 2], *WINDOW)", "IMAGE"),
    ("conv(IMAGE, WEIGHT, None, *WINDOW, 1)", "OUTPUT"),
    ("conv_input_grad(OUTPUT, WEIGHT, None, [6, 5], *WINDOW, 1)", "IMAGE"),
    ("conv_weight_grad(OUTPUT, IMAGE, [3, 2], *WINDOW, 1)", "WEIGHT"),
]

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64),
    *(torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex32, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2),
]


def run(call: str, functions: object, operands: dict[str, Any] | None = None) -> object:
    names = {name: getattr(functions, name) for name in dir(functions) if not name.startswith("_")}
    return eval(call, {**names, **OPERANDS, **(operands or {})})


def wrong_calls(*tables: list[tuple[str, str]]) -> pytest.MarkDecorator:
    rows = [row for table in tables for row in table]
    return pytest.mark.parametrize(("call", "message"), rows, ids=[call for call, _ in rows])


@wrong_calls(REFUSED_BY_TORCH_TOO, REFUSED)
def test_a_wrong_call_is_refused(call: str, message: str) -> None:
    with pytest.raises(uc.GeometryError, match=message):
        run(call, uc)


ON_META = {name: value.to("meta") for name, value in OPERANDS.items() if isinstance(value, torch.Tensor)}


def words(call: str, functions: object) -> tuple[str, str]:
    """What is said of a wrong call, by the compiled code and by the fake kernels."""
    with pytest.raises(RuntimeError) as real:
        run(call, functions)
    with torch.device("meta"), pytest.raises(RuntimeError) as fake:
        run(call, functions, ON_META)
    return str(real.value).removeprefix("unfoldconv: "), str(fake.value)


@wrong_calls(REFUSED_BY_TORCH_TOO, REFUSED)
def test_a_wrong_call_is_refused_in_the_same_words_before_there_is_data(call: str, message: str) -> None:
    real, fake = words(call, uc)
    assert fake == real


@wrong_calls(REFUSED_BY_OPS)
def test_a_wrong_call_of_an_op_is_refused_in_the_same_words_before_there_is_data(call: str, message: str) -> None:
    real, fake = words(call, OPS)
    assert fake == real


def _rules() -> list[str]:
    """The messages of csrc/binding/checks.h, as patterns: what lies between their literals is computed."""
    source = (Path(uc.__file__).parents[1] / "csrc" / "binding" / "checks.h").read_text()
    source = re.sub(r'"\s*"', "", source)  # neighbouring literals are one
    checks = [re.findall(r'"([^"]+)"', check) for check in re.findall(r"\bcheck\(.*?\);\n", source, re.DOTALL)]
    return [".*".join(map(re.escape, literals)) for literals in checks if literals]


def test_every_rule_is_broken_by_a_call() -> None:
    """So that the tests above compare the words of all of them."""
    said = []
    for table, functions in (((*REFUSED_BY_TORCH_TOO, *REFUSED), uc), ((*REFUSED_BY_OPS, *REFUSED_SETTINGS), OPS)):
        for call, _ in table:
            with pytest.raises(RuntimeError) as error:
                run(call, functions)
            said.append(str(error.value))
    rules = _rules()
    assert len(rules) > 25
    unbroken = [rule for rule in rules if not any(re.search(rule, message) for message in said)]
    assert [rule for rule in unbroken if not any(re.escape(part) in rule for part in BROKEN_ELSEWHERE)] == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_refused_in_the_same_words_before_there_is_data(dtype: torch.dtype) -> None:
    """Every op takes or refuses a dtype alike, and names it alike."""
    operands = {name: value.to(dtype) for name, value in OPERANDS.items() if isinstance(value, torch.Tensor)}
    on_meta = {name: value.to("meta") for name, value in operands.items()}
    for call, _ in FITTING:
        said = []
        for given in (operands, on_meta):
            try:
                run(call, OPS, given)
            except RuntimeError as error:
                said.append(str(error).removeprefix("unfoldconv: "))
        assert len(said) in (0, 2), said
        assert len(set(said)) <= 1, said


@wrong_calls(WRONG_TYPES)
def test_a_wrong_type_is_refused(call: str, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        run(call, uc)


@wrong_calls(REFUSED_BY_OPS, REFUSED_SETTINGS)
def test_a_wrong_call_of_an_op_is_refused(call: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        run(call, OPS)


@wrong_calls(REFUSED_BY_TORCH_TOO, WRONG_TYPES)
def test_what_catches_torchs_error_catches_ours(call: str, message: str) -> None:
    with pytest.raises((RuntimeError, ValueError, TypeError)) as theirs:
        run(call, F)
    kind = next(kind for kind in (TypeError, ValueError, RuntimeError) if isinstance(theirs.value, kind))
    with pytest.raises(kind):
        run(call, uc)


@pytest.mark.parametrize("layout", ["sparse", "quantised"])
def test_tensors_without_plain_strides_are_refused(layout: str) -> None:
    image = OPERANDS["IMAGE"]
    spoiled = image.to_sparse() if layout == "sparse" else torch.quantize_per_tensor(image, 1.0, 0, torch.quint8)
    for call in (lambda: uc.unfold(spoiled, 2), lambda: uc.conv2d(spoiled, OPERANDS["WEIGHT"])):
        with pytest.raises(RuntimeError):
            call()


def test_operands_that_are_not_spoiled_fit() -> None:
    """So that every call above is refused for what it spoils."""
    for call, result in (
        ("conv2d(IMAGE, WEIGHT, torch.ones(6))", "OUTPUT"),
        ("conv_transpose2d(OUTPUT, WEIGHT, torch.ones(4))", "IMAGE"),
        ("unfold(IMAGE, (3, 2))", "COLUMNS"),
        ("fold(COLUMNS, (6, 5), (3, 2))", "IMAGE"),
    ):
        assert run(call, uc).shape == OPERANDS[result].shape
    for call, result in FITTING:
        assert run(call, OPS).shape == OPERANDS[result].shape


def test_the_error_is_both_of_torchs() -> None:
    assert issubclass(uc.GeometryError, RuntimeError)
    assert issubclass(uc.GeometryError, ValueError)


@pytest.mark.parametrize(
    ("limit", "error"),
    [(0, uc.GeometryError), (-1, uc.GeometryError), (2**63, uc.GeometryError), ("1", TypeError), (1.5, TypeError)],
)
def test_a_wrong_workspace_limit_is_refused(limit: Any, error: type[Exception]) -> None:
    before = torch.ops.unfoldconv.get_workspace_limit()
    with pytest.raises(error):
        uc.workspace_limit(limit)
    assert torch.ops.unfoldconv.get_workspace_limit() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
@pytest.mark.parametrize("spoiled", [0, 1, 2])
def test_operands_on_different_devices_are_refused(spoiled: int) -> None:
    operands = [OPERANDS["IMAGE"].cuda(), OPERANDS["WEIGHT"].cuda(), torch.ones(6).cuda()]
    operands[spoiled] = operands[spoiled].cpu()
    with pytest.raises(uc.GeometryError, match=r"same device.*but got"):
        uc.conv2d(*operands)
