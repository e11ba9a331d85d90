"""`convert` and the report: which modules are swapped, which are left and why, and what stays the same."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.testing._internal.two_tensor import TwoTensor

import unfoldconv as uc
from convertible import (
    CONVOLUTIONS,
    LAZY,
    Final,
    OwnForward,
    OwnInitialisation,
    OwnStep,
    is_ours,
    make,
    several,
    spy_on_modules,
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return spy_on_modules(monkeypatch)


# --- what is swapped, and what stays ----------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("name", [*CONVOLUTIONS, *LAZY, "Unfold", "Fold"])
def test_every_class_is_swapped_and_computes_the_same(name: str, inplace: bool, calls: list[str]) -> None:
    module, input = make(name)
    module.eval()
    torch.manual_seed(1)
    expected = copy.deepcopy(module)(input)
    converted = uc.convert(module, inplace=inplace)
    assert (converted is module) == inplace
    assert type(converted) is getattr(uc, name)
    assert not converted.training
    for parameter, before in zip(converted.parameters(), module.parameters(), strict=True):
        assert parameter is before
    torch.manual_seed(1)
    torch.testing.assert_close(converted(input), expected, rtol=1e-12, atol=1e-12)
    assert len(calls) == 1
    assert type(converted) is getattr(uc, name.removeprefix("Lazy"))
    assert uc.revert(converted) is converted
    assert type(converted) is getattr(nn, name.removeprefix("Lazy"))
    assert not [attribute for attribute in vars(converted) if "unfoldconv" in attribute]


def test_report() -> None:
    model = several()
    report = uc.conversion_report(uc.convert(model))
    assert [(entry.names, entry.type) for entry in report.swapped] == [
        (("0",), "Conv2d"),
        (("2", "3.2"), "Conv2d"),
        (("3.0",), "ConvTranspose2d"),
        (("4",), "OwnInitialisation"),
    ]
    assert [(entry.names, entry.reason) for entry in report.left] == [(("3.1",), "OwnForward has its own forward")]
    assert repr(report) == (
        "unfoldconv.convert: 4 swapped, 1 left\n"
        "  0: Conv2d, swapped\n"
        "  2, 3.2: Conv2d, swapped\n"
        "  3.0: ConvTranspose2d, swapped\n"
        "  4: OwnInitialisation, swapped\n"
        "  3.1: OwnForward, left: OwnForward has its own forward"
    )
    with pytest.raises(ValueError, match=r"must be what unfoldconv\.convert returned, but got a Sequential"):
        uc.conversion_report(model)
    assert str(uc.conversion_report(uc.convert(nn.Unfold(2)))).endswith("(the model itself): Unfold, swapped")


def test_report_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="unfoldconv"):
        uc.convert(several())
    assert caplog.messages == [str(uc.conversion_report(uc.convert(several())))]


def test_copy_shares_every_tensor_and_nothing_else() -> None:
    model = several()
    model.append(nn.BatchNorm2d(2)).double()
    classes = [type(module) for module in model.modules()]
    converted = uc.convert(model)
    assert [type(module) for module in model.modules()] == classes
    assert not any("unfoldconv" in attribute for module in model.modules() for attribute in vars(module))
    for ours, theirs in zip(converted.modules(), model.modules(), strict=True):
        assert ours is not theirs
    for name in ("named_parameters", "named_buffers"):
        pairs = zip(getattr(converted, name)(), getattr(model, name)(), strict=True)
        for (our_name, ours), (their_name, theirs) in pairs:
            assert our_name == their_name
            assert ours is theirs
    assert converted[2] is converted[3][2]
    input = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    model.eval()
    converted.eval()
    torch.testing.assert_close(converted(input), model(input), rtol=1e-12, atol=1e-12)


def test_subclasses_without_a_forward_stay_what_they_are(calls: list[str]) -> None:
    module = uc.convert(OwnInitialisation(3, 2, 1), inplace=True)
    assert isinstance(module, OwnInitialisation)
    assert isinstance(module, uc.Conv2d)
    assert torch.equal(module(torch.ones(1, 3, 1, 1)), torch.full((1, 2, 1, 1), 3.0))
    assert calls == ["conv2d"]
    assert type(uc.convert(OwnInitialisation(3, 2, 1))) is type(module)
    assert type(uc.revert(module)) is OwnInitialisation


HOOKS = [
    "register_forward_pre_hook",
    "register_forward_hook",
    "register_full_backward_pre_hook",
    "register_full_backward_hook",
    "register_state_dict_pre_hook",
    "register_load_state_dict_post_hook",
]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("inplace", [True, False])
def test_hooks_stay(hook: str, inplace: bool) -> None:
    seen: list[nn.Module] = []
    module = nn.Conv2d(1, 1, 1)
    handle = getattr(module, hook)(lambda module, *_: seen.append(module))
    converted = uc.convert(module, inplace=inplace)

    def run() -> None:
        converted(torch.ones(1, 1, 2, 2, requires_grad=True)).sum().backward()
        converted.load_state_dict(converted.state_dict())

    run()
    assert seen == [converted]
    if inplace:
        handle.remove()
        run()
        assert seen == [converted]


def test_bound_methods_of_the_model_follow_a_copy() -> None:
    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)
            self.unregistered = [self.conv]
            self.conv.register_forward_hook(self.record)
            self.seen: list[nn.Module] = []

        def record(self, module: nn.Module, *_: object) -> None:
            self.seen.append(module)

        def forward(self, input: Tensor) -> Tensor:
            return self.unregistered[0](input)

    model = Recorder()
    converted = uc.convert(model)
    converted(torch.ones(1, 1, 1, 1))
    assert converted.seen == [converted.conv]
    assert not model.seen


def test_requires_grad_and_dtype_stay() -> None:
    model = several().to(torch.bfloat16)
    model[0].weight.requires_grad_(False)
    converted = uc.convert(model, inplace=True)
    assert not converted[0].weight.requires_grad
    assert converted[0].bias.requires_grad
    assert converted(torch.ones(1, 3, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    meta = uc.convert(nn.Conv2d(3, 4, 3, device="meta"))
    assert meta(torch.empty(2, 3, 5, 5, device="meta")).shape == (2, 4, 3, 3)


def test_optimizer_made_before_trains_both() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 1, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    converted = uc.convert(model)
    before = model[0].weight.clone()
    converted(torch.randn(2, 1, 7, 7)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)
    assert converted[0].weight is model[0].weight


# --- what is left -----------------------------------------------------------------------------------------------------


def _patched(attribute: str) -> nn.Module:
    module = nn.Conv2d(2, 2, 1)
    setattr(module, attribute, getattr(module, attribute))
    return module


LEFT: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: OwnForward(2, 2, 1), "OwnForward has its own forward"),
    (lambda: OwnStep(2, 2, 1), "OwnStep has its own _conv_forward"),
    (lambda: parametrizations.weight_norm(OwnForward(2, 2, 1)), "OwnForward has its own forward"),
    (lambda: _patched("forward"), "forward was replaced on this module"),
    (lambda: _patched("_conv_forward"), "_conv_forward was replaced on this module"),
    (lambda: Final(2, 2, 1), "no subclass of its class can be made (no heirs)"),
    (lambda: uc.Conv2d(2, 2, 1), "it is unfoldconv's already"),
    (lambda: uc.convert(OwnInitialisation(2, 2, 1)), "it is unfoldconv's already"),
]


@pytest.mark.parametrize(("make_module", "reason"), LEFT, ids=[reason for _, reason in LEFT])
def test_left_with_the_reason(make_module: Callable[[], nn.Module], reason: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), make_module())
    cls, attributes = type(model[1]), dict(vars(model[1]))
    report = uc.conversion_report(uc.convert(model, inplace=True))
    assert [entry.names for entry in report.swapped] == [("0",)]
    assert [(entry.names, entry.type, entry.reason) for entry in report.left] == [(("1",), cls.__name__, reason)]
    assert type(model[1]) is cls
    assert vars(model[1]) == attributes


def test_foreign_weights_are_left() -> None:
    sparse = nn.Conv2d(2, 2, 1)
    sparse.weight = nn.Parameter(sparse.weight.detach().to_sparse())
    report = uc.conversion_report(uc.convert(sparse))
    assert report.left[0].reason == "its weight has layout torch.sparse_coo"
    wrapped = nn.Conv2d(2, 2, 1)
    wrapped.weight = nn.Parameter(TwoTensor(wrapped.weight.detach(), wrapped.weight.detach()))  # as DTensor is one
    report = uc.conversion_report(uc.convert(nn.utils.parametrizations.weight_norm(wrapped), inplace=True))
    assert report.left[0].reason == "its parametrizations.weight.original0 is a TwoTensor"


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")
def test_torchscript_is_left() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(1, 1, 1)))
    report = uc.conversion_report(uc.convert(nn.Sequential(scripted), inplace=True))
    assert [(entry.type, entry.reason) for entry in report.left] == [("Conv2d", "it is compiled by TorchScript")]


def test_other_modules_are_not_mentioned() -> None:
    report = uc.conversion_report(uc.convert(nn.Sequential(nn.Linear(1, 1), nn.MaxPool2d(2))))
    assert not report.swapped
    assert not report.left


# --- include and exclude ----------------------------------------------------------------------------------------------

SELECTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"include": "0"}, ["0"]),
    ({"include": "3"}, ["2", "3.0"]),
    ({"include": "3.*"}, ["2", "3.0"]),
    ({"include": ["0", "3.[0]"]}, ["0", "3.0"]),
    ({"include": "*"}, ["0", "2", "3.0", "4"]),
    ({"include": nn.ConvTranspose2d}, ["3.0"]),
    ({"include": (OwnInitialisation, "0")}, ["0", "4"]),
    ({"include": lambda name, module: getattr(module, "kernel_size", None) == (3, 3)}, ["0", "2"]),
    ({"include": []}, []),
    ({"exclude": "3"}, ["0", "4"]),
    ({"exclude": ["3.2", nn.ConvTranspose2d]}, ["0", "4"]),
    ({"exclude": "nowhere"}, ["0", "2", "3.0", "4"]),
    ({"include": nn.Conv2d, "exclude": lambda name, module: name == "0"}, ["2", "4"]),
    ({"exclude": nn.Module}, []),
]


@pytest.mark.parametrize(("arguments", "expected"), SELECTIONS)
def test_selection(arguments: dict[str, Any], expected: list[str]) -> None:
    """The shared module, 2 and 3.2, is meant by both of its names."""
    model = uc.convert(several(), **arguments)
    report = uc.conversion_report(model)
    assert [entry.names[0] for entry in report.swapped] == expected
    assert [name for name, module in model.named_modules() if is_ours(module)] == expected
    reasons = {entry.names[0]: entry.reason for entry in report.left}
    assert set(reasons.values()) <= {"not included", "excluded", "OwnForward has its own forward"}


def test_wrong_selection_is_refused() -> None:
    with pytest.raises(ValueError, match="name in include must match a module of the model, but got 'layer9'"):
        uc.convert(several(), include=["0", "layer9"])
    for argument in ("include", "exclude"):
        with pytest.raises(TypeError, match=f"{argument} must be names, classes or functions .*, but got 3"):
            uc.convert(several(), **{argument: 3})
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, but got list"):
        uc.convert([nn.Conv2d(1, 1, 1)])  # type: ignore[type-var]
