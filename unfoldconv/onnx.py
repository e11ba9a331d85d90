"""The ops as ONNX, for `torch.onnx.export`.

    program = torch.onnx.export(model, args, dynamo=True, custom_translation_table=uc.onnx.translations())

The exported model holds nodes of standard ONNX alone: Conv, ConvTranspose and Col2Im, and for `unfold` one Gather per
axis. It needs neither torch nor this library. Of the calls of a model, forward passes are exported, on floating-point
tensors (`unfold` on any); batch and spatial sizes may be dynamic. Exporting needs the package onnxscript.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ._geometry import GeometryError, span_of
from ._ops import namespace

__all__ = ["translations"]

Number = Any
"""An int where the exporter knows it, else an ONNX value."""


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The table that `torch.onnx.export` takes as `custom_translation_table`.

    Returns:
        For each op the function that writes it as ONNX; add your own ops to it, if you have any.

    Raises:
        ImportError: onnxscript is missing, which `torch.onnx.export` needs too.

    Example:
        >>> import torch, unfoldconv as uc
        >>> program = torch.onnx.export(
        ...     uc.Conv2d(3, 4, 3, padding="same").eval(),
        ...     (torch.ones(1, 3, 8, 8),),
        ...     dynamo=True,
        ...     verbose=False,
        ...     custom_translation_table=uc.onnx.translations(),
        ... )
        >>> [node.op_type for node in program.model.graph]
        ['Conv']
    """
    opset = _opset()
    writers: dict[Callable[..., Any], Callable[..., Any]] = {
        namespace.conv.default: _conv,
        namespace.conv_input_grad.default: _conv_input_grad,
        namespace.im2col.default: _im2col,
        namespace.col2im.default: _col2im,
    }
    return {op: _writer(function, opset) for op, function in writers.items()}


def _writer(function: Callable[..., Any], opset: Any) -> Callable[..., Any]:
    """`function` with the opset as its first argument, but with a name, which the exporter asks for."""

    def write(*arguments: Any) -> Any:
        return function(opset, *arguments)

    write.__name__ = function.__name__
    return write


def _opset() -> Any:
    try:
        from onnxscript import opset18
    except ImportError as error:
        raise ImportError("exporting to ONNX needs the package onnxscript: pip install onnxscript") from error
    return opset18  # the version that the exporter builds its graphs in, and the first with Col2Im


# --- numbers ----------------------------------------------------------------------------------------------------------


def _known(numbers: Sequence[Number]) -> bool:
    return all(isinstance(number, int) for number in numbers)


def _vector(op: Any, numbers: Sequence[Number]) -> Any:
    """A 1-dimensional value of int64."""
    if _known(numbers):
        return op.Constant(value_ints=[*numbers])
    parts = [
        op.Constant(value_ints=[n]) if isinstance(n, int) else op.Reshape(n, op.Constant(value_ints=[1]))
        for n in numbers
    ]
    return op.Concat(*parts, axis=0)


def _sum(op: Any, *numbers: Number) -> Number:
    return functools.reduce(lambda a, b: a + b if _known((a, b)) else op.Add(_scalar(op, a), _scalar(op, b)), numbers)


def _product(op: Any, *numbers: Number) -> Number:
    return functools.reduce(lambda a, b: a * b if _known((a, b)) else op.Mul(_scalar(op, a), _scalar(op, b)), numbers)


def _scalar(op: Any, number: Number) -> Any:
    return op.Constant(value_int=number) if isinstance(number, int) else number


def _quotient(op: Any, number: Number, divisor: int) -> Number:
    return number // divisor if isinstance(number, int) else op.Div(number, op.Constant(value_int=divisor))


def _reshape(op: Any, tensor: Any, sizes: Sequence[Number]) -> Any:
    return op.Reshape(tensor, _vector(op, sizes), allowzero=1)


def _size(op: Any, tensor: Any, dim: int) -> Number:
    size = tensor.shape[dim]
    return size if isinstance(size, int) else op.Squeeze(op.Shape(tensor, start=dim, end=dim + 1))


def _kernel_of(weight: Any) -> list[int]:
    sizes = [*weight.shape[2:]]
    if not _known(sizes):
        raise GeometryError(f"kernel_size must be fixed in an ONNX model, but got a weight of shape {weight.shape}")
    return sizes


def _check_floating_point(tensor: Any) -> None:
    if not tensor.dtype.is_floating_point():
        raise GeometryError(f"convolution must be of a floating dtype in ONNX, but got {tensor.dtype.name}")


def _fixed(names: str, *groups: Sequence[Number]) -> None:
    if not all(map(_known, groups)):
        raise GeometryError(f"{names} must be fixed in an ONNX model, but got {groups}")


# --- the ops ----------------------------------------------------------------------------------------------------------


def _padded(op: Any, input: Any, low: Sequence[Number], high: Sequence[Number]) -> Any:
    """The images with zeros around them."""
    if _known([*low, *high]) and not any((*low, *high)):
        return input
    pads = _vector(op, [0, 0, *low, 0, 0, *high])
    return op.Pad(input, pads, op.CastLike(op.Constant(value_float=0.0), input))


def _conv(
    op: Any, input: Any, weight: Any, bias: Any, stride: Any, low: Any, high: Any, dilation: Any, groups: Any
) -> Any:
    _check_floating_point(input)
    _fixed("stride, dilation and groups", stride, dilation, [groups])
    if not _known([*low, *high]):  # 'same' with a stride pads by what the size leaves over
        input = _padded(op, input, low, high)
        low = high = [0] * len(stride)
    return op.Conv(
        input,
        weight,
        bias,
        kernel_shape=_kernel_of(weight),
        strides=[*stride],
        pads=[*low, *high],
        dilations=[*dilation],
        group=groups,
    )


def _conv_input_grad(
    op: Any,
    input: Any,
    weight: Any,
    bias: Any,
    size: Any,
    stride: Any,
    low: Any,
    high: Any,
    dilation: Any,
    groups: Any,
) -> Any:
    _check_floating_point(input)
    _fixed("stride, dilation and groups", stride, dilation, [groups])
    kernel, rank = _kernel_of(weight), len(stride)
    attributes = {"kernel_shape": kernel, "strides": [*stride], "dilations": [*dilation], "group": groups}
    # A negative padding stands for output that no window reaches. ONNX has no word for it, so zeros are put there.
    beyond = [max(-cut, 0) if isinstance(cut, int) else 0 for cut in high]
    high = [max(cut, 0) if isinstance(cut, int) else cut for cut in high]
    own_bias = None if any(beyond) else bias
    extra = _output_padding(input, kernel, size, beyond, stride, low, high, dilation)
    if extra is not None:
        output = op.ConvTranspose(input, weight, own_bias, pads=[*low, *high], output_padding=extra, **attributes)
    else:  # where the sizes of a run decide it, the result is cut from the largest
        largest = op.ConvTranspose(input, weight, own_bias, output_padding=[step - 1 for step in stride], **attributes)
        ends = [_sum(op, low[axis], size[axis], -beyond[axis]) for axis in range(rank)]
        output = op.Slice(largest, _vector(op, low), _vector(op, ends), op.Constant(value_ints=[*range(2, 2 + rank)]))
    if any(beyond):
        output = _padded(op, output, [0] * rank, beyond)
        if bias is not None:
            output = op.Add(output, op.Reshape(bias, op.Constant(value_ints=[-1] + [1] * rank)))
    return output


def _output_padding(
    input: Any, kernel: Any, size: Any, beyond: Any, stride: Any, low: Any, high: Any, dilation: Any
) -> list[int] | None:
    """How much longer the result is than its windows reach; None where that depends on the sizes of a run."""
    if not _known([*low, *high]):
        return None
    image = _traced(input)
    result = []
    for axis, step in enumerate(stride):
        span = span_of(kernel[axis], dilation[axis])
        positions = image.shape[2 + axis] if image is not None else input.shape[2 + axis]
        length = size[axis] if isinstance(size[axis], int) else _traced(size[axis])
        if length is None or not isinstance(positions, (int, torch.SymInt)):
            return None
        extra = length - beyond[axis] - ((positions - 1) * step - low[axis] - high[axis] + span)
        known = [number for number in range(step) if statically_known_true(extra == number)]
        if not known:
            return None
        result += known
    return result


def _traced(value: Any) -> Any:
    """What the traced program computes here, a fake tensor or a SymInt; None where the exporter does not keep it."""
    source = value if value.producer() is None else value.producer()
    node = source.meta.get("node")
    return None if node is None else node.meta.get("val")


def _im2col(op: Any, input: Any, kernel: Any, stride: Any, low: Any, high: Any, dilation: Any) -> Any:
    """Columns by one Gather per axis: (N, C, *I) -> (N, C, K_1, P_1, ..., K_R, P_R) -> (N, C * prod(K), prod(P))."""
    _fixed("kernel_size, stride and dilation", kernel, stride, dilation)
    rank = len(kernel)
    batch, channels = _size(op, input, 0), _size(op, input, 1)
    lengths = [_sum(op, _size(op, input, 2 + axis), low[axis], high[axis]) for axis in range(rank)]
    columns = _padded(op, input, low, high)
    positions: list[Number] = []
    for axis, length in enumerate(lengths):
        end = _sum(op, length, 1 - span_of(kernel[axis], dilation[axis]))
        taps = op.Constant(value=_column([tap * dilation[axis] for tap in range(kernel[axis])]))
        starts = op.Range(*(_scalar(op, number) for number in (0, end, stride[axis])))
        columns = op.Gather(columns, op.Add(taps, starts), axis=2 + 2 * axis)
        positions.append(len(range(0, end, stride[axis])) if isinstance(end, int) else op.Size(starts))
    columns = op.Transpose(columns, perm=[0, 1, *range(2, 2 + 2 * rank, 2), *range(3, 3 + 2 * rank, 2)])
    return _reshape(op, columns, [batch, _product(op, channels, *kernel), _product(op, *positions)])


def _column(numbers: list[int]) -> Any:
    import onnx_ir  # comes with onnxscript

    return onnx_ir.tensor([[number] for number in numbers], dtype=onnx_ir.DataType.INT64)


def _col2im(op: Any, columns: Any, size: Any, kernel: Any, stride: Any, low: Any, high: Any, dilation: Any) -> Any:
    _fixed("kernel_size, stride, padding and dilation", kernel, stride, low, high, dilation)
    if columns.dtype.name == "BOOL":
        raise GeometryError("fold must be of numbers in ONNX, whose sums know no 'or', but got BOOL")
    axes = list(zip(size, kernel, stride, low, high, dilation, strict=True))
    if len(axes) == 2 or all(apart == 1 for apart in dilation):
        return _col2im_of(op, columns, axes)
    # onnxruntime ignores dilations unless there are two axes (seen in 1.32), so it gets two.
    batch, rows = _size(op, columns, 0), _size(op, columns, 1)
    if len(axes) == 1:
        return op.Squeeze(_col2im_of(op, columns, [(1, 1, 1, 0, 0, 1), *axes]), op.Constant(value_ints=[2]))
    # Three axes one after another: first the last two, in which the positions along the first are as many images; then
    # the first, in which a row of the finished axes is as many positions of a single tap.
    first, *last = axes
    last_taps, last_size = kernel[1] * kernel[2], _product(op, size[1], size[2])
    channels = _quotient(op, rows, last_taps)
    positions = [_positions(op, *axis) for axis in axes]
    last_positions = _product(op, *positions[1:])
    columns = _reshape(op, columns, [batch, channels, last_taps, positions[0], last_positions])
    columns = op.Transpose(columns, perm=[0, 3, 1, 2, 4])
    columns = _reshape(op, columns, [_product(op, batch, positions[0]), rows, last_positions])
    planes = _reshape(op, _col2im_of(op, columns, last), [batch, positions[0], channels, last_size])
    planes = op.Transpose(planes, perm=[0, 2, 1, 3])
    columns = _reshape(op, planes, [batch, channels, _product(op, positions[0], last_size)])
    image = _col2im_of(op, columns, [first, (last_size, 1, 1, 0, 0, 1)])
    return _reshape(op, image, [batch, _quotient(op, channels, kernel[0]), *size])


def _col2im_of(op: Any, columns: Any, axes: Sequence[tuple[Number, ...]]) -> Any:
    size, kernel, stride, low, high, dilation = zip(*axes, strict=True)
    return op.Col2Im(
        columns,
        _vector(op, size),
        _vector(op, kernel),
        strides=[*stride],
        pads=[*low, *high],
        dilations=[*dilation],
    )


def _positions(op: Any, size: Number, kernel: int, stride: int, low: int, high: int, dilation: int) -> Number:
    return _sum(op, _quotient(op, _sum(op, size, low + high - span_of(kernel, dilation)), stride), 1)
