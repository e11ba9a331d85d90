"""The choice of modules by name, class or function: the arguments `include` and `exclude` of `convert`."""

import fnmatch
from collections.abc import Callable, Iterable
from typing import TypeAlias

from torch import nn

Selector: TypeAlias = str | type[nn.Module] | Callable[[str, nn.Module], bool]
Selection: TypeAlias = Selector | Iterable[Selector] | None


def selectors(argument: str, selection: Selection) -> tuple[Selector, ...] | None:
    if selection is None:
        return None
    several = isinstance(selection, Iterable) and not isinstance(selection, str | type)
    selectors = tuple(selection) if several else (selection,)  # type: ignore[arg-type]
    for selector in selectors:
        if not (isinstance(selector, str) or callable(selector)):
            raise TypeError(f"{argument} must be names, classes or functions of (name, module), but got {selector!r}")
    return selectors  # type: ignore[return-value]


def _named(pattern: str, name: str) -> bool:
    """Whether the pattern is for this name, or for a part of the model that the name is in."""
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:count]), pattern) for count in range(1, len(parts) + 1))


def is_selected(selectors: tuple[Selector, ...], names: tuple[str, ...], module: nn.Module) -> bool:
    for selector in selectors:
        if isinstance(selector, type):
            if isinstance(module, selector):
                return True
        elif isinstance(selector, str):
            if any(_named(selector, name) for name in names):
                return True
        elif any(selector(name, module) for name in names):
            return True
    return False


def check_matched(selectors: tuple[Selector, ...], names: dict[nn.Module, tuple[str, ...]]) -> None:
    """A name that matches nothing is a slip of the pen."""
    for selector in selectors:
        if isinstance(selector, str) and not any(_named(selector, name) for all_ in names.values() for name in all_):
            raise ValueError(f"a name in include must match a module of the model, but got {selector!r}")
