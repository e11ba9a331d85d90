"""Examples of the docstrings run, every public name has one or refers to one, and files that are named are there."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import unfoldconv as uc

ROOT = Path(uc.__file__).resolve().parents[1]
MODULES = [name for _, name, _ in pkgutil.walk_packages(uc.__path__, "unfoldconv.") if name != "unfoldconv._C"]
PUBLIC_MODULES = [uc, uc.functional, uc.modules, uc.jit, uc.onnx, uc.reference]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), verbose=False)
    assert result.failed == 0


NAMES = [
    pytest.param(module, name, id=f"{module.__name__}.{name}")
    for module in PUBLIC_MODULES
    for name in module.__all__
    if not inspect.ismodule(getattr(module, name))
]


def examples_in(text: str | None) -> str:
    return "".join(example.source for example in doctest.DocTestParser().get_examples(text or ""))


def has_example(module: ModuleType, name: str) -> bool:
    text = inspect.getdoc(getattr(module, name, None)) or ""
    if examples_in(text) or re.search(rf"\b{name}\b", examples_in(module.__doc__)):
        return True
    return any(has_example(module, other) for other in re.findall(r"`(\w+)`", text) if other in module.__all__)


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_public_name_has_an_example(module: ModuleType, name: str) -> None:
    """Its own, one of the module's docstring, or that of a name that its docstring refers to."""
    assert has_example(module, name)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d", "unfold", "fold", "unfold_transpose"])
def test_help_tells_shapes_defaults_and_errors(name: str) -> None:
    function = getattr(uc, name)
    text = inspect.getdoc(function)
    for section in ("Args:", "Returns:\n    Shape (N, ", "Raises:\n    GeometryError: ", "Example:"):
        assert section in text, section
    arguments = text.partition("Args:\n")[2].partition("\n\n")[0]
    told = re.split(r"\n    (?=\w)", "\n" + arguments)[1:]
    for entry, parameter in zip(told, inspect.signature(function).parameters.values(), strict=True):
        assert entry.startswith(f"{parameter.name}: ")
        if parameter.default is not inspect.Parameter.empty:
            assert re.search(rf"Default: {re.escape(repr(parameter.default))}\.$", entry), entry


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_files_that_are_named_are_there(document: str) -> None:
    text = (ROOT / document).read_text()
    named = set(re.findall(r"(?<![\w/.-])(?:csrc|unfoldconv|tests|benchmarks|examples|docs)/[\w/.-]*\w", text))
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
