"""`convert`, `revert` and the report: which modules are swapped, what stays the same, and that nothing is half done."""

import copy
import io
import logging
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.testing._internal.two_tensor import TwoTensor

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


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
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


def _model() -> nn.Sequential:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    inner = nn.Sequential(nn.ConvTranspose2d(4, 4, 2, stride=2), OwnForward(4, 4, 1), shared)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), shared, inner, OwnInitialisation(4, 2, 1)).double()


def test_report() -> None:
    model = _model()
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
        uc.convert(_model())
    assert caplog.messages == [str(uc.conversion_report(uc.convert(_model())))]


def test_copy_shares_every_tensor_and_nothing_else() -> None:
    model = _model()
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
    model = _model().to(torch.bfloat16)
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


# --- weight_norm, spectral_norm, parametrize --------------------------------------------------------------------------

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
    (lambda: nn.Conv2d(2, 2, 1, dtype=torch.complex32), "its weight has dtype torch.complex32"),
]


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature", "ignore:ComplexHalf support is experimental")
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
    model = uc.convert(_model(), **arguments)
    report = uc.conversion_report(model)
    assert [entry.names[0] for entry in report.swapped] == expected
    assert [name for name, module in model.named_modules() if is_ours(module)] == expected
    reasons = {entry.names[0]: entry.reason for entry in report.left}
    assert set(reasons.values()) <= {"not included", "excluded", "OwnForward has its own forward"}


def test_wrong_selection_is_refused() -> None:
    with pytest.raises(ValueError, match="name in include must match a module of the model, but got 'layer9'"):
        uc.convert(_model(), include=["0", "layer9"])
    for argument in ("include", "exclude"):
        with pytest.raises(TypeError, match=f"{argument} must be names, classes or functions .*, but got 3"):
            uc.convert(_model(), **{argument: 3})
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, but got list"):
        uc.convert([nn.Conv2d(1, 1, 1)])  # type: ignore[type-var]


# --- nothing half done ------------------------------------------------------------------------------------------------


def _state(model: nn.Module) -> list[tuple[type, list[str]]]:
    return [(type(module), sorted(vars(module))) for module in model.modules()]


def test_error_in_a_predicate_changes_nothing() -> None:
    def bad(name: str, module: nn.Module) -> bool:
        if name == "4":
            raise ZeroDivisionError
        return True

    model = _model()
    before = _state(model)
    with pytest.raises(ZeroDivisionError):
        uc.convert(model, include=bad, inplace=True)
    assert _state(model) == before


def test_error_in_the_midst_of_swapping_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python itself refuses to give the fourth module a class whose instances are laid out in another way."""

    class Odd(nn.Conv2d):
        __slots__ = ("room",)

    module = sys.modules["unfoldconv.convert"]  # under this name the package has the function
    for function, change in (("converted_class", uc.convert), ("reverted_class", uc.revert)):
        model = _model()
        if change is uc.revert:
            uc.convert(model, inplace=True)
        before = _state(model)
        with monkeypatch.context() as patch:
            patch.setattr(module, function, lambda m: Odd if isinstance(m, OwnInitialisation) else nn.LazyConv2d)
            with pytest.raises(TypeError, match="layout differs"):
                change(model, **({"inplace": True} if change is uc.convert else {}))
        assert _state(model) == before


def test_model_that_cannot_be_copied() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    model.generator = (number for number in range(3))
    with pytest.raises(TypeError, match="generator") as error:
        uc.convert(model)
    assert "inplace=True" in error.value.__notes__[0]
    assert type(uc.convert(model, inplace=True)[0]) is uc.Conv2d


# --- revert -----------------------------------------------------------------------------------------------------------


def test_revert_gives_back_what_was_there() -> None:
    model = _model()
    model.append(uc.Conv2d(2, 2, 3, stride=2, padding="same"))
    before = [(module, type(module), dict(vars(module))) for module in model.modules()]
    assert uc.revert(uc.convert(model, inplace=True)) is model
    for module, (was, cls, attributes) in zip(model.modules(), before, strict=True):
        assert module is was
        assert type(module) is cls
        assert vars(module) == attributes
    with pytest.raises(ValueError, match="that is not"):
        uc.conversion_report(model)


def test_revert_of_a_part_and_of_a_whole_with_converted_parts() -> None:
    model = uc.convert(_model(), inplace=True)
    uc.revert(model[3])
    assert [is_ours(model[index]) for index in (0, 2, 4)] == [True, False, True]
    whole = nn.ModuleList([model])
    uc.revert(whole)
    assert not any(is_ours(module) for module in whole.modules())


def test_converting_twice() -> None:
    model = uc.convert(_model(), include="0", inplace=True)
    uc.convert(model, inplace=True)
    assert uc.conversion_report(model).left[0].reason == "it is unfoldconv's already"
    assert is_ours(model[4])
    uc.revert(model)
    assert not any(is_ours(module) for module in model.modules())


# --- copies and files -------------------------------------------------------------------------------------------------


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), _saved])
def test_copies_of_a_converted_model(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = uc.convert(_model())
    twin = copied(model)
    assert [type(module) for module in twin.modules()] == [type(module) for module in model.modules()]
    assert uc.conversion_report(twin) == uc.conversion_report(model)
    input = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(twin(input), model(input))
    if copied is not copy.copy:  # which shares the modules
        uc.revert(twin)
        assert type(twin[4]) is OwnInitialisation
        assert is_ours(model[4])


def test_state_dict_round_trip() -> None:
    model, other = uc.convert(_model()), _model()
    other.load_state_dict(model.state_dict())
    again = uc.convert(_model())
    again.load_state_dict(other.state_dict())
    input = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(again(input), model(input))
    torch.testing.assert_close(other(input), model(input), rtol=1e-12, atol=1e-12)


# --- what traces models -----------------------------------------------------------------------------------------------


def test_modules_of_a_traced_graph(calls: list[str]) -> None:
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()))
    converted = uc.convert(graph)
    input = torch.randn(1, 1, 2, 2)
    torch.testing.assert_close(converted(input), graph(input))
    assert calls == ["conv2d"]


def test_compiled_model(calls: list[str]) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    compiled = torch.compile(model, backend="eager")
    converted = uc.convert(compiled)
    input = torch.randn(1, 1, 4, 4)
    torch.testing.assert_close(converted(input), model(input))
    assert type(model[0]) is nn.Conv2d
    assert [entry.names for entry in uc.conversion_report(converted).swapped] == [("_orig_mod.0",)]
    torch._dynamo.reset()
    with torch.compiler.set_stance("force_eager"):
        converted(input)
    assert calls[-1] == "conv2d"


def test_deferred_initialisation() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(1, 2, 3), OwnInitialisation(2, 2, 1))
    converted = uc.convert(model, inplace=True).to_empty(device="cpu")
    for module in converted:
        module.reset_parameters()
    assert torch.equal(converted[1].weight, torch.ones(2, 2, 1, 1))
    assert converted(torch.ones(1, 1, 4, 4)).isfinite().all()


@pytest.mark.parametrize("change", [uc.convert, uc.revert])
def test_compiled_code_notices(change: Callable[..., nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU())
    if change is uc.revert:
        uc.convert(model, inplace=True)
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph.code)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        compiled(torch.randn(1, 1, 4, 4))
        change(model, **({"inplace": True} if change is uc.convert else {}))
        compiled(torch.randn(1, 1, 4, 4))
        compiled(torch.randn(1, 1, 4, 4))
    assert len(graphs) == 2
    assert ["unfoldconv" in code for code in graphs] == [change is uc.revert, change is uc.convert]
    torch._dynamo.reset()
