"""What surrounds a call in torch: modes, hooks, checkpoints, subclasses. Each sees ours as it sees torch's own."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import unfoldconv as uc


def image(**options: Any) -> Tensor:
    return torch.randn(2, 4, 6, 5, generator=torch.manual_seed(1), **options)


def weight(**options: Any) -> Tensor:
    return torch.randn(6, 4, 3, 2, generator=torch.manual_seed(2), **options)


def output() -> Tensor:
    return torch.randn(2, 6, 4, 4, generator=torch.manual_seed(3))


def columns() -> Tensor:
    return torch.randn(2, 24, 16, generator=torch.manual_seed(4))


def layers_of(functions: ModuleType) -> ModuleType:
    return nn if functions is F else uc.modules


class Tagged(Tensor):
    """A subclass that lets every call pass."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(function, types, args, kwargs or {})


# Each takes the module of functions, ours or torch's, and gives something to compare or raises.


def deterministic_algorithms(f: ModuleType) -> list[Tensor]:
    x, w, y, c = image(), weight(), output(), columns()
    for tensor in (x, w, y, c):
        tensor.requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        results = [f.conv2d(x, w), f.conv_transpose2d(y, w), f.unfold(x, (3, 2)), f.fold(c, (6, 5), (3, 2))]
        return list(torch.autograd.grad([result.square().sum() for result in results], [x, w, y, c]))
    finally:
        torch.use_deterministic_algorithms(False)


def inference_mode(f: ModuleType) -> object:
    with torch.inference_mode():
        x, y = image(), f.conv2d(image(), weight(requires_grad=True))
    return y, y.is_inference(), y.requires_grad, f.conv2d(x, weight()).is_inference()


def inference_tensor_that_would_be_saved(f: ModuleType) -> object:
    with torch.inference_mode():
        x = image()
    return f.conv2d(x, weight(requires_grad=True))


def inference_tensor_that_is_not_saved(f: ModuleType) -> object:
    with torch.inference_mode():
        w = weight()
    x = image(requires_grad=True)
    return f.conv2d(image(), w), torch.autograd.grad(f.unfold(x, 2).sum(), x)


def saved_tensor_hooks(f: ModuleType) -> object:
    packed = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tuple(tensor.shape))
        return tensor.double() + 1

    x, w = image(requires_grad=True), weight(requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: (tensor - 1).float()):
        y = f.conv2d(x, w, padding=1)
    return sorted(packed), torch.autograd.grad(y.sum(), (x, w))


def saved_on_cpu(f: ModuleType) -> object:
    w = weight(requires_grad=True)
    with torch.autograd.graph.save_on_cpu():
        y = f.conv_transpose2d(output(), w)
    return torch.autograd.grad(y.sum(), w)


def anomaly(f: ModuleType) -> object:
    x = image(requires_grad=True)
    with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
        f.conv2d(x, weight()).sqrt().sum().backward()
    return x.grad


def weight_changed_in_place(f: ModuleType) -> object:
    x, w = image(requires_grad=True), weight() * 1
    y = f.conv2d(x, w)
    w.add_(1)
    return torch.autograd.grad(y.sum(), x)


def weight_of_a_transpose_changed_in_place(f: ModuleType) -> object:
    y, w = output().requires_grad_(), weight() * 1
    x = f.conv_transpose2d(y, w)
    w.mul_(2)
    return torch.autograd.grad(x.sum(), y)


def what_is_not_saved_changed_in_place(f: ModuleType) -> object:
    x, w = image(), weight(requires_grad=True)
    b = torch.zeros(6)
    y = f.conv2d(x, w, b)
    b.add_(1)
    return torch.autograd.grad(y.sum(), w)


def backward_twice(f: ModuleType) -> object:
    loss = f.conv2d(image(), weight(requires_grad=True)).sum()
    loss.backward()
    return loss.backward()


def integers_that_require_gradients(f: ModuleType) -> object:
    return f.conv2d(image().long().requires_grad_(), weight().long())


def result_changed_in_place(f: ModuleType) -> object:
    w = weight(requires_grad=True)
    return torch.autograd.grad(f.conv2d(image(), w).relu_().sum() + f.conv2d(image()[0], w).relu_().sum(), w)


def retained_gradient(f: ModuleType) -> object:
    y = f.conv2d(image(requires_grad=True), weight())
    y.retain_grad()
    y.square().sum().backward()
    return y.grad, y.is_leaf


def gradient_of_another_dtype(f: ModuleType) -> object:
    w = weight(requires_grad=True)
    y = f.conv2d(image(), w)
    y.backward(torch.ones_like(y).double())
    return w.grad


def gradients_in_batches(f: ModuleType) -> object:
    w = weight(requires_grad=True)
    y = f.conv2d(image(), w)
    grads = torch.randn(3, *y.shape, generator=torch.manual_seed(5))
    return torch.autograd.grad(y, w, grads, is_grads_batched=True)


def vectorised_jacobian(f: ModuleType) -> object:
    def total(w: Tensor) -> Tensor:
        return f.conv2d(image(), w).sum((0, 2, 3))

    return torch.autograd.functional.jacobian(total, weight(), vectorize=True)


def reentrant_checkpoint(f: ModuleType) -> object:
    x, w = image(requires_grad=True), weight(requires_grad=True)
    checkpoint(lambda x: f.conv2d(x, w).tanh(), x, use_reentrant=True).sum().backward()
    return x.grad, w.grad


def checkpoint_of_layers(f: ModuleType) -> object:
    x, w = image(requires_grad=True), weight(requires_grad=True)

    def layers(x: Tensor) -> Tensor:
        return f.conv_transpose2d(f.conv2d(x, w).tanh(), w)

    checkpoint(layers, x, use_reentrant=False).square().sum().backward()
    return x.grad, w.grad


def checkpoint_in_a_graph(f: ModuleType) -> object:
    x, w = image(requires_grad=True), weight(requires_grad=True)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def layer(x: Tensor) -> Tensor:
        return checkpoint(lambda x: f.conv2d(x, w).tanh(), x, use_reentrant=False)

    layer(x).sum().backward()
    return x.grad, w.grad


def module_hooks(f: ModuleType) -> object:
    torch.manual_seed(6)
    layer, seen = layers_of(f).Conv2d(4, 6, 3), []
    layer.register_full_backward_hook(lambda module, inputs, outputs: seen.append((inputs[0], outputs[0])))
    layer.register_full_backward_pre_hook(lambda module, outputs: seen.append(outputs[0]))
    layer.register_forward_hook(lambda module, inputs, output: output * 2)
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    x = image(requires_grad=True)
    layer(x).square().sum().backward()
    return seen, x.grad


def made_on_meta(f: ModuleType) -> object:
    layers = layers_of(f)
    with torch.device("meta"):
        net = nn.Sequential(layers.Conv2d(4, 6, 3), layers.ConvTranspose2d(6, 4, 3), layers.Unfold(2))
    shape = net(image(device="cpu").to("meta")).shape
    net = net.to_empty(device="cpu")
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.1)
    return shape, net(image())


def fake_tensors(f: ModuleType) -> object:
    with FakeTensorMode():
        x, w = torch.empty(2, 4, 6, 5), torch.empty(6, 4, 3, 2)
        results = f.conv2d(x, w), f.unfold(x, 2), f.fold(f.unfold(x, (3, 2)), (6, 5), (3, 2))
    return [(type(result), result.shape, result.stride()) for result in results]


def conjugated_and_negated_views(f: ModuleType) -> object:
    x, w = (torch.randn(t.shape, dtype=torch.cfloat, generator=torch.manual_seed(7)) for t in (image(), weight()))
    w.requires_grad_()
    y = f.conv2d(x.conj(), w.conj())
    imaginary = f.conv2d(x.conj().imag, w.detach().conj().imag)
    return y, y.is_conj(), imaginary, imaginary.is_neg(), torch.autograd.grad(y.abs().sum(), w)


def subclasses(f: ModuleType) -> object:
    x, w = image().as_subclass(Tagged), weight().as_subclass(Tagged)
    results = (f.conv2d(x, weight()), f.conv2d(image(), w), f.unfold(x, 2), f.conv_transpose2d(output(), weight=w))
    return results, [type(result) for result in results]


def parameters_and_buffers(f: ModuleType) -> object:
    return [type(f.conv2d(nn.Buffer(image()), nn.Parameter(weight())))]


def symbolic_numbers(f: ModuleType) -> object:
    """Numbers of the window that torch.compile makes symbols of, and one that comes out of a tensor."""

    @torch.compile(backend="aot_eager", dynamic=True, fullgraph=True)
    def numbers(x: Tensor, w: Tensor, number: int) -> tuple[Tensor, Tensor]:
        return f.conv2d(x, w, stride=number, padding=number), f.unfold(x, number)

    @torch.compile(backend="aot_eager")
    def scalar(x: Tensor, w: Tensor, number: Tensor) -> Tensor:
        return f.conv2d(x, w, stride=number.item())

    results = [numbers(image(), weight(), number) for number in (2, 3, 1)]
    return results, scalar(image(), weight(), torch.tensor(2))


def graph_of_functions(f: ModuleType) -> object:
    class Net(nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return f.conv2d(x, w, padding=1)

    graph = torch.fx.symbolic_trace(Net())
    return [node.op for node in graph.graph.nodes], graph(image(), weight())


SITUATIONS = [
    deterministic_algorithms,
    inference_mode,
    inference_tensor_that_would_be_saved,
    inference_tensor_that_is_not_saved,
    saved_tensor_hooks,
    saved_on_cpu,
    anomaly,
    weight_changed_in_place,
    weight_of_a_transpose_changed_in_place,
    what_is_not_saved_changed_in_place,
    backward_twice,
    integers_that_require_gradients,
    result_changed_in_place,
    retained_gradient,
    gradient_of_another_dtype,
    gradients_in_batches,
    vectorised_jacobian,
    reentrant_checkpoint,
    checkpoint_of_layers,
    checkpoint_in_a_graph,
    module_hooks,
    made_on_meta,
    fake_tensors,
    conjugated_and_negated_views,
    subclasses,
    parameters_and_buffers,
    symbolic_numbers,
    graph_of_functions,
]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def outcome(situation: Callable[[ModuleType], object], functions: ModuleType) -> tuple[list[object], str]:
    """The parts of the result, or the error in torch's words without the numbers of the graph's nodes."""
    try:
        leaves, structure = torch.utils._pytree.tree_flatten(situation(functions))
    except RuntimeError as error:
        return [], str(error).partition(", which is output")[0]
    return leaves, str(structure)


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.__name__)
def test_as_torch(situation: Callable[[ModuleType], object]) -> None:
    (ours, what), (theirs, expected) = outcome(situation, uc.functional), outcome(situation, F)
    assert what == expected
    for actual, wanted in zip(ours, theirs, strict=True):
        if isinstance(wanted, Tensor):
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)
        else:
            assert actual == wanted
