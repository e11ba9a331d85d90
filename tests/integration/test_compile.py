"""torch.compile and torch.export: whole graphs, symbolic sizes, and fake results with the strides of the real ones."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import unfoldconv as uc
from cases import CASES, CASES_2D, Case, channels_last, random_tensor
from derivatives import OPS, Op

every_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@every_op
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(op: Op, dynamic: bool | None) -> None:
    """One graph, forward and backward; aot_eager runs all of compilation but the generation of code.

    The batch and the first spatial axis are dynamic in 3-D, and where the sizes of the result are products in 2-D; else
    every size: products of many symbols keep torch's symbolic algebra busy for minutes.
    """
    arguments = op.arguments()
    rank = int(op.name[-2])
    if dynamic and (rank == 3 or op.name == "unfold_transpose2d"):
        for argument, shape in zip(arguments, op.shapes, strict=True):
            for dim in (0, 2)[: len(shape) - rank]:
                torch._dynamo.maybe_mark_dynamic(argument, dim)
        dynamic = None
    compiled = torch.compile(op.function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    results = []
    for function in (op.function, compiled):
        output = function(*arguments)
        results.append((output.detach(), *torch.autograd.grad(output.tanh().sum(), arguments)))
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected)


def _net(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    hidden = uc.conv2d(x * 2, w1, padding="same", stride=2).relu()
    up = uc.conv_transpose2d(hidden + 1, w2, stride=2, padding="same")
    return uc.fold(uc.unfold(up, 3, padding=1), up.shape[2:], 3, padding=1, reduction="mean") - x


def _layer(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    return uc.conv2d(x * 2, w1, padding=1).relu().sum(1, keepdim=True) * w2.sum()


@pytest.mark.parametrize(("function", "dynamic"), [(_net, False), (_layer, True)])
def test_inductor(function: Callable[..., Tensor], dynamic: bool) -> None:
    """Generated code around the ops, forward and backward, reads their results by the strides that they have."""
    shapes = ((2, 3, 8, 6), (4, 3, 3, 3), (4, 3, 3, 3))
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        arguments = [torch.randn(s).to(memory_format=memory_format).requires_grad_() for s in shapes]
        results = []
        for f in (function, compiled):
            output = f(*arguments)
            results.append((output.detach(), *torch.autograd.grad(output.square().sum(), arguments)))
        for ours, expected in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_new_sizes_do_not_recompile() -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    weight = torch.randn(4, 3, 3, 3)

    @torch.compile(backend=counter, fullgraph=True, dynamic=True)
    def function(x: Tensor) -> Tensor:
        return uc.conv2d(x, weight, stride=1, padding=1).relu()

    for shape in ((2, 3, 8, 10), (5, 3, 8, 10), (4, 3, 9, 12)):
        x = torch.randn(shape)
        torch.testing.assert_close(function(x), torch.nn.functional.conv2d(x, weight, padding=1).relu())
    assert counter.frame_count == 1


class _Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = uc.Conv2d(3, 4, 3, padding="same", stride=2)
        self.up = uc.ConvTranspose2d(4, 2, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return uc.unfold(self.up(self.conv(x)), 2, stride=2)


class _NetAndBack(_Net):
    def forward(self, x: Tensor) -> Tensor:
        columns = super().forward(x)
        return uc.fold(columns, x.shape[2:], 2, stride=2).relu()


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool, tmp_path: Path) -> None:
    net, x = _Net().eval(), torch.randn(2, 3, 8, 10)
    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "height", "width"))
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch, 2: 2 * height, 3: 2 * width},), strict=strict)
    path = f"{tmp_path}/net.pt2"
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    for shape in ((2, 3, 8, 10), (5, 3, 12, 10), (3, 3, 4, 14)):
        x = torch.randn(shape)
        torch.testing.assert_close(loaded(x), net(x))


_RUN_PACKAGE = """
import sys
import torch

try:
    torch._inductor.aoti_load_package(sys.argv[1])
except RuntimeError as error:
    print(error)
import unfoldconv

package = torch._inductor.aoti_load_package(sys.argv[1])
for x, expected in torch.load(sys.argv[2]):
    torch.testing.assert_close(package(x), expected)
    print("equal")
"""


def test_aotinductor_package(tmp_path: Path) -> None:
    """A package finds the ops in a process that has imported the library, and says so in one that has not."""
    net, x = _NetAndBack().eval(), torch.randn(2, 3, 8, 10)
    batch, height = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("height", min=4, max=64)
    with torch.no_grad():
        program = torch.export.export(net, (x,), dynamic_shapes=({0: batch, 2: 2 * height},))
        package = torch._inductor.aoti_compile_and_package(program, package_path=f"{tmp_path}/net.pt2")
        images = [torch.randn(shape) for shape in ((2, 3, 8, 10), (5, 3, 12, 10))]
        torch.save([(image, net(image)) for image in images], tmp_path / "expected.pt")
    command = [sys.executable, "-c", _RUN_PACKAGE, package, tmp_path / "expected.pt"]
    environment = os.environ | {"PYTHONPATH": str(Path(uc.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Could not find schema for unfoldconv::" in done.stdout
    assert done.stdout.count("equal") == 2


# --- fake kernels -----------------------------------------------------------------------------------------------------


def _formats(tensor: Tensor) -> list[Callable[[Tensor], Tensor]]:
    return [lambda t: t, channels_last, lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2)]


def _same_layout(op: Callable[..., Tensor], arguments: list[object], what: str) -> None:
    real = op(*arguments)
    with FakeTensorMode() as mode:
        faked = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments]
        fake = op(*faked)
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype), what


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fake_results_have_the_strides_of_real_ones(case: Case) -> None:
    ops, (window, sizes) = torch.ops.unfoldconv, (case.op_window, (list(case.input_size), list(case.kernel_size)))
    dtypes = (torch.float32, torch.float64) if case in CASES_2D or case.rank == 3 else (torch.float32,)
    for dtype in dtypes:
        x, w, y, columns = (
            random_tensor(shape, dtype)
            for shape in (case.input_shape, case.weight_shape, case.output_shape, case.columns_shape)
        )
        _same_layout(ops.col2im, [columns, *sizes, *window], "col2im")
        for fx, fw in itertools.product(_formats(x), _formats(w)):
            _same_layout(ops.im2col, [fx(x), sizes[1], *window], "im2col")
            _same_layout(ops.conv, [fx(x), fw(w), None, *window, case.groups], "conv")
            _same_layout(ops.conv_input_grad, [fx(y), fw(w), None, sizes[0], *window, case.groups], "conv_input_grad")
            _same_layout(ops.conv_weight_grad, [fx(y), fw(x), sizes[1], *window, case.groups], "conv_weight_grad")


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 1, 1), (2, 1, 4, 5), (2, 3, 1, 5), (1, 1, 1, 1), (2, 3, 4, 1)])
def test_memory_format_of_ambiguous_strides(shape: tuple[int, ...]) -> None:
    """Sizes of 1 leave the format open: every permutation of the strides is read by both sides as torch reads it."""
    w = torch.randn(2, shape[1], 1, 1)
    for order in itertools.permutations(range(4)):
        x = torch.randn([shape[i] for i in order]).permute([order.index(i) for i in range(4)])
        arguments = [x, w, None, [1, 1], [0, 0], [0, 0], [1, 1], 1]
        _same_layout(torch.ops.unfoldconv.conv, arguments, f"{shape} {x.stride()}")


def test_meta_tensors() -> None:
    x, w = torch.empty(2, 4, 9, 9, device="meta"), torch.empty(8, 4, 3, 3, device="meta")
    assert uc.conv2d(x, w, stride=2).shape == (2, 8, 4, 4)
    assert uc.unfold(x, 3).shape == (2, 36, 49)
    with pytest.raises(uc.GeometryError, match=r"kernel must fit .* span 10 .* = 9 elements"):
        uc.conv2d(x, torch.empty(8, 4, 10, 3, device="meta"))


def test_operands_on_two_devices() -> None:
    """Fake kernels refuse what the real ones would."""
    with pytest.raises(uc.GeometryError, match=r"same device.*but got meta and cpu"):
        uc.conv2d(torch.empty(2, 4, 9, 9, device="meta"), torch.empty(8, 4, 3, 3))
    with pytest.raises(uc.GeometryError, match="should be the same"):
        uc.conv2d(torch.empty(2, 4, 9, 9, device="meta"), torch.empty(8, 4, 3, 3, device="meta").double())
