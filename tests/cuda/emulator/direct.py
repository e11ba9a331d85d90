"""The direct convolution kernels on the emulator as functions of tensors, and the table of situations for them."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from cases import CASES, Case, make_case
from compare import wide
from unfoldconv import reference

from .build import load
from .kernels import CROPPED_CASES, dtype_code, geometry_of, guarded, layout_of, untouched

Plan = dict[str, Any]


def _grouped(name: str, rank: int, groups: int, inputs: int = 1, outputs: int = 1, **changes: Any) -> Case:
    return make_case(
        name,
        rank,
        groups=groups,
        in_channels=groups * inputs,
        out_channels=groups * outputs,
        **{"bias": True} | changes,
    )


def _square(taps: int, low: int | None = None) -> dict[str, Any]:
    low = taps // 2 if low is None else low
    return {"kernel_size": (taps,) * 3, "padding": ((low, taps // 2),) * 3}


# Beside those of cases.py: every form of the inner loops and of tiles.
DIRECT_CASES = [
    *(dataclasses.replace(case, bias=True) for case in CASES),
    *CROPPED_CASES,
    # Unrolled taps along y, forward and backward; rows of positions that are not whole strips, and two strips.
    _grouped("three", 2, 5, **_square(3), input_size=(11, 9)),
    _grouped("odd_tiles", 2, 3, **_square(3), input_size=(9, 10)),
    _grouped("three_cropped", 2, 3, kernel_size=(3, 3), padding=((1, -3), (1, -2)), input_size=(11, 14)),
    _grouped("five", 2, 3, **_square(5), input_size=(7, 12)),
    _grouped("seven", 2, 3, **_square(7), input_size=(9, 7)),
    _grouped("seven_and_dilation", 2, 2, **_square(7), dilation=(2, 1), input_size=(16, 5)),
    # Pieces of 8, 4, 2 and 1.
    _grouped("fifteen", 2, 2, **_square(15), input_size=(11, 6), batch=1),
    _grouped("thirty_one", 1, 3, **_square(31), input_size=(40,)),
    _grouped("thirty_one_by_three", 2, 1, batch=1, kernel_size=(31, 3), padding=((15, 15), (1, 1)), input_size=(19, 4)),
    # Strides: 2 has a loop of its own.
    _grouped("stride_2", 2, 5, **_square(3), stride=(2, 2), input_size=(17, 9)),
    _grouped("stride_2_of_seven", 2, 2, **_square(7), stride=(2, 1), input_size=(18, 7)),
    _grouped("stride_3", 2, 3, **_square(5), stride=(3, 3), input_size=(20, 10)),
    _grouped(
        "stride_4_dilation_2", 1, 3, kernel_size=(5,), stride=(4,), dilation=(2,), padding=((3, 5),), input_size=(31,)
    ),
    _grouped("stride_2_dilation_3", 2, 2, **_square(3), stride=(2, 2), dilation=(3, 3), input_size=(15, 13)),
    _grouped("stride_7_of_two", 1, 2, kernel_size=(2,), stride=(7,), padding=((1, 0),), input_size=(33,)),
    # Lines: short and long, of many planes.
    _grouped("causal", 1, 37, kernel_size=(4,), padding=((3, 0),), input_size=(29,)),
    _grouped("long_line", 1, 2, kernel_size=(3,), padding=((1, 1),), input_size=(700,)),
    _grouped("one_row", 2, 9, kernel_size=(1, 5), padding=((0, 0), (2, 2)), input_size=(1, 50)),
    _grouped("wide", 2, 1, **_square(3), batch=1, input_size=(3, 150)),
    # Channel counts about a multiple of what a block has, and several blocks.
    _grouped("channels_33", 2, 33, **_square(3), input_size=(7, 7), batch=1),
    _grouped("channels_64", 2, 64, **_square(3), input_size=(5, 4), batch=1),
    # Several outputs for each input, and more than a block has at a time; few channels per group.
    _grouped("multiplier_3", 2, 4, 1, 3, **_square(3)),
    _grouped("multiplier_11", 1, 2, 1, 11, kernel_size=(3,), padding=((1, 1),), input_size=(9,)),
    _grouped("pairs", 2, 6, 2, 2, **_square(3)),
    _grouped("fours", 2, 3, 4, 4, **_square(3), stride=(2, 1)),
    _grouped("eights", 1, 2, 8, 8, kernel_size=(3,), padding=((1, 1),), dilation=(2,), input_size=(12,)),
    _grouped("five_to_three", 2, 3, 5, 3, **_square(3), input_size=(4, 5)),
    # Volumes.
    _grouped("volume", 3, 4, **_square(3), input_size=(4, 9, 5)),
    _grouped("volume_strided", 3, 3, **_square(3), stride=(2, 1, 2), dilation=(1, 2, 1), input_size=(5, 8, 6)),
]


def takes(case: Case) -> bool:
    """Whether the kernels are made for it: what a block may have to do in several rounds is beside the point."""
    return case.in_channels // case.groups <= 8 and case.out_channels // case.groups <= 11


def weight_layout(weight: Tensor, groups: int, *, swap: bool) -> dict[str, list[int]]:
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    out, into, *axes = weight.stride()
    count, stride = [groups, outputs, inputs], [outputs * out, out, into]
    if swap:
        count, stride = [groups, inputs, outputs], [outputs * out, into, out]
    return {"count": count, "stride": stride, "axis_stride": axes}


def correlate(
    case: Case,
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    result: Tensor,
    *,
    backward: bool,
    guard_end: bool = True,
    emulated: Any = None,
) -> tuple[Tensor, Plan]:
    """conv or, backward, conv_input_grad into a tensor with the strides of `result`."""
    emulated = emulated or load()
    source, weight = guarded(source, emulated, guard_end), guarded(weight, emulated, guard_end)
    bias = None if bias is None else guarded(bias, emulated, guard_end)
    result = guarded(result, emulated, guard_end)
    plan = emulated.correlate_direct(
        dtype_code(emulated, source.dtype),
        backward,
        geometry_of(case),
        *(source.data_ptr(), layout_of(source, case.groups)),
        *(weight.data_ptr(), weight_layout(weight, case.groups, swap=backward)),
        *(result.data_ptr(), layout_of(result, case.groups)),
        0 if bias is None else bias.data_ptr(),
    )
    return result.clone(), plan


def weight_sums(
    case: Case,
    gradient: Tensor,
    image: Tensor,
    *,
    workspace_limit: int = 32 << 20,
    guard_end: bool = True,
    emulated: Any = None,
) -> tuple[Tensor, Plan]:
    """conv_weight_grad, with exactly the workspace that the plan asks for."""
    emulated = emulated or load()
    gradient, image = guarded(gradient, emulated, guard_end), guarded(image, emulated, guard_end)
    result = guarded(untouched(case.weight_shape, image.dtype), emulated, guard_end)

    def call(workspace: int) -> Plan:
        plan: Plan = emulated.weight_sums_direct(
            dtype_code(emulated, image.dtype),
            geometry_of(case),
            *(gradient.data_ptr(), layout_of(gradient, case.groups)),
            *(image.data_ptr(), layout_of(image, case.groups)),
            *(result.data_ptr(), workspace_limit, workspace),
        )
        return plan

    size = max(call(0)["workspace_bytes"], 8)
    workspace = guarded(untouched((size,), torch.uint8), emulated, guard_end)
    plan = call(workspace.data_ptr())
    return result.clone(), plan


def operands(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random x, w, y and the biases of x and y."""
    generator = torch.Generator().manual_seed(sum(map(ord, case.name)))
    shapes = {
        "x": case.input_shape,
        "w": case.weight_shape,
        "y": case.output_shape,
        "x_bias": (case.in_channels,),
        "y_bias": (case.out_channels,),
    }
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in shapes.items()
    }


def expected(case: Case, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Forward and both gradients in double precision, by autograd of the reference."""
    x, w, y, x_bias, y_bias = (wide(tensor) for tensor in tensors.values())
    x.requires_grad_()
    w.requires_grad_()
    output = reference.conv_naive(x, w, None, groups=case.groups, **case.window)
    grad_x, grad_w = torch.autograd.grad(output, (x, w), y)
    ones = [1] * case.rank
    return {
        "conv": output.detach() + y_bias.view(-1, *ones),
        "input_grad": grad_x + x_bias.view(-1, *ones),
        "weight_grad": grad_w,
    }


def magnitude(case: Case, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return expected(case, {name: tensor.abs() for name, tensor in tensors.items()})


def blank(tensor: Tensor, to_format: Any) -> Tensor:
    """A result that nothing has been written to, in some memory format."""
    return to_format(untouched(tuple(tensor.shape), tensor.dtype))
