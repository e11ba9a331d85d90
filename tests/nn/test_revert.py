"""`revert`, and what a conversion survives: errors in its midst, copies, files, tracing and compiling."""

import copy
import io
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import unfoldconv as uc
from convertible import OwnInitialisation, is_ours, several, spy_on_modules


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return spy_on_modules(monkeypatch)


# --- nothing half done ------------------------------------------------------------------------------------------------


def _state(model: nn.Module) -> list[tuple[type, list[str]]]:
    return [(type(module), sorted(vars(module))) for module in model.modules()]


def test_error_in_a_predicate_changes_nothing() -> None:
    def bad(name: str, module: nn.Module) -> bool:
        if name == "4":
            raise ZeroDivisionError
        return True

    model = several()
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
        model = several()
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
    model = several()
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
    model = uc.convert(several(), inplace=True)
    uc.revert(model[3])
    assert [is_ours(model[index]) for index in (0, 2, 4)] == [True, False, True]
    whole = nn.ModuleList([model])
    uc.revert(whole)
    assert not any(is_ours(module) for module in whole.modules())


def test_converting_twice() -> None:
    model = uc.convert(several(), include="0", inplace=True)
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
    model = uc.convert(several())
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
    model, other = uc.convert(several()), several()
    other.load_state_dict(model.state_dict())
    again = uc.convert(several())
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
