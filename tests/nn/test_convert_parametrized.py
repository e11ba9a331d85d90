"""Conversion of modules with weight_norm, spectral_norm and other parametrizations."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import unfoldconv as uc
from convertible import OwnInitialisation, make, spy_on_modules


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return spy_on_modules(monkeypatch)


NORMS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
}
old_norms = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
every_norm = pytest.mark.parametrize("norm", NORMS)


def _normed(norm: str, name: str) -> tuple[nn.Module, Tensor]:
    module, input = make(name)
    return NORMS[norm](module), input


def _results(module: nn.Module, input: Tensor) -> dict[str, Tensor]:
    output = module(input)
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(output.square().sum(), list(parameters.values()))
    return {"output": output, **dict(zip(parameters, gradients, strict=True))}


@old_norms
@every_norm
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "ConvTranspose2d"])
def test_normed_weights(norm: str, name: str, inplace: bool, calls: list[str]) -> None:
    """In training mode, where spectral_norm steps its buffers; a deep copy would not take the old weight_norm."""
    torch.manual_seed(1)
    expected, input = _normed(norm, name)
    torch.manual_seed(1)
    module, _ = _normed(norm, name)
    torch.testing.assert_close(module(input), expected(input), rtol=0, atol=0)
    converted = uc.convert(module, inplace=inplace)
    assert not calls
    torch.testing.assert_close(_results(converted, input), _results(expected, input), rtol=1e-10, atol=1e-10)
    assert len(calls) == 1
    assert list(converted.state_dict()) == list(expected.state_dict())
    assert [repr(module) for module in converted.modules()] == [repr(module) for module in expected.modules()]
    uc.revert(converted)
    torch.testing.assert_close(_results(converted, input), _results(expected, input), rtol=1e-10, atol=1e-10)
    assert len(calls) == 1


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_parametrization_is_not_computed_by_converting(norm: str) -> None:
    module, _ = _normed(norm, "Conv2d")
    computed: list[int] = []
    module.parametrizations.weight.register_forward_hook(lambda *_: computed.append(1))
    uc.revert(uc.convert(module, inplace=True))
    assert not computed


def test_parametrizations_come_and_go() -> None:
    """Put on and taken off before and after, in any order; the class is what it would be without the conversion."""
    module = parametrizations.weight_norm(nn.Conv2d(2, 2, 1))
    uc.convert(module, inplace=True)
    assert type(module).__bases__ == (uc.Conv2d,)
    parametrize.remove_parametrizations(module, "weight")
    assert type(module) is uc.Conv2d
    parametrizations.orthogonal(module)
    module(torch.ones(1, 2, 1, 1))
    twin = copy.deepcopy(module)
    for converted in (module, twin):
        uc.revert(converted)
        assert parametrize.is_parametrized(converted, "weight")
        assert type(converted).__bases__ == (nn.Conv2d,)
        parametrize.remove_parametrizations(converted, "weight")
        assert type(converted) is nn.Conv2d


def test_parametrized_subclass() -> None:
    module = uc.convert(parametrizations.weight_norm(OwnInitialisation(2, 2, 1)), inplace=True)
    assert isinstance(module, OwnInitialisation)
    assert isinstance(module, uc.Conv2d)
    parametrize.remove_parametrizations(uc.revert(module), "weight")
    assert type(module) is OwnInitialisation
    with pytest.raises(AttributeError):  # the weight that is left is a parameter again
        _ = module.parametrizations


def test_inside_of_a_parametrization() -> None:
    class Smooth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blur = nn.Conv1d(1, 1, 3, padding=1)

        def forward(self, weight: Tensor) -> Tensor:
            return self.blur(weight.flatten().unsqueeze(0)).reshape(weight.shape)

    linear = nn.Linear(3, 4)
    parametrize.register_parametrization(linear, "weight", Smooth())
    converted = uc.convert(linear)
    assert type(converted.parametrizations.weight[0].blur) is uc.Conv1d
    torch.testing.assert_close(converted.weight, linear.weight)
