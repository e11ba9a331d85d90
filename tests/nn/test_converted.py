"""What people do around a model, done around a converted one: torch.compile, autocast, torch.func, checkpoints, ..."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch._inductor.config
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import unfoldconv as uc
from benchmarks.networks import resnet
from compare import assert_as_accurate

pytestmark = pytest.mark.usefixtures("fresh_inductor")


def small_resnet(dtype: torch.dtype = torch.float32, blocks: tuple[int, ...] = (1, 1)) -> nn.Module:
    torch.manual_seed(0)
    return resnet(blocks, bottleneck=False, width=4, classes=5).to(dtype)


def small_net(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Convolution, transposed convolution, unfold and fold; no batch normalisation, so samples do not mix."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, padding="same", groups=4),
        nn.ConvTranspose2d(4, 3, 2, stride=2),
        nn.Unfold(3, padding=1),
        nn.Tanh(),
        nn.Fold((12, 10), 3, padding=1),
    ).to(dtype)


SMALL_INPUT = (3, 2, 6, 5)


def twins(make: Callable[..., nn.Module], dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """The converted network and the original, with parameters of their own."""
    return uc.convert(make(dtype), inplace=True), make(dtype)


def results_of(model: Callable[[Tensor], Tensor], parameters: list[Tensor], input: Tensor) -> list[Tensor]:
    output = model(input)
    gradients = torch.autograd.grad(output.float().square().mean(), parameters)
    return [output.detach(), *gradients]


# --- torch.compile ----------------------------------------------------------------------------------------------------


def test_whole_network_compiles_once_for_all_sizes() -> None:
    """One graph, forward and backward; batch and sizes are symbols in it."""
    ours, theirs = twins(small_resnet)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for shape in ((2, 3, 32, 36), (5, 3, 32, 36), (3, 3, 48, 40)):
        input = torch.randn(shape, dtype=torch.float64)
        actual = results_of(compiled, list(ours.parameters()), input)
        expected = results_of(theirs, list(theirs.parameters()), input)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
        counts.append(counter.frame_count)
    assert counts == counts[:1] * 3  # of torch's network too, the first call counts two: batch_norm's floats


def assert_same_layout_and_values(compiled: list[Tensor], eager: list[Tensor], what: str) -> None:
    for index, (actual, expected) in enumerate(zip(compiled, eager, strict=True)):
        assert actual.stride() == expected.stride(), f"{what} {index}"
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5, msg=f"{what} {index}")


def test_inductor_on_a_whole_network() -> None:
    """Forward only: the C++ compiler takes long over each kernel. test_compile.py has the backward pass."""
    ours = uc.convert(small_resnet(blocks=(1,))).eval()
    compiled = torch.compile(ours, fullgraph=True)
    input = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert_same_layout_and_values([compiled(input)], [ours(input)], "resnet")


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "permuted": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "expanded": lambda t: t[:1].expand_as(t),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inductor_of_layouts(layout: str) -> None:
    """Generated code reads our results by the strides that the fake kernels promised, whatever comes in."""
    torch.manual_seed(0)
    ours = uc.convert(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Tanh(), nn.ConvTranspose2d(4, 2, 2)))
    compiled = torch.compile(ours, fullgraph=True)
    input = LAYOUTS[layout](torch.randn(2, 3, 9, 8))
    with torch.no_grad():
        assert_same_layout_and_values([compiled(input)], [ours(input)], layout)


def test_autocast_inside_compile() -> None:
    ours, _ = twins(small_net, torch.float32)

    def function(input: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return ours[0](input)

    input = torch.randn(SMALL_INPUT)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert compiled(input).dtype == torch.bfloat16
    torch.testing.assert_close(compiled(input), function(input), rtol=0, atol=0)


# --- autocast ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    """Every layer has the dtype that torch's has, and the results are as accurate."""
    input = torch.randn(SMALL_INPUT)
    reference = small_net(torch.float64)
    exact = results_of(reference, list(reference.parameters()), input.double())
    found = []
    for model in twins(small_net, torch.float32):
        dtypes: list[torch.dtype] = []
        for layer in model:
            layer.register_forward_hook(lambda _, __, output, dtypes=dtypes: dtypes.append(output.dtype))
        with torch.autocast("cpu", dtype):
            output = model(input)
        gradients = torch.autograd.grad(output.float().square().mean(), list(model.parameters()))
        found.append((dtypes, [output.detach(), *gradients]))
    assert found[0][0] == found[1][0]
    assert found[0][0][0] == dtype
    for index, (ours, theirs, truth) in enumerate(zip(found[0][1], found[1][1], exact, strict=True)):
        assert ours.dtype == theirs.dtype
        assert_as_accurate(ours, theirs, truth, str(index))


def test_grad_scaler() -> None:
    """Two steps in float16: the first is too much for float16 and skipped, the second is taken."""
    trained = []
    for model in twins(small_net, torch.float32):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**26, backoff_factor=2.0**-16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before, scales = model[0].weight.detach().clone(), []
        torch.manual_seed(1)
        input = torch.randn(SMALL_INPUT)
        for _ in range(2):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = model(input).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        assert scales == [2.0**10, 2.0**10]
        assert not torch.equal(model[0].weight, before)
        trained.append(model.state_dict())
    torch.testing.assert_close(*trained, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_patches_and_float64(dtype: torch.dtype) -> None:
    unfold, fold, conv = uc.Unfold(3), uc.Fold((6, 5), 3), uc.Conv2d(2, 3, 3, dtype=torch.float64)
    image = torch.randn(SMALL_INPUT)
    with torch.autocast("cpu", dtype):
        assert unfold(image).dtype == fold(unfold(image)).dtype == torch.float32
        assert unfold(image.to(dtype)).dtype == dtype
        assert conv(image.double()).dtype == torch.float64


# --- torch.func -------------------------------------------------------------------------------------------------------


def _loss(model: nn.Module) -> Callable[..., Tensor]:
    return lambda parameters, input: functional_call(model, parameters, (input,)).tanh().square().sum()


def test_functional_call_and_per_sample_gradients() -> None:
    """vmap(grad) of the whole network equals a loop, and the loop of the original."""
    ours, theirs = twins(small_net)
    parameters = {name: p.detach() for name, p in ours.named_parameters()}
    images = torch.randn(SMALL_INPUT, dtype=torch.float64)
    together = vmap(grad(_loss(ours)), in_dims=(None, 0))(parameters, images.unsqueeze(1))
    for model in (ours, theirs):
        singles = [grad(_loss(model))(parameters, image) for image in images.unsqueeze(1)]
        stacked = {name: torch.stack([single[name] for single in singles]) for name in parameters}
        torch.testing.assert_close(together, stacked, rtol=1e-10, atol=1e-10)


def test_ensemble() -> None:
    models = [uc.convert(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.ConvTranspose2d(4, 1, 3))) for _ in range(3)]
    for model in models:
        model.double()
    parameters, buffers = stack_module_state(models)
    images = torch.randn(SMALL_INPUT, dtype=torch.float64)
    together = vmap(lambda p, b, x: functional_call(models[0], (p, b), (x,)), in_dims=(0, 0, None))(
        parameters, buffers, images
    )
    expected = torch.stack([model(images) for model in models])
    torch.testing.assert_close(together, expected, rtol=1e-10, atol=1e-10)
    (ours,) = torch.autograd.grad(together.square().sum(), parameters["0.weight"])
    theirs = torch.autograd.grad(expected.square().sum(), [model[0].weight for model in models])
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=1e-10, atol=1e-10)


# --- as strict as torch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(use_reentrant: bool) -> None:
    ours, _ = twins(small_net)
    input = torch.randn(SMALL_INPUT, dtype=torch.float64, requires_grad=True)
    parameters = [input, *ours.parameters()]

    def gradients(output: Tensor) -> tuple[Tensor, ...]:
        for parameter in parameters:
            parameter.grad = None
        output.square().mean().backward()
        return tuple(parameter.grad for parameter in parameters)

    expected = gradients(ours(input))
    actual = gradients(checkpoint(ours, input, use_reentrant=use_reentrant))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_weight_changed_in_place_before_backward() -> None:
    errors = []
    for model in twins(small_net):
        output = model(torch.randn(SMALL_INPUT, dtype=torch.float64))
        with torch.no_grad():
            model[4].weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation") as raised:
            output.sum().backward()
        errors.append(str(raised.value).partition("; expected version")[2])
    assert errors[0] == errors[1] != ""


def test_deterministic_algorithms_raise_nowhere() -> None:
    ours, _ = twins(small_net)
    input = torch.randn(SMALL_INPUT, dtype=torch.float64)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (results_of(ours, list(ours.parameters()), input) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled", "ignore:Error detected in")
def test_anomaly_mode_names_the_layer() -> None:
    ours, _ = twins(small_net)
    input = torch.randn(SMALL_INPUT, dtype=torch.float64)
    with torch.autograd.detect_anomaly(check_nan=True):
        expected = results_of(ours, list(ours.parameters()), input)
        with torch.no_grad():
            ours[3].weight.fill_(float("nan"))
        with pytest.raises(RuntimeError, match="_ConvInputGradBackward' returned nan values"):
            ours[4](ours[3](input.new_ones(1, 4, 6, 5).requires_grad_())).sum().backward()
    assert all(torch.isfinite(result).all() for result in expected)


def test_saved_tensor_hooks_and_inference_mode() -> None:
    ours, theirs = twins(small_net)
    input = torch.randn(SMALL_INPUT, dtype=torch.float64)
    expected = results_of(ours, list(ours.parameters()), input)
    with torch.autograd.graph.save_on_cpu():
        actual = results_of(ours, list(ours.parameters()), input)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    with torch.inference_mode():
        output = ours(input)
        torch.testing.assert_close(output, theirs(input), rtol=1e-10, atol=1e-10)
        made_there = input.clone()
    assert output.is_inference()
    for module in (uc.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1)):
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            module.double()(made_there)


@pytest.mark.parametrize("transposed", [False, True])
def test_conjugated_and_negated_views(transposed: bool) -> None:
    """Lazy conjugation and negation are seen by our ops as by torch's."""
    name = "conv_transpose2d" if transposed else "conv2d"
    x, w = torch.randn(2, 4, 6, 5, dtype=torch.complex128), torch.randn(4, 4, 3, 2, dtype=torch.complex128)
    views: dict[str, Callable[[Tensor], Any]] = {
        "conj": lambda t: t.conj(),
        "neg": lambda t: torch._neg_view(t),
        "both": lambda t: torch._neg_view(t.conj()),
        "imaginary part of a conjugate": lambda t: t.conj().imag,
    }
    for what, view in views.items():
        results = []
        for function in (getattr(uc, name), getattr(torch, name)):
            leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
            output = function(view(leaves[0]), view(leaves[1]))
            results.append([output.detach(), *torch.autograd.grad(output.abs().square().sum(), leaves)])
        torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-10, msg=what)
    image = x.conj().imag
    assert image.is_neg()
    assert torch.equal(uc.unfold(image, 3), torch.nn.functional.unfold(image, 3))
    columns = torch.nn.functional.unfold(x, 3).conj()
    torch.testing.assert_close(
        uc.fold(columns, (6, 5), 3), torch.nn.functional.fold(columns, (6, 5), 3), rtol=1e-12, atol=1e-12
    )


class Tagged(Tensor):
    """A subclass that passes through torch functions, as users make them."""


def test_subclass_of_tensor_passes_through() -> None:
    ours, theirs = twins(small_net)
    input = torch.randn(SMALL_INPUT, dtype=torch.float64)
    output = ours(input.as_subclass(Tagged))
    assert type(output) is type(theirs(input.as_subclass(Tagged))) is Tagged
    torch.testing.assert_close(output.as_subclass(Tensor), theirs(input), rtol=1e-10, atol=1e-10)
