"""Models in ONNX: the nodes that the ops become, and their results in onnxruntime beside ours."""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import unfoldconv as uc
from cases import CASES, random_tensor
from compare import assert_same_bits
from computations import conv, conv_transpose, operands

FOLD = {1: uc.fold1d, 2: uc.fold2d, 3: uc.fold3d}
UNFOLD = {1: uc.unfold1d, 2: uc.unfold2d, 3: uc.unfold3d}

SITUATIONS = ("asymmetric", "dilation", "depthwise", "far_padding", "all_at_once")

each_rank = pytest.mark.parametrize("rank", [1, 2, 3])


class Calls(nn.Module):
    """Several calls in one model, because exporting one takes seconds."""

    def __init__(self, *calls: Callable[..., Tensor]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, *arguments: Tensor | Sequence[Tensor]) -> list[Tensor]:
        if len(self.calls) == 1:
            return [self.calls[0](*arguments)]
        return [call(*one) for call, one in zip(self.calls, arguments, strict=True)]


def export(model: nn.Module, arguments: tuple[Any, ...], **options: Any) -> torch.onnx.ONNXProgram:
    program = torch.onnx.export(
        model.eval(),
        arguments,
        dynamo=True,
        verbose=False,
        custom_translation_table=uc.onnx.translations(),
        **options,
    )
    assert program is not None
    return program


def ops_of(program: torch.onnx.ONNXProgram) -> list[str]:
    """The types of the nodes, all of them of standard ONNX."""
    assert not program.model.functions
    for node in program.model.graph:
        assert node.domain == "", node
    return [node.op_type for node in program.model.graph]


def run(program: torch.onnx.ONNXProgram, *inputs: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    feed = {slot.name: tensor.numpy() for slot, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(result) for result in session.run(None, feed)]


@each_rank
def test_every_geometry(rank: int) -> None:
    """With fixed sizes, a convolution is one node."""
    cases = [case for case in CASES if case.rank == rank and case.name.split("-")[0] in SITUATIONS]
    assert len(cases) == len(SITUATIONS)
    calls: list[Callable[..., Tensor]] = []
    arguments: list[list[Tensor]] = []
    for case in cases:
        for name, function in (("conv", conv), ("conv_transpose", conv_transpose)):
            tensors = operands(name, case, torch.float32, torch.device("cpu"))
            calls.append(lambda *args, f=function, c=case: f(c, *args, *[None] * (3 - len(args))))
            arguments.append([tensor for tensor in tensors if tensor is not None])
        calls.append(lambda x, c=case: UNFOLD[c.rank](x, c.kernel_size, **c.window))
        arguments.append([random_tensor(case.input_shape, torch.float32)])
        calls.append(lambda x, c=case: FOLD[c.rank](x, c.input_size, c.kernel_size, **c.window))
        arguments.append([random_tensor(case.columns_shape, torch.float32)])
    program = export(Calls(*calls), tuple(arguments))
    ops = ops_of(program)
    assert ops.count("Conv") == ops.count("ConvTranspose") == len(cases)
    dilated_in_3d = sum(max(case.dilation) > 1 for case in cases) if rank == 3 else 0
    assert ops.count("Col2Im") == len(cases) + dilated_in_3d
    assert set(ops) <= {"Conv", "ConvTranspose", "Col2Im", "Pad", "Gather", "Transpose", "Reshape", "Squeeze"}
    results = run(program, *[tensor for one in arguments for tensor in one])
    for index, (call, one, result) in enumerate(zip(calls, arguments, results, strict=True)):
        what = f"{cases[index // 4].name}, call {index % 4}"
        torch.testing.assert_close(result, call(*one), msg=lambda text, what=what: f"{what}: {text}")


def dynamic_calls(rank: int) -> dict[str, Callable[[Tensor], Tensor]]:
    weight = torch.randn(4, 4, *(3, 2, 3)[:rank])
    bias = torch.randn(4)
    conv, conv_transpose = (getattr(uc, f"{name}{rank}d") for name in ("conv", "conv_transpose"))
    unfold, fold, unfold_transpose = (getattr(uc, f"{name}{rank}d") for name in ("unfold", "fold", "unfold_transpose"))
    asymmetric = ((1, 0), (0, 2), (1, 1))[:rank]

    def fold_of_unfold(x: Tensor, reduction: str, **window: Any) -> Tensor:
        return fold(unfold(x, 2, **window), x.shape[2:], 2, reduction=reduction, **window)

    return {
        "conv": lambda x: conv(x, weight, stride=2, padding=asymmetric),
        "conv same": lambda x: conv(x, weight, bias, padding="same", dilation=2),
        "conv same strided": lambda x: conv(x, weight, bias, stride=2, padding="same"),
        "conv unbatched": lambda x: conv(x[0], weight, bias, padding=1),
        "transposed": lambda x: conv_transpose(x, weight, bias, stride=3, padding=asymmetric, output_padding=2),
        "transposed same": lambda x: conv_transpose(x, weight, bias, stride=2, padding="same"),
        "transposed beyond": lambda x: conv_transpose(x, weight, bias, 2, 1, output_padding=3, dilation=4),
        "unfold": lambda x: unfold(x, 2, dilation=2, padding=asymmetric, stride=2),
        "unfold same": lambda x: unfold(x, 3, padding="same", stride=2),
        "unfold_transpose": lambda x: unfold_transpose(x, 2, stride=2, padding=1),
        "fold": lambda x: fold_of_unfold(x, "sum", padding=asymmetric, stride=2),
        "fold dilated": lambda x: fold_of_unfold(x, "mean", padding=1, dilation=2),
    }


@each_rank
def test_dynamic_sizes(rank: int) -> None:
    """In 2-D every call, else some of them: symbolic sizes take their time."""
    some = {1: ("unfold same", "fold dilated"), 3: ("conv same strided", "transposed", "unfold", "fold dilated")}
    calls = {name: call for name, call in dynamic_calls(rank).items() if name in some.get(rank, name)}
    sizes = {0: torch.export.Dim("batch", min=1, max=99), 2: torch.export.Dim("size", min=3, max=99)}

    def everything(x: Tensor) -> Tensor:
        return torch.cat([call(x).flatten() for call in calls.values()])

    program = export(Calls(everything), (torch.randn(2, 4, *(9, 8, 7)[:rank]),), dynamic_shapes=((sizes,),))
    ops = ops_of(program)
    assert ops.count("Conv") == sum(name.startswith("conv") for name in calls)
    assert ops.count("ConvTranspose") == sum(name.startswith("transposed") for name in calls)
    for batch, size in ((2, 9), (1, 4), (5, 14)):
        x = torch.randn(batch, 4, *(size, 8, 7)[:rank])
        torch.testing.assert_close(run(program, x)[0], everything(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", [1, "same"])
def test_sizes_that_only_a_run_tells(padding: int | str) -> None:
    """Whether a strided convolution leaves out a row, say: the way back is cut from the largest result."""
    down, up = uc.Conv2d(2, 3, 3, stride=2, padding=padding), uc.ConvTranspose2d(3, 2, 3, stride=2, padding=padding)

    def there_and_back(x: Tensor) -> Tensor:
        return up(down(x), output_size=x.shape[2:])

    sizes = {0: torch.export.Dim("batch", max=99), 2: torch.export.Dim("height", min=3, max=99)}
    with torch.no_grad():
        program = export(Calls(there_and_back), (torch.randn(2, 2, 8, 9),), dynamic_shapes=((sizes,),))
        assert "Slice" in ops_of(program)
        for height in (8, 9, 3, 14):
            x = torch.randn(3, 2, height, 9)
            torch.testing.assert_close(run(program, x)[0], there_and_back(x), rtol=1e-5, atol=1e-5)


def test_a_model() -> None:
    """Without gradients: the parameters become constants of the model, and what follows a convolution its own nodes."""
    model = nn.Sequential(
        uc.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        uc.Conv2d(8, 8, 3, padding="same", groups=4, bias=False),
        uc.ConvTranspose2d(8, 3, 4, stride=2, padding=1),
        nn.Sigmoid(),
    )
    model(torch.randn(4, 3, 12, 8))  # moves the averages of the batch norm
    batch = torch.export.Dim("batch", max=99)
    program = export(model, (torch.randn(2, 3, 12, 8),), dynamic_shapes=({0: batch},), input_names=["image"])
    ops = ops_of(program)
    assert (ops.count("Conv"), ops.count("ConvTranspose")) == (2, 1)
    image = torch.randn(5, 3, 12, 8)
    torch.testing.assert_close(run(program, image)[0], model(image).detach())


def test_unfold_of_every_dtype() -> None:
    dtypes = (torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)
    signals = [random_tensor((2, 3, 5), dtype) for dtype in dtypes]
    calls = [lambda x: uc.unfold1d(x, 2, padding=((1, 2),))] * len(signals)
    program = export(Calls(*calls), tuple([x] for x in signals))
    for x, call, result in zip(signals, calls, run(program, *signals), strict=True):
        assert_same_bits(result, call(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: uc.conv2d(x.long(), x.long()[:, :, :2, :2]), "floating dtype in ONNX, but got INT64"),
        (lambda x: uc.fold2d(x.flatten(2)[:, :, :16].bool(), 5, 2), "whose sums know no 'or', but got BOOL"),
        (lambda x: uc.conv2d(x, x[:, :, :2]), "kernel_size must be fixed in an ONNX model, but got"),
    ],
)
def test_what_onnx_cannot_express_is_refused(call: Callable[[Tensor], Tensor], message: str) -> None:
    sizes = {3: torch.export.Dim("width", min=2, max=99)}
    x = torch.randn(1, 4, 16, 4)
    with pytest.raises(torch.onnx.OnnxExporterError) as error:
        export(Calls(call), (x,), dynamic_shapes=((sizes,),))
    causes = [error.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert any(isinstance(cause, uc.GeometryError) and re.search(message, str(cause)) for cause in causes), causes


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match="needs the package onnxscript: pip install onnxscript"):
        uc.onnx.translations()
