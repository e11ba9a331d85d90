"""Published networks, converted: the same output, loss and gradients, the same training, the same files."""

import copy
import io
import pickle
import re
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import unfoldconv as uc
from compare import assert_as_accurate
from networks import NETWORKS, Network, output_of

every_network = pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)

# diffusers casts its models itself and says so; the old weight_norm is what its autoencoder has.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm")


def results_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Output, loss, and the gradient of every parameter."""
    model.zero_grad()
    output = output_of(model, inputs)
    target = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    loss = (output - target).square().mean()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach(), "loss": loss.detach(), **gradients}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Within 1e-10, of the largest number of all where that is below 1, for some networks' gradients are tiny."""
    largest = max(tensor.abs().max().item() for name, tensor in expected.items() if name not in ("output", "loss"))
    assert largest > 1e-5
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10 * min(largest, 1.0))


def converted(network: Network, dtype: torch.dtype = torch.float64) -> nn.Module:
    model, _ = network.build(dtype)
    return uc.convert(model, inplace=True)


@every_network
def test_results_in_float64(network: Network) -> None:
    model, inputs = network.build()
    ours = converted(network)
    report = uc.conversion_report(ours)
    assert Counter(entry.type for entry in report.swapped) == network.swapped
    assert not report.left
    expected = results_of(model, inputs)
    assert len(expected) > 10
    assert_same(results_of(ours, inputs), expected)
    for (name, buffer), theirs in zip(ours.named_buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(buffer, theirs, rtol=1e-10, atol=1e-10, msg=name)
    # A copy that shares the parameters computes the same; and back again it is torch's, bit for bit.
    shared = uc.convert(model)
    assert_same(results_of(shared, inputs), expected)
    again, back = results_of(model, inputs), results_of(uc.revert(shared), inputs)
    assert all(torch.equal(back[name], again[name]) for name in again)


@every_network
def test_results_in_float32(network: Network) -> None:
    model, inputs = network.build(torch.float32)
    exact = results_of(*network.build())
    expected = results_of(model, inputs)
    for name, result in results_of(converted(network, torch.float32), inputs).items():
        assert_as_accurate(result, expected[name], exact[name], name)


@every_network
def test_ten_steps_of_training(network: Network) -> None:
    trained = []
    for model in (network.build()[0], converted(network)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        losses = []
        for _ in range(10):
            losses.append(results_of(model, network.build()[1])["loss"])
            optimizer.step()
        assert losses[-1] < losses[0]
        trained.append({"losses": torch.stack(losses), **model.state_dict()})
    assert_same(trained[1], trained[0])


@every_network
def test_state_dict_goes_both_ways(network: Network) -> None:
    model, inputs = network.build()
    other, _ = network.build(seed=1)
    expected = results_of(model, inputs)
    state = copy.deepcopy(model.state_dict())
    ours = uc.convert(other, inplace=True)
    assert list(ours.state_dict()) == list(state)
    ours.load_state_dict(state)
    model, _ = network.build(seed=1)
    model.load_state_dict(ours.state_dict())
    ours.eval()
    model.eval()
    reference = network.build()[0].eval()
    reference.load_state_dict(state)
    expected = output_of(reference, inputs)
    assert torch.equal(output_of(model, inputs), expected)
    torch.testing.assert_close(output_of(ours, inputs), expected, rtol=1e-10, atol=1e-10)


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model)), "torch.save": _saved}


@pytest.mark.parametrize("copied", COPIES)
@every_network
def test_copies(network: Network, copied: str) -> None:
    """Where the original can be copied so can the converted one; the old weight_norm and parametrizations cannot."""
    make: Callable[[nn.Module], nn.Module] = COPIES[copied]
    model, inputs = network.build()
    ours = converted(network)
    try:
        make(model)
    except RuntimeError as error:
        with pytest.raises(RuntimeError, match=f"^{re.escape(str(error))}$"):
            make(ours)
        return
    twin = make(ours)
    assert uc.conversion_report(twin) == uc.conversion_report(ours)
    assert [type(module) for module in twin.modules()] == [type(module) for module in ours.modules()]
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in ours.parameters()}
    with torch.no_grad():
        assert torch.equal(output_of(twin, inputs), output_of(ours, inputs))
