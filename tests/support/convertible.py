"""Modules for the tests of conversion: torch's own, subclasses that can be swapped or not, and a model of several."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unfoldconv as uc
from unfoldconv import functional

RANKS = (1, 2, 3)
CONVOLUTIONS = [f"{kind}{rank}d" for kind in ("Conv", "ConvTranspose") for rank in RANKS]
LAZY = [f"Lazy{name}" for name in CONVOLUTIONS]


class OwnForward(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class OwnStep(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight.abs(), bias)


class OwnInitialisation(nn.Conv2d):
    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)


class Final(nn.Conv2d):
    def __init_subclass__(cls) -> None:
        raise RuntimeError("no heirs")


def make(name: str) -> tuple[nn.Module, Tensor]:
    """A module of torch.nn and an input for it, both float64."""
    if name == "Unfold":
        return nn.Unfold((3, 2), 1, 1, 2), torch.randn(2, 4, 7, 6, dtype=torch.float64)
    if name == "Fold":
        return nn.Fold((7, 6), (3, 2), 1, 1, 2), torch.randn(2, 4 * 6, 16, dtype=torch.float64)
    rank = int(name[-2])
    channels = () if name.startswith("Lazy") else (4,)
    module = getattr(nn, name)(*channels, 6, 3, stride=2, padding=1, groups=2, dtype=torch.float64)
    return module, torch.randn(2, 4, *(7, 6, 5)[:rank], dtype=torch.float64)


def is_ours(module: nn.Module) -> bool:
    return any(cls.__module__ == "unfoldconv.modules" for cls in type(module).__mro__)


def spy_on_modules(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of our functions that modules called."""
    called: list[str] = []

    def spy(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            called.append(name)
            return function(*args, **kwargs)

        return call

    for name in CONVOLUTIONS:
        function = "conv" + ("_transpose" if "Transpose" in name else "") + name[-2:]
        monkeypatch.setattr(getattr(uc, name), "_function", staticmethod(spy(function, getattr(functional, function))))
    for function in ("unfold", "fold"):
        monkeypatch.setattr(functional, function, spy(function, getattr(functional, function)))
    return called


def several() -> nn.Sequential:
    """A model of these: one module is there twice, one cannot be swapped."""
    shared = nn.Conv2d(4, 4, 3, padding=1)
    inner = nn.Sequential(nn.ConvTranspose2d(4, 4, 2, stride=2), OwnForward(4, 4, 1), shared)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), shared, inner, OwnInitialisation(4, 2, 1)).double()
