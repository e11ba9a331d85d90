"""Whole converted networks under torch.compile: forward and backward, what is generated and what is promised of it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch._inductor.config
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

import unfoldconv as uc
from benchmarks.networks import resnet
from networks import NETWORKS, output_of

channels_last = torch.channels_last


pytestmark = pytest.mark.usefixtures("fresh_inductor")


def train_step(model: Callable[[Tensor], Tensor], parameters: list[nn.Parameter], input: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of every parameter."""
    input = input.detach()
    torch._dynamo.mark_dynamic(input, 0)  # and fail if the graph is made for one batch size after all
    output = model(input.requires_grad_())
    return [output.detach(), *torch.autograd.grad(output.square().mean(), [input, *parameters])]


# --- the code that Inductor generates ---------------------------------------------------------------------------------


def test_inductor_trains_a_resnet() -> None:
    """Compiled once, forward and backward, for every size of the batch; channels_last images, as for speed."""
    torch.manual_seed(0)
    ours = uc.convert(resnet((1,), bottleneck=False, width=4, classes=5)).to(memory_format=channels_last)
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled = torch.compile(ours, fullgraph=True, backend=counter)
    parameters = list(ours.parameters())
    for batch in (3, 2, 5):
        input = torch.randn(batch, 3, 32, 32).contiguous(memory_format=channels_last)
        actual, expected = (train_step(model, parameters, input) for model in (compiled, ours))
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


# --- what the fake kernels promise ------------------------------------------------------------------------------------


class Promised(torch.fx.Interpreter):
    """Runs a graph and compares what our ops return with what their fake kernels said while it was traced."""

    def __init__(self, graph: torch.fx.GraphModule, seen: list[str]) -> None:
        super().__init__(graph)
        self.seen = seen

    def run_node(self, node: torch.fx.Node) -> Any:
        if getattr(node.target, "namespace", "") == "unfoldconv":
            # torch's own promises are not always kept (layer_norm's backward pass): generated code keeps them.
            for argument in node.all_input_nodes:
                promised = argument.meta["val"]
                if self.env[argument].stride() != promised.stride():
                    arranged = torch.empty_strided(promised.shape, promised.stride(), dtype=promised.dtype)
                    self.env[argument] = arranged.copy_(self.env[argument])
        result = super().run_node(node)
        if getattr(node.target, "namespace", "") == "unfoldconv":
            promised = node.meta["val"]
            said = (tuple(promised.shape), promised.stride(), promised.dtype)
            assert (tuple(result.shape), result.stride(), result.dtype) == said, f"{node.target}"
            self.seen.append(node.target.__name__.removesuffix(".default"))
        return result


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels_last": lambda t: t.contiguous(memory_format=channels_last if t.dim() == 4 else torch.channels_last_3d),
    "permuted": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "expanded": lambda t: t[:1].expand_as(t),
}


def of_every_kind() -> nn.Module:
    """Dense, strided, depthwise, pointwise and transposed convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, padding="same", groups=8),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.Conv2d(8, 6, 1),
        nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2),
        nn.Tanh(),
        nn.Conv2d(4, 2, (1, 3), dilation=2),
    )


def published(name: str) -> Callable[[], nn.Module]:
    network = next(network for network in NETWORKS if network.name == name)
    return lambda: network.build(torch.float32)[0]


TRACED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "every kind": (of_every_kind, (2, 3, 9, 12)),
    "resnet": (published("resnet"), (3, 3, 40, 36)),
    "videomae": (published("videomae"), (2, 4, 3, 16, 16)),
}


@pytest.mark.parametrize(
    ("name", "layout"),
    [*[("every kind", layout) for layout in LAYOUTS], ("resnet", "channels_last"), ("videomae", "channels_last")],
)
def test_strides_are_as_promised_in_both_passes(name: str, layout: str) -> None:
    """Generated code reads every result, of the backward pass as well, by the strides that a fake kernel gave it."""
    make, shape = TRACED[name]
    ours = uc.convert(make(), inplace=True)
    if layout == "channels_last":
        for parameter in ours.parameters():
            if parameter.dim() in (4, 5):
                parameter.data = LAYOUTS[layout](parameter.data)
    input = LAYOUTS[layout](torch.randn(shape)).requires_grad_()
    output_of(ours, (input,))  # transformers installs hooks at the first call
    seen: list[str] = []

    def checked(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        return make_boxed_func(Promised(graph, seen).run)

    backend = aot_autograd(fw_compiler=checked, bw_compiler=checked)
    compiled = torch.compile(lambda input: output_of(ours, (input,)), fullgraph=True, backend=backend)
    compiled(input).square().mean().backward()
    # A transposed convolution is the input gradient of one, whose gradients are the other two ops.
    layers = len(uc.conversion_report(ours).swapped)
    assert Counter(seen) == {"conv": layers, "conv_input_grad": layers, "conv_weight_grad": layers}
