"""All three passes of a convolution in groups, by the ops and by the reference: what the tests of the engines for one
and for a few channels per group share."""

import functools

import torch
from torch import Tensor

import unfoldconv as uc
from cases import MEMORY_FORMATS, Case, random_tensor
from compare import assert_within_rounding
from computations import expected_by_torch
from unfoldconv import reference

ops = torch.ops.unfoldconv
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FORMATS = ("contiguous", "channels_last")

Operands = tuple[Tensor, Tensor, Tensor, Tensor]
"""Input, weight, gradient of the output, bias."""


def grouped_case(
    name: str,
    size: tuple[int, ...],
    kernel: int | tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    padding: tuple[int, int] | tuple[tuple[int, int], ...] = (0, 0),
    dilation: int | tuple[int, ...] = 1,
    *,
    batch: int = 2,
    groups: int,
    per_group: int = 1,
    out_per_group: int | None = None,
) -> Case:
    """An int, and one pair of padding, hold for every axis. There are as many outputs as inputs where not told."""
    rank = len(size)

    def each(value: int | tuple[int, ...]) -> tuple[int, ...]:
        return (value,) * rank if isinstance(value, int) else value

    return Case(
        name=f"{name}-{rank}d",
        batch=batch,
        in_channels=groups * per_group,
        out_channels=groups * (out_per_group or per_group),
        input_size=size,
        kernel_size=each(kernel),
        stride=each(stride),
        padding=padding if isinstance(padding[0], tuple) else (padding,) * rank,  # type: ignore[arg-type]
        dilation=each(dilation),
        groups=groups,
        bias=True,
    )


def operands(case: Case, dtype: torch.dtype, memory_format: str) -> Operands:
    """The same numbers in every call and memory format."""
    x, w, y, b = (tensor.clone() for tensor in _numbers(case, dtype))
    arranged = MEMORY_FORMATS[memory_format]
    return arranged(x), arranged(w), arranged(y), b


def results(case: Case, x: Tensor, w: Tensor, y: Tensor, b: Tensor) -> dict[str, Tensor]:
    """By the ops; the bias is added to the gradient of the input too, if it is long enough."""
    back = b[: case.in_channels] if b.numel() >= case.in_channels else None
    return {
        "conv": ops.conv(x, w, b, *case.op_window, case.groups),
        "input_grad": ops.conv_input_grad(y, w, back, list(case.input_size), *case.op_window, case.groups),
        "weight_grad": ops.conv_weight_grad(y, x, list(case.kernel_size), *case.op_window, case.groups),
    }


def expected_results(case: Case, x: Tensor, w: Tensor, y: Tensor, b: Tensor) -> dict[str, Tensor]:
    """In double precision, by autograd of the reference."""
    x, w, y, b = (tensor.double() for tensor in (x, w, y, b))
    x.requires_grad_()
    w.requires_grad_()
    output = reference.conv_naive(x, w, None, groups=case.groups, **case.window)
    grad_x, grad_w = torch.autograd.grad(output, (x, w), y)
    shift = b.view(-1, *[1] * case.rank)
    if b.numel() >= case.in_channels:
        grad_x = grad_x + shift[: case.in_channels]
    return {"conv": output.detach() + shift, "input_grad": grad_x, "weight_grad": grad_w}


def check(case: Case, dtype: torch.dtype, memory_format: str) -> None:
    """Forward with bias and both gradients are those of torch in float64."""
    actual = results(case, *operands(case, dtype, memory_format))
    exact, magnitude = _expected(case, dtype)
    for name, result in actual.items():
        assert_within_rounding(result, exact[name], magnitude[name], f"{case.name} {name}")


def check_small_workspace(cases: tuple[Case, ...], limit: int, memory_format: str) -> None:
    """The same with a workspace that holds a small part of the image at a time."""
    with uc.workspace_limit(limit):
        for case in cases:
            check(case, torch.float32, memory_format)


@functools.cache
def _numbers(case: Case, dtype: torch.dtype) -> Operands:
    torch.manual_seed(0)
    shapes = (case.input_shape, case.weight_shape, case.output_shape, (case.out_channels,))
    x, w, y, b = (random_tensor(shape, dtype) for shape in shapes)
    return x, w, y, b


# Once for all instruction sets and memory formats.
@functools.cache
def _expected(case: Case, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    x, w, y, b = _numbers(case, dtype)
    back = b[: case.in_channels] if b.numel() >= case.in_channels else None
    found = {
        "conv": expected_by_torch("conv", case, [x, w, b]),
        "input_grad": expected_by_torch("conv_transpose", case, [y, w, back]),
        "weight_grad": expected_by_torch("conv_weight_grad", case, [y, x, None]),
    }
    return {name: exact for name, (exact, _) in found.items()}, {name: bound for name, (_, bound) in found.items()}
