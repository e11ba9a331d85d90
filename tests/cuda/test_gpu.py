"""What only a GPU can show: streams, graphs, real instructions, tensors beyond 2^31 elements. Skipped without one.

The other tests run on a GPU too, by their `device`; `tests/cuda/gpu/check.py` runs all of them and more.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

import unfoldconv as uc
from benchmarks.networks import resnet
from cases import COMPLEX, FLOATS, INTEGERS, MEMORY_FORMATS, Case, make_case
from compare import assert_as_accurate, assert_same_bits, assert_within_rounding
from computations import COMPUTATIONS, expected_integers, expected_of, operands

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CUDA = torch.device("cuda")
ops = torch.ops.unfoldconv
each_computation = pytest.mark.parametrize("name", COMPUTATIONS)
CASES = [
    make_case("plain", 2, in_channels=16, out_channels=24, input_size=(9, 11), kernel_size=(3, 3), bias=True),
    make_case("depthwise", 2, in_channels=8, out_channels=8, groups=8, input_size=(9, 11), kernel_size=(3, 3)),
    make_case("few_in_groups", 2, in_channels=16, out_channels=16, groups=4, input_size=(9, 11), kernel_size=(3, 3)),
    make_case("stem", 2, in_channels=3, out_channels=24, input_size=(16, 24), kernel_size=(7, 7), stride=(2, 2)),
    make_case("odd", 2, in_channels=5, out_channels=7, input_size=(9, 11), kernel_size=(2, 3), stride=(2, 1)),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def _results(name: str, case: Case, tensors: list[Any]) -> Iterator[tuple[str, Tensor]]:
    """Memory formats, and what the GPU computes of the tensors in each."""
    for memory_format in ("contiguous", "channels_last"):
        first, second, bias = (tensor if tensor is None else tensor.to(CUDA) for tensor in tensors)
        arranged = [MEMORY_FORMATS[memory_format](first), MEMORY_FORMATS[memory_format](second), bias]
        yield memory_format, COMPUTATIONS[name][0][-1](case, *arranged).cpu()


@each_computation
@each_case
@pytest.mark.parametrize("dtype", [*FLOATS, *COMPLEX], ids=str)
def test_every_op(case: Case, name: str, dtype: torch.dtype) -> None:
    """Small, and of floats hardly a kernel but ours: what the sanitizers run."""
    tensors = operands(name, case, dtype, "cpu")
    exact, magnitude = expected_of(name, case, tensors)
    for memory_format, result in _results(name, case, tensors):
        assert_within_rounding(result, exact, magnitude, memory_format)


@each_computation
@each_case
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_every_op_of_integers(case: Case, name: str, dtype: torch.dtype) -> None:
    """To the bit, wrapping around."""
    tensors = operands(name, case, dtype, "cpu")
    expected = expected_integers(name, case, tensors)
    for memory_format, result in _results(name, case, tensors):
        assert_same_bits(result.contiguous(), expected, memory_format)


def _all_ops(x: Tensor, w: Tensor) -> list[Tensor]:
    y = uc.conv2d(x, w, padding=1)
    window = [[1, 1]] * 4
    columns = uc.unfold(x, 3, padding=1)
    return [
        y,
        ops.conv_input_grad(y, w, None, list(x.shape[2:]), *window, 1),
        ops.conv_weight_grad(y, x, [3, 3], *window, 1),
        columns,
        uc.fold(columns, x.shape[2:], 3, padding=1),
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_graphs(dtype: torch.dtype) -> None:
    """Captured once and replayed on other numbers, every op gives what it gives by itself."""
    x, w = torch.randn(2, 16, 12, 10, dtype=dtype, device=CUDA), torch.randn(16, 16, 3, 3, dtype=dtype, device=CUDA)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _all_ops(x, w)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _all_ops(x, w)
    x.normal_()
    w.normal_()
    graph.replay()
    for index, (result, expected) in enumerate(zip(captured, _all_ops(x, w), strict=True)):
        assert_same_bits(result, expected, f"op {index}")


def test_the_current_stream() -> None:
    """A kernel waits for what its stream is still computing, and nothing of another stream waits for it."""
    x, w = torch.zeros(2, 16, 40, 40, device=CUDA), torch.randn(16, 16, 3, 3, device=CUDA)
    expected = _all_ops(torch.ones_like(x), w)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        x.fill_(1)
        results = _all_ops(x, w)
    assert not side.query(), "an op has synchronised"
    side.synchronize()
    for index, (result, wanted) in enumerate(zip(results, expected, strict=True)):
        assert_same_bits(result, wanted, f"op {index}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_results_do_not_depend_on_the_run(dtype: torch.dtype) -> None:
    x, w = torch.randn(8, 64, 56, 56, device=CUDA).to(dtype), torch.randn(64, 64, 3, 3, device=CUDA).to(dtype)
    expected = _all_ops(x, w)
    for _ in range(3):
        for index, (result, wanted) in enumerate(zip(_all_ops(x, w), expected, strict=True)):
            assert_same_bits(result, wanted, f"op {index}")


def test_tensor_float_32_only_where_torch_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 bits of the factors, or all 23: the errors of either are far from the other's."""
    x, w = torch.randn(2, 256, 20, 20, device=CUDA), torch.randn(256, 256, 3, 3, device=CUDA)
    exact = torch.nn.functional.conv2d(x.double(), w.double())
    errors = []
    for allowed in (False, True):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        errors.append(float((uc.conv2d(x, w).double() - exact).abs().max() / exact.abs().max()))
    assert errors[0] < 1e-5, errors
    assert errors[1] < 5e-3, errors


# --- converted networks -----------------------------------------------------------------------------------------------


def _small_resnet(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return resnet((1,), bottleneck=False, width=16, classes=5).to(CUDA, dtype)


def _loss(model: nn.Module, images: Tensor) -> Tensor:
    return model(images).float().square().mean()


def test_reduce_overhead_of_a_converted_network() -> None:
    """Compiled into CUDA graphs, forward and backward; replayed on other images they give what eager code gives."""
    model = uc.convert(_small_resnet(), inplace=True).eval()  # so that a call leaves nothing behind
    parameters = list(model.parameters())
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    torch._dynamo.utils.counters.clear()
    for _ in range(4):  # the first ones warm up and capture
        images = torch.randn(4, 3, 64, 64, device=CUDA)
        torch.compiler.cudagraph_mark_step_begin()
        loss = _loss(compiled, images)
        gradients = [gradient.clone() for gradient in torch.autograd.grad(loss, parameters)]
        expected = _loss(model, images)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradients, list(torch.autograd.grad(expected, parameters)), rtol=1e-3, atol=1e-5)
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0
    torch._dynamo.reset()


def test_autocast_and_grad_scaler_of_a_converted_network() -> None:
    """Steps in float16: both networks skip those whose scale is too large, and train alike after them."""
    images, first_scale, taken = torch.randn(4, 3, 64, 64, device=CUDA), 2.0**40, 4
    losses, scales = [], []
    for model in (uc.convert(_small_resnet(), inplace=True), _small_resnet()):
        scaler = torch.amp.GradScaler(CUDA.type, init_scale=first_scale, backoff_factor=2.0**-8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        seen: list[Tensor] = []
        history = [first_scale]
        while len(seen) < taken:
            optimizer.zero_grad()
            with torch.autocast(CUDA.type, torch.float16):
                loss = _loss(model, images)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            history.append(scaler.get_scale())
            if history[-1] == history[-2]:  # else the step was skipped
                seen.append(loss.detach().cpu())
        losses.append(torch.stack(seen))
        scales.append(history)
    assert scales[0] == scales[1]
    assert scales[0][1] < first_scale, "the first step was not too much for float16"

    exact, precise = [], _small_resnet(torch.float64)
    optimizer = torch.optim.SGD(precise.parameters(), lr=0.01)
    for _ in range(taken):
        optimizer.zero_grad()
        loss = precise(images.double()).square().mean()
        loss.backward()
        optimizer.step()
        exact.append(loss.detach().cpu())
    assert exact[-1] < exact[0]
    assert_as_accurate(*losses, torch.stack(exact), "losses")


# --- beyond 2^31 elements ---------------------------------------------------------------------------------------------


def _needs(gibibytes: int) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < gibibytes << 30:
        pytest.skip(f"needs {gibibytes} GiB of GPU memory, but {free / 2**30:.0f} are free")


def test_unfold_and_fold_beyond_32_bits() -> None:
    _needs(12)
    x = torch.randint(0, 256, (1, 1, 50_000, 50_000), dtype=torch.uint8, device=CUDA)
    columns = uc.unfold(x, (2, 1), stride=(2, 1))
    assert columns.numel() > 2**31
    assert torch.equal(columns.view(2, 25_000, 50_000), x.view(25_000, 2, 50_000).transpose(0, 1))
    assert torch.equal(uc.fold(columns, (50_000, 50_000), (2, 1), stride=(2, 1)), x)


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("groups", [1, 4])
def test_convolution_beyond_32_bits(groups: int, memory_format: str) -> None:
    """The first and the last rows, which lie farthest apart, against float64."""
    _needs(24)
    torch.cuda.empty_cache()
    x = MEMORY_FORMATS[memory_format](torch.randn(1, 4, 30_000, 20_000, dtype=torch.bfloat16, device=CUDA))
    w = torch.randn(4, 4 // groups, 3, 3, dtype=torch.bfloat16, device=CUDA)
    assert x.numel() > 2**31
    window = ([1, 1], [1, 1], [1, 1], [1, 1])
    reference: Callable[..., Tensor] = torch.nn.functional.conv2d
    turned = w.view(groups, 4 // groups, 4 // groups, 3, 3).transpose(1, 2).flip(3, 4).reshape(w.shape)
    for result, weight in (
        (ops.conv(x, w, None, *window, groups), w),
        (ops.conv_input_grad(x, w, None, list(x.shape[2:]), *window, groups), turned),
    ):
        for part, kept in ((slice(0, 34), slice(0, 32)), (slice(-34, None), slice(2, None))):
            exact = reference(x[:, :, part].double(), weight.double(), padding=1, groups=groups)[:, :, kept]
            found = result[:, :, part][:, :, kept].double()
            torch.testing.assert_close(found, exact, rtol=2**-7, atol=1e-3)
