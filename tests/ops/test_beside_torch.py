"""Calls with odd arguments, beside torch: the same shape, strides, dtype and device, or an error of the same class.

A call is a line of Python in which the functions are ours or torch's and the operands are those below.
"""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import unfoldconv as uc

OPERANDS: dict[str, Any] = {
    "x": torch.randn(2, 4, 6, 5, generator=torch.manual_seed(0)),
    "w": torch.randn(6, 4, 3, 2),  # of a convolution of x, and of a transposed convolution of y
    "b": torch.randn(6),
    "y": torch.randn(2, 6, 4, 4),
    "s": torch.randn(2, 4, 9),
    "v": torch.randn(2, 4, 4, 5, 6),
    "c": torch.randn(2, 24, 16),  # the patches of x under w
    "T": torch.tensor,
    "meta": lambda tensor: tensor.to("meta"),
    "np": np,
    "torch": torch,
}

ALIKE = [
    "conv2d(x[0], w)",
    "conv2d(x[0], w, b)",
    "conv2d(x[:0], w, b)",
    "conv2d(x[:0], w, b, padding=1)",
    "conv2d(x[:, :0], w)",
    "conv2d(x[..., :0], w)",
    "conv2d(x[:0, :, :0], w)",
    "conv2d(x[:0, :, :0], w, padding=2)",
    "conv2d(x, w[..., :0])",
    "conv2d(x, w[..., :0], padding=1)",
    "conv2d(x, w[:, :, :0, :0])",
    "conv2d(x, w, groups=2)",
    "conv2d(x, w[:, :2], groups=2)",
    "conv_transpose2d(y[0], w)",
    "conv_transpose2d(y[:0], w)",
    "conv_transpose2d(y[:0], w, padding=1)",
    "conv_transpose2d(y[..., :0], w)",
    "conv_transpose2d(y[..., :0], w, padding=1)",
    "conv_transpose2d(y, w[..., :0])",
    "conv_transpose2d(y, w, b)",
    "conv_transpose2d(y, w, b[:4])",
    "conv_transpose2d(y, w, b[:2], groups=2)",
    "conv_transpose2d(y, w, b[:4], groups=2)",
    "conv2d(x, w, b.reshape(6, 1))",
    "conv2d(x, w, b[0])",
    "conv2d(x, w, b[:1])",
    "conv2d(x, w, b[:0])",
    "conv2d(x, w, stride=T(2))",
    "conv2d(x, w, stride=(T(2), T(1)))",
    "conv2d(x, w, stride=np.int64(2))",
    "conv2d(x, w, stride=np.int32(2))",
    "conv2d(x, w, stride=(np.int64(2), 1))",
    "conv2d(x, w, stride=np.float64(2))",
    "conv2d(x, w, stride=T(2.0))",
    "conv2d(x, w, stride=True)",
    "conv2d(x, w, stride=(True, 1))",
    "conv2d(x, w, stride=2.0)",
    "conv2d(x, w, stride=[2])",
    "conv2d(x, w, stride=(2,))",
    "conv2d(x, w, stride=())",
    "conv2d(x, w, stride=None)",
    "conv2d(x, w, stride=[2, 1])",
    "conv2d(x, w, stride=torch.Size([2, 1]))",
    "conv2d(x, w, stride={2, 1})",
    "conv2d(x, w, padding=T(1))",
    "conv2d(x, w, padding=(T(1), 0))",
    "conv2d(x, w, padding=np.int64(1))",
    "conv2d(x, w, padding=None)",
    "conv2d(x, w, padding=())",
    "conv2d(x, w, padding=(1,))",
    "conv2d(x, w, padding=True)",
    "conv2d(x, w, padding=1.0)",
    "conv2d(x, w, padding='same')",
    "conv2d(x, w, padding='valid')",
    "conv2d(x, w, padding='SAME')",
    "conv2d(x, w, padding='')",
    "conv2d(x, w, padding=('same', 1))",
    "conv2d(x, w, padding='same', dilation=2)",
    "conv2d(x[0], w, padding='same')",
    "conv2d(x[:0], w, padding='same')",
    "conv2d(x, w, padding=-1)",
    "conv2d(x, w, dilation=T(2))",
    "conv2d(x, w, dilation=np.int64(2))",
    "conv2d(x, w, dilation=())",
    "conv2d(x, w, dilation=None)",
    "conv2d(x, w, groups=T(1))",
    "conv2d(x, w, groups=np.int64(1))",
    "conv2d(x, w, groups=True)",
    "conv2d(x, w, groups=None)",
    "conv2d(x, w, groups='1')",
    "conv2d(x, w, groups=1.0)",
    "conv2d(x, w, groups=(1,))",
    "conv2d(x, w, None, 1, 0, 1, 1, 1)",
    "conv2d(x)",
    "conv2d()",
    "conv2d(x, w, strides=1)",
    "conv2d(input=x, weight=w, bias=b, stride=1, padding=0, dilation=1, groups=1)",
    "conv_transpose2d(input=y, weight=w, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1)",
    "conv_transpose2d(y, w, stride=2, output_padding=T(1))",
    "conv_transpose2d(y, w, stride=2, output_padding=np.int64(1))",
    "conv_transpose2d(y, w, stride=2, output_padding=(1,))",
    "conv_transpose2d(y, w, stride=2, output_padding=())",
    "conv_transpose2d(y, w, stride=2, output_padding=None)",
    "conv_transpose2d(y, w, stride=T(2))",
    "conv2d(x.t(), w)",
    "conv2d(x[0, 0], w)",
    "conv2d(v, w)",
    "conv2d(x, w[0])",
    "conv2d(x, w[0, 0, 0])",
    "conv2d(s, w)",
    "conv1d(s, w[..., 0])",
    "conv1d(s[0], w[..., 0])",
    "conv1d(s[0, 0], w[..., 0])",
    "conv1d(x, w[..., 0])",
    "conv1d(s, w)",
    "conv3d(v, w[:, :, None])",
    "conv3d(v[0], w[:, :, None])",
    "conv3d(x, w[:, :, None])",
    "conv3d(x[0], w[:, :, None])",
    "conv2d(x.long(), w.long())",
    "conv2d(x.int(), w.int())",
    "conv2d(x.short(), w.short())",
    "conv2d(x.to(torch.int8), w.to(torch.int8))",
    "conv2d(x.byte(), w.byte())",
    "conv2d(x.long(), w.long(), b.long())",
    "conv2d(x.bool(), w.bool())",
    "conv2d(x.bool(), w)",
    "conv2d(x, w.bool())",
    "conv2d(x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn))",
    "conv2d(x.to(torch.uint16), w.to(torch.uint16))",
    "conv2d(x.to(torch.uint32), w)",
    "conv_transpose2d(y.bool(), w.bool())",
    "conv_transpose2d(y.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn))",
    "fold(c.to(torch.float8_e4m3fn), (6, 5), (3, 2))",
    "fold(c.chalf(), (6, 5), (3, 2))",
    "conv2d(x.long(), w)",
    "conv2d(x, w.long())",
    "conv2d(x.half(), w)",
    "conv2d(x, w.double())",
    "conv2d(x, w.bfloat16())",
    "conv2d(x.half(), w.half(), b)",
    "conv2d(x, w, b.double())",
    "conv2d(x.half(), w.half(), b.half())",
    "conv2d(x.bfloat16(), w.bfloat16())",
    "conv2d(x.bfloat16(), w.bfloat16(), b)",
    "conv2d(x.cfloat(), w.cfloat())",
    "conv2d(x.chalf(), w.chalf())",
    "conv2d(x.chalf(), w.chalf(), b.chalf(), padding='same')",
    "conv2d(x[0].chalf(), w.chalf())",
    "conv2d(x.chalf(), w.cfloat())",
    "conv2d(x.cfloat(), w.chalf())",
    "conv2d(x.chalf(), w.chalf(), b.cfloat())",
    "conv2d(meta(x).chalf(), meta(w).chalf())",
    "conv1d(s.chalf(), w[..., 0].chalf())",
    "conv3d(v.chalf(), w[:, :, None].chalf())",
    "conv_transpose2d(y.chalf(), w.chalf())",
    "conv2d(x.cfloat(), w)",
    "conv2d(x, w.cfloat())",
    "conv2d(x.cdouble(), w.cdouble(), b.cdouble())",
    "conv2d(x.cfloat(), w.cfloat(), b)",
    "conv_transpose2d(y.long(), w.long())",
    "conv_transpose2d(y.cfloat(), w.cfloat())",
    "conv_transpose2d(y.half(), w.half())",
    "conv_transpose2d(y.bfloat16(), w.bfloat16())",
    "conv_transpose2d(y, w.double())",
    "conv2d(meta(x), meta(w))",
    "conv2d(meta(x), meta(w), meta(b))",
    "conv2d(meta(x), meta(w), meta(b).double())",
    "conv2d(meta(x[:, :3]), meta(w))",
    "conv2d(meta(x), meta(w), groups=0)",
    "conv2d(meta(x), meta(w), groups=2)",
    "conv2d(meta(x[..., :1]), meta(w))",
    "conv2d(meta(x[..., :0]), meta(w))",
    "conv_transpose2d(meta(y), meta(w))",
    "unfold(meta(x), 2)",
    "unfold(meta(x), 2, stride=0)",
    "unfold(meta(x), 0)",
    "unfold(meta(x), 2, dilation=0)",
    "unfold(meta(x), 9)",
    "fold(meta(c), (6, 5), (3, 2))",
    "fold(meta(c), (6, 5), (3, 2), stride=0)",
    "fold(meta(c), (6, 5), (3, 0))",
    "fold(meta(c)[:, :23], (6, 5), (3, 2))",
    "fold(meta(c)[..., :15], (6, 5), (3, 2))",
    "unfold(x[0], 2)",
    "unfold(x[:0], 2)",
    "unfold(x[..., :0], 2)",
    "unfold(v, 2)",
    "unfold(x, np.int64(2))",
    "unfold(x, (T(2), 1))",
    "unfold(x, [2, 1])",
    "unfold(x, [2])",
    "unfold(x, (2, 2), stride=())",
    "unfold(x, 2, stride=np.int64(2))",
    "unfold(x, True)",
    "unfold(x, 2.0)",
    "unfold(x, '2')",
    "unfold(x, 2, 1, 0, 1)",
    "unfold(x.bool(), 2)",
    "unfold(x.half(), 2)",
    "unfold(x.bfloat16(), 2)",
    "unfold(x.cfloat(), 2)",
    "unfold(None, 2)",
    "unfold(x, 2, padding=None)",
    "unfold(x, kernel_size=2, dilation=1, padding=0, stride=1)",
    "fold(c[0], (6, 5), (3, 2))",
    "fold(c[:0], (6, 5), (3, 2))",
    "fold(c[:, :, :0], (6, 5), (3, 2))",
    "fold(c[0, 0], (6, 5), (3, 2))",
    "fold(c, (T(6), T(5)), (3, 2))",
    "fold(c, T([6, 5]), (3, 2))",
    "fold(c, np.array([6, 5]), (3, 2))",
    "fold(c, (np.int64(6), 5), (3, 2))",
    "fold(c, x.shape[2:], (3, 2))",
    "fold(c, [6, 5], [3, 2])",
    "fold(c[..., :4], 3, 2)",
    "fold(c.bool(), (6, 5), (3, 2))",
    "fold(c.half(), (6, 5), (3, 2))",
    "fold(c.bfloat16(), (6, 5), (3, 2))",
    "fold(c.cfloat(), (6, 5), (3, 2))",
    "fold(c, (0, 5), (3, 2))",
    "fold(c, 6.0, (3, 2))",
    "fold(c, '6', (3, 2))",
    "fold(c, None, (3, 2))",
    "fold(input=c, output_size=(6, 5), kernel_size=(3, 2), dilation=1, padding=0, stride=1)",
]

# torch refuses these, some of them by mistake; here they mean what the rest of the function says they do.
TAKEN_HERE_ALONE = [
    "conv2d(x, w[:0])",
    "conv2d(x, w[:0], b[:0])",
    "conv2d(x[0], w[:0])",
    "conv2d(x[:0], w[:0])",
    "conv2d(x[:, :0], w[:0, :0])",
    "conv2d(x[..., :0], w, padding=1)",
    "conv2d(x[..., :0, :], w, padding=2)",
    "conv2d(x[..., :0, :0], w, padding=2)",
    "conv2d(x, w[:0, :2], groups=2)",
    "conv2d(x[:, :0], w[:0, :0], groups=2)",
    "conv_transpose2d(y[:, :0], w[:0])",
    "conv_transpose2d(y[:, :0], w[:0], b[:4])",
    "conv_transpose2d(y, w[:, :0])",
    "conv_transpose2d(y, w[:, :0], b[:0])",
    "conv2d(x, w, stride=T([2, 1]))",
    "conv2d(x, w, stride=np.array([2, 1]))",
    "conv2d(x, w, stride=iter([2, 1]))",
    "conv2d(x, w, stride=range(1, 3))",
    "conv2d(x, w, padding='same', stride=2)",
    "conv_transpose2d(y, w, padding='valid')",
    "conv2d(x.byte(), w.byte(), dilation=2)",
    "conv_transpose2d(y.int(), w.int())",
    "unfold(x[:, :0], 2)",
    "unfold(x[..., :0], 2, padding=1)",
    "unfold(x, T(2))",
    "unfold(x, (2, 2), stride=(2,))",
    "unfold(x.long(), 2)",
    "unfold(x, 2, padding='same')",
    "fold(c[:, :0], (6, 5), (3, 2))",
    "fold(c, (6, 5), (3, 2), padding=0, stride=(1,))",
]

# Where ours is another outcome than torch's on purpose: a shape, or GeometryError.
DELIBERATE: list[tuple[str, tuple[int, ...] | None]] = [
    # A sum over no channels is zero, plus the bias. torch gives a result without channels.
    ("conv2d(x[:, :0], w[:, :0])", (2, 6, 4, 4)),
    ("conv2d(x[:, :0], w[:, :0], b)", (2, 6, 4, 4)),
    # No spatial axis of an input to a transposed convolution may be empty; torch takes it if the batch is empty too.
    ("conv_transpose2d(y[:0, ..., :0], w)", None),
    # Of an empty batch torch also takes an output of no size and any output padding, as of no other.
    ("conv_transpose2d(y[:0], w, padding=(3, 0))", None),
    ("conv_transpose2d(y[:0], w, output_padding=2)", None),
    # IndexErrors that torch stumbles over.
    ("conv2d(x[:0], w[..., :0])", None),
    ("unfold(x[0, 0], 2)", None),
    # Devices must agree. torch lets meta tensors pass, and gives memory that nobody wrote if the input has memory.
    ("conv2d(meta(x), w)", None),
    ("conv2d(x, meta(w))", None),
    ("conv2d(x, w, meta(b))", None),
    ("conv2d(meta(x), meta(w), b)", None),
    ("conv_transpose2d(meta(y), w)", None),
    # What is refused with data is refused on the meta device. torch looks at some of it only there.
    ("conv2d(meta(x), meta(w).double())", None),
    ("conv2d(meta(x), meta(w), meta(b)[:4])", None),
    ("conv2d(meta(x), meta(w), stride=0)", None),
    ("conv2d(meta(x), meta(w), padding=-1)", None),
    ("conv2d(meta(x), meta(w), dilation=0)", None),
    ("conv2d(meta(x), meta(w[..., :0]))", None),
    ("conv2d(meta(x).bool(), meta(w).bool())", None),
    ("conv2d(meta(x), meta(w[:5, :2]), groups=2)", None),
    ("conv2d(meta(x).to(torch.uint16), meta(w).to(torch.uint16))", None),
    ("conv_transpose2d(meta(y), meta(w), meta(b))", None),
    ("conv_transpose2d(meta(y[:, :3]), meta(w))", None),
    ("conv_transpose2d(meta(y), meta(w), stride=0)", None),
    ("conv_transpose2d(meta(y), meta(w), groups=0)", None),
    ("conv_transpose2d(meta(y), meta(w), groups=4)", None),
]


def outcome(call: str, functions: object) -> Tensor | Exception:
    names = {name: getattr(functions, name) for name in dir(functions) if not name.startswith("_")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of complex32, and of what torch deprecates
        try:
            result: Tensor = eval(call, {**names, **OPERANDS})
        except Exception as error:
            return error
    return result


def described(result: Tensor | Exception) -> object:
    """What must be alike. Strides of no elements mean nothing; a RuntimeError of torch's is a GeometryError here."""
    if isinstance(result, Exception):
        return "refused" if isinstance(result, (RuntimeError, ValueError)) else type(result)
    strides = result.stride() if result.numel() else None
    return tuple(result.shape), strides, result.dtype, result.device


@pytest.mark.parametrize("call", ALIKE)
def test_alike(call: str) -> None:
    ours, theirs = outcome(call, uc), outcome(call, F)
    assert described(ours) == described(theirs), f"{ours} beside {theirs}"
    if isinstance(ours, Exception):
        kinds = [kind for kind in (TypeError, ValueError, NotImplementedError) if isinstance(theirs, kind)]
        assert isinstance(ours, kinds[0] if kinds else RuntimeError), f"{ours!r} beside {theirs!r}"
    elif ours.device.type == "cpu":
        wide = torch.promote_types(ours.dtype, torch.float64)
        tolerance = 0.05 if ours.dtype.itemsize == 2 or ours.dtype == torch.complex32 else 1e-5
        torch.testing.assert_close(ours.to(wide), theirs.to(wide), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("call", TAKEN_HERE_ALONE)
def test_taken_here_alone(call: str) -> None:
    assert isinstance(outcome(call, F), Exception)
    assert isinstance(outcome(call, uc), Tensor)


@pytest.mark.parametrize(("call", "shape"), DELIBERATE, ids=[call for call, _ in DELIBERATE])
def test_deliberate(call: str, shape: tuple[int, ...] | None) -> None:
    ours, theirs = outcome(call, uc), outcome(call, F)
    assert described(ours) != described(theirs) or isinstance(theirs, IndexError)
    if shape is None:
        assert isinstance(ours, uc.GeometryError)
    else:
        assert ours.shape == shape
