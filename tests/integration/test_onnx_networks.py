"""Converted networks in ONNX, computed by onnxruntime: the results of torch's own network."""

from collections import Counter

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import unfoldconv as uc
from networks import NETWORKS, output_of

# The diffusers autoencoder has the old weight_norm.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm")


class FirstOutput(nn.Module):
    """A network that returns its first tensor alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        return output_of(self.network, inputs)


def randomise_averages(model: nn.Module) -> None:
    """Batch norm starts with averages that change nothing."""
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)


# Bottlenecks with batch norm; transposed convolutions in 2-D; in 1-D, with weight_norm.
@pytest.mark.parametrize("name", ["resnet", "dpt", "oobleck_vae"])
def test_network(name: str) -> None:
    """Each convolution is one node, however many images there are."""
    network = next(network for network in NETWORKS if network.name == name)
    model, inputs = network.build(torch.float32)
    randomise_averages(model)
    theirs = FirstOutput(model.eval())
    ours = uc.convert(theirs)
    assert len(uc.conversion_report(ours).swapped) == sum(network.swapped.values())
    called: Counter[bool] = Counter()  # transposed or not; not every network calls all its layers
    for module in ours.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)):
            module.register_forward_hook(lambda module, *_: called.update([module.transposed]))
    with torch.no_grad():
        ours(*inputs)
        calls = Counter(called)
        program = torch.onnx.export(
            ours,
            tuple(tensor.repeat(2, *[1] * (tensor.dim() - 1)) for tensor in inputs),
            dynamo=True,
            verbose=False,
            dynamic_shapes=(tuple({0: torch.export.Dim("batch", min=1, max=99)} for _ in inputs),),
            custom_translation_table=uc.onnx.translations(),
        )
    assert program is not None
    assert not program.model.functions
    assert all(node.domain == "" for node in program.model.graph)
    ops = [node.op_type for node in program.model.graph]
    assert (ops.count("Conv"), ops.count("ConvTranspose")) == (calls[False], calls[True])
    assert calls[False] > 10
    assert calls[True] == sum(count for kind, count in network.swapped.items() if "Transpose" in kind)

    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for images in (inputs, tuple(torch.cat([tensor, -tensor, 2 * tensor]) for tensor in inputs)):
        feed = {slot.name: tensor.numpy() for slot, tensor in zip(session.get_inputs(), images, strict=True)}
        (result,) = session.run(None, feed)
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(result), theirs(*images), rtol=1e-4, atol=1e-5)
