"""Arguments -> geometry: the numbers per axis that the ops take, the sizes that follow, and the one exception type.

A spatial axis is described by five numbers, and the whole library counts by these two formulas:

    span      = dilation * (kernel - 1) + 1
    positions = (size + padding_low + padding_high - span) // stride + 1
"""

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NamedTuple, TypeAlias, TypeGuard

import torch
from torch.compiler import is_dynamo_compiling

Sizes: TypeAlias = tuple[int, ...]
IntOrTuple: TypeAlias = int | Sequence[int]
Padding: TypeAlias = str | int | Sequence[int] | Sequence[Sequence[int]]

# What the compiled code puts before its own messages, to tell them from torch's.
_REFUSAL = "unfoldconv: "
# How a message about a dtype begins, in the compiled code and in Python.
_DTYPE_RULE = "dtype must be"


class GeometryError(RuntimeError, ValueError):
    """A call that the library refuses: the rule, then the value that broke it.

    It is both a `RuntimeError` and a `ValueError`, so code that catches either of torch's errors catches it.

    Example:
        >>> import torch, unfoldconv as uc
        >>> try:
        ...     uc.unfold(torch.ones(1, 3, 8, 8), kernel_size=2, dilation=0)
        ... except ValueError as error:
        ...     print(type(error).__name__, error)
        GeometryError dilation must be positive (greater than zero), but got (0, 0)
    """


class UnsupportedDtypeError(GeometryError, NotImplementedError):
    """A call on numbers of a kind that it is not made for, on which torch raises `NotImplementedError`.

    Example:
        >>> import torch, unfoldconv as uc
        >>> try:
        ...     uc.conv2d(torch.ones(1, 3, 8, 8).bool(), torch.ones(4, 3, 3, 3).bool())
        ... except NotImplementedError as error:
        ...     print(error)
        dtype must be a floating, complex or integer one of up to 64 bits for a convolution, but got Bool
    """


def refusal(message: str) -> GeometryError:
    """The exception that shows a message of the rule and the value."""
    return (UnsupportedDtypeError if message.startswith(_DTYPE_RULE) else GeometryError)(message)


def translated(error: RuntimeError) -> RuntimeError:
    """The error as callers should see it: a refusal of the compiled code becomes a GeometryError."""
    message = str(error)
    if message.startswith(_REFUSAL):
        return refusal(message.removeprefix(_REFUSAL))
    if "Expected a value of type 'List[int]'" in message or "Expected a value of type 'int'" in message:
        value = message.partition("Value: ")[2].partition("\n")[0]
        return GeometryError(f"sizes, strides, padding and groups must fit 64-bit integers, but got {value}")
    return error


class Window(NamedTuple):
    """The sliding window as the ops take it after the kernel size: one number per spatial axis each."""

    stride: Sizes
    padding_low: Sizes
    padding_high: Sizes
    dilation: Sizes


def as_int(name: str, value: object) -> int:
    """One whole number, no bool; a SymInt passes as it is."""
    if type(value) is int or type(value) is torch.SymInt:
        return value  # type: ignore[return-value]
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):
        pass
    raise TypeError(f"{name} must be an int or a tuple of ints, but got {value!r}")


def _are_several(value: object) -> TypeGuard[Iterable[object]]:
    """Whether a value stands for numbers in an order: a tuple, a list, an array or tensor of one axis."""
    return isinstance(value, Iterable) and not (
        isinstance(value, (str, Set, Mapping)) or (isinstance(value, torch.Tensor) and value.dim() == 0)
    )


def _are_ints(numbers: tuple[object, ...]) -> bool:
    for number in numbers:  # noqa: SIM110  a loop is faster than all()
        if type(number) is not int:
            return False
    return True


def per_axis(name: str, value: object, rank: int) -> Sizes:
    """One number per axis: an int stands for all of them, and so does a sequence of length 1, as in torch."""
    if type(value) is int:
        return (value,) * rank
    if type(value) is tuple and len(value) == rank and _are_ints(value):
        return value
    if _are_several(value):
        numbers = tuple([as_int(name, number) for number in value])
        if len(numbers) == 1:
            return numbers * rank
        check_rank(name, numbers, rank)
        return numbers
    return (as_int(name, value),) * rank


def span_of(kernel: int, dilation: int) -> int:
    """How many elements a kernel reaches over."""
    return dilation * (kernel - 1) + 1


def check_rank(name: str, numbers: Sequence[int], rank: int) -> None:
    if len(numbers) != rank:
        raise GeometryError(f"{name} must have one number per spatial axis ({rank}), but got {tuple(numbers)}")


_POSITIVE = {
    "kernel_size": "greater than zero",
    "stride": "greater than zero; non-positive stride is not supported",
    "dilation": "greater than zero",
}


def check_positive(name: str, number: int, numbers: Sequence[int]) -> None:
    """One of the numbers of a window that must be positive."""
    if number < 1:
        raise GeometryError(f"{name} must be positive ({_POSITIVE[name]}), but got {tuple(numbers)}")


def check_window(kernel_size: Sequence[int], window: Window) -> None:
    """What must hold before sizes are computed from a window."""
    for name, numbers in window._asdict().items():
        check_rank(name, numbers, len(kernel_size))
    for name, numbers in (("kernel_size", kernel_size), ("stride", window.stride), ("dilation", window.dilation)):
        for number in numbers:
            check_positive(name, number, numbers)


def transposed_output_size(
    size: Sequence[int], kernel_size: Sequence[int], window: Window, output_padding: Sequence[int]
) -> Sizes:
    """The size of a transposed convolution's result along each axis.

    Raises:
        GeometryError: where nothing is left, or there was nothing.
    """
    if min(size) < 1:
        raise GeometryError(f"input must not be empty along a spatial axis, but got size {tuple(size)}")
    sizes = tuple(
        [
            (size[axis] - 1) * window.stride[axis]
            - window.padding_low[axis]
            - window.padding_high[axis]
            + span_of(kernel_size[axis], window.dilation[axis])
            + output_padding[axis]
            for axis in range(len(kernel_size))
        ]
    )
    for axis, length in enumerate(sizes):
        most = length + window.padding_low[axis] + window.padding_high[axis] + window.stride[axis]
        if type(most) is int and most >= 2**63:
            raise GeometryError(f"output size with padding and stride must fit 64-bit integers, but got {sizes}")
        if length < 1:
            check_window(kernel_size, window)
            raise GeometryError(
                f"output size must be positive (Given input size per channel: {list(size)}. Calculated output size per "
                f"channel: {list(sizes)}. Output size is too small), but got {sizes}"
            )
    return sizes


def _low_high(padding: object, rank: int) -> tuple[Sizes, Sizes]:
    """Numbers or (low, high) pairs per axis -> the lows and the highs."""
    if type(padding) is int:
        _check_padding((padding,), padding)
        both = (padding,) * rank
        return both, both
    if type(padding) is tuple and len(padding) == rank and _are_ints(padding):
        _check_padding(padding, padding)
        return padding, padding
    if _are_several(padding):
        entries = list(padding)
        if any(map(_are_several, entries)):
            pairs = [entry if _are_several(entry) else (entry, entry) for entry in entries]
            low_high = [tuple([as_int("padding", number) for number in pair]) for pair in pairs]
            if len(low_high) != rank or any(len(pair) != 2 for pair in low_high):
                raise GeometryError(
                    f"padding must have one (low, high) pair per spatial axis ({rank}), but got {padding}"
                )
            lows, highs = tuple([pair[0] for pair in low_high]), tuple([pair[1] for pair in low_high])
            _check_padding(lows + highs, padding)
            return lows, highs
        padding = entries
    both = per_axis("padding", padding, rank)
    _check_padding(both, padding)
    return both, both


def _check_padding(numbers: Sizes, given: object) -> None:
    if min(numbers) < 0:
        raise GeometryError(f"padding must be non-negative (negative padding is not supported), but got {given}")


def _named_padding(padding: str) -> str:
    if padding not in ("same", "valid"):
        raise GeometryError(f"padding must be 'same', 'valid', numbers or (low, high) pairs, but got {padding!r}")
    return padding


def window_of(
    size: Sequence[int], kernel_size: Sizes, stride: IntOrTuple, padding: Padding, dilation: IntOrTuple
) -> Window:
    """The window of a convolution or of unfold over an image of the given spatial sizes.

    padding='same' gives ceil(size / stride) positions; of an odd total the larger part is high, as in torch.
    """
    rank = len(kernel_size)
    strides = per_axis("stride", stride, rank)
    dilations = per_axis("dilation", dilation, rank)
    if not isinstance(padding, str):
        return Window(strides, *_low_high(padding, rank), dilations)
    zeros = (0,) * rank
    if _named_padding(padding) == "valid":
        return Window(strides, zeros, zeros, dilations)
    totals = []
    for axis in range(rank):
        # ceil(size / stride) positions read (positions - 1) * stride + span elements, which is
        # size + span - 1 - (size - 1) % stride. Written so for symbolic sizes: at stride 1 the size drops out, and
        # only a span below the stride needs a maximum.
        span, step = span_of(kernel_size[axis], dilations[axis]), max(strides[axis], 1)  # the op refuses a bad stride
        total = span - 1 if step == 1 else span - 1 - (size[axis] - 1) % step
        totals.append(total if span >= step else max(total, 0))
    lows = tuple([total // 2 for total in totals])
    return Window(strides, lows, tuple([total - low for total, low in zip(totals, lows, strict=True)]), dilations)


def _plain_window(rank: int, stride: IntOrTuple, padding: Padding, dilation: IntOrTuple) -> Window:
    return window_of((), (1,) * rank, stride, padding, dilation)


_known_plain_window = functools.lru_cache(maxsize=1024)(_plain_window)


def plain_window(rank: int, stride: object, padding: object, dilation: object) -> Window | None:
    """The window of ints and tuples of ints, as in most calls, in a fraction of `window_of`'s time; else None."""
    for value in (stride, padding, dilation):  # a cache takes True for 1
        if type(value) is not int and not (type(value) is tuple and _are_ints(value)):
            return None
    if is_dynamo_compiling():  # Dynamo warns of caches
        return _plain_window(rank, stride, padding, dilation)  # type: ignore[arg-type]
    return _known_plain_window(rank, stride, padding, dilation)


def transposed_window_of(
    kernel_size: Sizes, stride: IntOrTuple, padding: Padding, output_padding: IntOrTuple, dilation: IntOrTuple
) -> tuple[Window, Sizes]:
    """The window of a transposed convolution, and its output padding.

    padding='same' gives size * stride elements: what is too much is cropped (the larger half at the high end), what
    is missing is appended.
    """
    rank = len(kernel_size)
    strides = per_axis("stride", stride, rank)
    dilations = per_axis("dilation", dilation, rank)
    extra = per_axis("output_padding", output_padding, rank)
    for axis in range(rank):
        if extra[axis] < 0:
            raise GeometryError(f"output_padding must be non-negative, but got {extra}")
        if extra[axis] > 0 and extra[axis] >= max(strides[axis], dilations[axis]):
            raise GeometryError(
                f"output_padding must be smaller than stride or dilation (output padding must be smaller than either "
                f"stride or dilation), but got {extra} with stride {strides} and dilation {dilations}"
            )
    if not isinstance(padding, str):
        return Window(strides, *_low_high(padding, rank), dilations), extra
    zeros = (0,) * rank
    if _named_padding(padding) == "valid":
        return Window(strides, zeros, zeros, dilations), extra
    if any(extra):
        raise GeometryError(f"output_padding must be 0 with padding='same', but got {extra}")
    excess = [span_of(kernel_size[axis], dilations[axis]) - strides[axis] for axis in range(rank)]
    lows = tuple([max(number, 0) // 2 for number in excess])
    highs = tuple([max(number, 0) - low for number, low in zip(excess, lows, strict=True)])
    return Window(strides, lows, highs, dilations), tuple([max(-number, 0) for number in excess])
