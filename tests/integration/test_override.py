"""`override_torch`: which calls of torch's functions are ours inside the block, and that the others are torch's own."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unfoldconv as uc


def double(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _calls() -> list[tuple[str, Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]]:
    calls: list[tuple[str, Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]] = []
    sizes = (7, 6, 5)
    for rank in (1, 2, 3):
        image, bias = double(2, 4, *sizes[:rank]), double(6)
        window = {"stride": (2,) * rank, "padding": [1] * rank, "dilation": 2, "groups": 2}
        for name in (f"conv{rank}d", f"conv_transpose{rank}d"):
            weight = double(4, 3, *(3, 2, 2)[:rank]) if "transpose" in name else double(6, 2, *(3, 2, 2)[:rank])
            extra = {"output_padding": 1} if "transpose" in name else {}
            calls.append((name, getattr(F, name), (image, weight, bias), window | extra))
            calls.append((name, getattr(torch, name), (image,), {"weight": weight, "groups": 2}))
            transposed = "transpose" in name
            numbers = ([2] * rank, [1] * rank, [1] * rank, transposed, [int(transposed)] * rank, 2)
            calls.append(("convolution", torch.convolution, (image, weight, bias, *numbers), {}))
    calls.append(("conv2d", F.conv2d, (double(4, 7, 6), double(6, 4, 3, 3)), {"padding": "same"}))
    calls.append(("unfold", F.unfold, (double(2, 3, 7, 6), 3), {"dilation": (1, 2), "padding": 1, "stride": [2, 1]}))
    calls.append(("unfold", F.unfold, (double(3, 7, 6),), {"kernel_size": (3, 2)}))
    calls.append(
        ("fold", F.fold, (double(2, 12, 35), (7, 6), (2, 2)), {"padding": (1, 0), "stride": (1, 1), "dilation": (2, 1)})
    )
    return calls


CALLS = _calls()


@pytest.mark.parametrize(("name", "function", "args", "kwargs"), CALLS)
def test_calls_are_taken(name: str, function: Callable[..., Tensor], args: Any, kwargs: Any) -> None:
    expected = function(*args, **kwargs)
    with uc.override_torch() as calls:
        actual = function(*args, **kwargs)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert calls.taken == {name: 1}
    assert not calls.left
    function(*args, **kwargs)
    assert calls.taken == {name: 1}


def test_ours_really_computes_them() -> None:
    """What the profiler sees are our ops, forward and backward."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2)
    )
    with uc.override_torch() as calls, torch.profiler.profile() as profile:
        model(torch.ones(1, 3, 8, 8)).sum().backward()
    seen = {event.name for event in profile.events()}
    assert not any("aten::conv" in name or "aten::slow_conv" in name for name in seen)
    assert any("unfoldconv::conv_weight_grad" in name for name in seen)
    assert calls.taken == {"conv2d": 1, "conv_transpose2d": 1}
    assert repr(calls) == (
        "unfoldconv.override_torch: 2 calls taken, 0 left to torch\n  conv2d: 1 taken\n  conv_transpose2d: 1 taken"
    )


def test_only_unfoldconv_takes_these() -> None:
    image, weight = torch.ones(1, 2, 6, 6), torch.ones(1, 2, 3, 3)
    with uc.override_torch() as calls:
        assert F.conv2d(image, weight, stride=2, padding="same").shape == (1, 1, 3, 3)
        assert F.unfold(torch.arange(12).reshape(1, 3, 4), (2, 2)).shape == (4, 6)
    assert calls.taken == {"conv2d": 1, "unfold": 1}


REFUSED: list[tuple[Callable[..., Tensor], tuple[Any, ...]]] = [
    (F.conv2d, (torch.ones(1, 2, 4, 4), torch.ones(1, 3, 3, 3))),
    (F.conv2d, (torch.ones(1, 2, 4, 4), torch.ones(1, 2, 5, 5))),
    (F.conv2d, (torch.ones(1, 2, 4, 4), torch.ones(1, 2, 3, 3, dtype=torch.float64))),
    (F.conv1d, (torch.ones(1, 2, 4, 4), torch.ones(1, 2, 3))),
    (F.conv_transpose1d, (torch.ones(1, 2, 4), torch.ones(2, 1, 3), None, 1, 0, 1)),
    (F.unfold, (torch.ones(1, 2, 4, 4), 5)),
    (F.fold, (torch.ones(1, 9, 5), (4, 4), 3)),
]


@pytest.mark.parametrize(("function", "args"), REFUSED)
def test_refusals_are_torchs(function: Callable[..., Tensor], args: tuple[Any, ...]) -> None:
    with pytest.raises(Exception) as theirs:  # noqa: PT011  whatever torch raises
        function(*args)
    with uc.override_torch() as calls, pytest.raises(type(theirs.value)) as ours:
        function(*args)
    assert type(ours.value) is type(theirs.value)
    assert str(ours.value) == str(theirs.value)
    assert not calls.taken
    assert list(calls.left.values()) == [1]
    assert f"{function.__name__}: 1 left: " in repr(calls)


class Meters(Tensor):
    """A subclass that changes what functions do, by their name."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        return result * 100 if func is F.conv2d else result


class Plain(Tensor):
    """A subclass that changes nothing."""


def test_subclasses_of_tensor() -> None:
    image, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
    with uc.override_torch() as calls:
        assert F.conv2d(image.as_subclass(Meters), weight).item() == 900
        assert not calls.taken
        result = F.conv2d(image.as_subclass(Plain), weight)
    assert calls.left == {("conv2d", "Meters has its own __torch_function__"): 1}
    assert calls.taken == {"conv2d": 1}
    assert type(result) is Plain
    assert result.item() == 9


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_what_ours_do_not_know_is_left() -> None:
    sparse = torch.eye(3).to_sparse()
    quantised = torch.quantize_per_tensor(torch.eye(3), 1.0, 0, torch.quint8)
    with uc.override_torch() as calls:
        for tensor in (sparse, quantised):
            with pytest.raises((RuntimeError, NotImplementedError)):
                F.conv1d(tensor, torch.ones(1, 3, 1))
    reasons = ("a tensor has layout torch.sparse_coo", "a tensor has dtype torch.quint8")
    assert calls.left == {("conv1d", reason): 1 for reason in reasons}


def test_nesting_threads_and_other_functions() -> None:
    image, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
    with uc.override_torch() as outer:
        with uc.override_torch() as inner:
            F.conv2d(image, weight)
        F.relu(F.conv2d(image, weight))
        thread = threading.Thread(target=F.conv2d, args=(image, weight))
        thread.start()
        thread.join()
        uc.conv2d(image, weight)  # ours already: nothing is taken
    assert inner.taken == outer.taken == {"conv2d": 1}
    try:
        with uc.override_torch() as calls:
            raise ZeroDivisionError
    except ZeroDivisionError:
        F.conv2d(image, weight)
    assert not calls.taken


def test_autocast_and_gradients() -> None:
    layer, image = nn.Conv2d(2, 3, 3), torch.randn(1, 2, 5, 5)
    results = []
    for block in (uc.override_torch(), torch.enable_grad()):
        layer.zero_grad()
        with block, torch.autocast("cpu", torch.bfloat16):
            output = layer(image)
            assert F.unfold(image, 3).dtype == torch.float32
        output.sum().backward()
        results.append((output.dtype, layer.weight.grad.dtype))
        weight_grad = layer.weight.grad.clone()
    assert results == [(torch.bfloat16, torch.float32)] * 2
    torch.testing.assert_close(layer.weight.grad, weight_grad)


def test_compiled_inside_and_outside() -> None:
    """Dynamo traces the mode: our ops are in the graph. Another call does not compile anew."""
    model, image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Unfold(2)), torch.randn(2, 3, 8, 8)
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph.code)
        return graph.forward

    @torch.compile(backend=backend, fullgraph=True)
    def inside(image: Tensor) -> Tensor:
        with uc.override_torch():
            return model(image)

    outside = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        expected = model(image)
        with uc.override_torch() as calls:
            results = [outside(image), outside(image)]
        for result in (*results, inside(image)):
            torch.testing.assert_close(result, expected)
        assert not calls.taken
        assert len(graphs) == 2
        assert all(code.count("unfoldconv") == 2 for code in graphs)
        torch.testing.assert_close(outside(image), expected)
    assert len(graphs) == 3
    assert "unfoldconv" not in graphs[2]
    torch._dynamo.reset()
