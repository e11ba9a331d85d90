"""Swapping the convolutions and patches of a model of torch.nn for ours, and back."""

import copy
import logging
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from . import modules
from ._calls import foreign
from ._selection import Selection, check_matched, is_selected, selectors
from ._swap import CONVERTIBLE, converted_class, own_computation, reverted_class

__all__ = ["ConversionReport", "Entry", "conversion_report", "convert", "revert"]

Module = TypeVar("Module", bound=nn.Module)

# What is remembered on the modules themselves, so that it goes with them through deepcopy and pickle.
_MARK = "_unfoldconv_converted"  # on each module that was swapped
_REPORT = "_unfoldconv_report"  # on the root

_logger = logging.getLogger("unfoldconv")


@dataclass(frozen=True)
class Entry:
    """What `convert` did about one module.

    Attributes:
        names: All its names in the model; the model itself is "".
        type: The name of the class that it had.
        reason: Why it was left as it was; empty if it was swapped.
    """

    names: tuple[str, ...]
    type: str
    reason: str = ""

    def __str__(self) -> str:
        names = ", ".join(name or "(the model itself)" for name in self.names)
        return f"{names}: {self.type}, " + (f"left: {self.reason}" if self.reason else "swapped")


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` swapped and what it left. `str` of it is a line each.

    Attributes:
        swapped: The modules that are computed by unfoldconv now, in the order of `model.modules()`.
        left: Modules of the classes that `convert` is about (and of their subclasses) that it did not swap.
    """

    swapped: tuple[Entry, ...]
    left: tuple[Entry, ...]

    def __str__(self) -> str:
        head = f"unfoldconv.convert: {len(self.swapped)} swapped, {len(self.left)} left"
        return "\n  ".join([head, *map(str, (*self.swapped, *self.left))])

    __repr__ = __str__


def convert(model: Module, *, include: Selection = None, exclude: Selection = None, inplace: bool = False) -> Module:
    """Lets unfoldconv compute what a model's convolution, `Unfold` and `Fold` modules compute.

    Swapped are `torch.nn.Conv1d/2d/3d`, `ConvTranspose1d/2d/3d`, their lazy forms, `Unfold` and `Fold`, wherever they
    are in the model, the model itself and the insides of parametrizations included, and subclasses of them that have no
    forward of their own. Nothing else about a module changes: it keeps its parameters, buffers, hooks, attributes,
    training mode and names, and is still an instance of the class that it was. `conversion_report` tells what was
    swapped, what was left and why; the logger `unfoldconv` gets the same at level INFO.

    Convert a model before `fully_shard`, whose parameters are sharded tensors. Before or after `torch.compile`, DDP,
    weight_norm, spectral_norm, and making an optimizer does not matter.

    Args:
        model: Any module.
        include: Which modules to swap; None for all that can be. A name as in `model.named_modules()`, with the wild
            cards of `fnmatch` ("encoder.*.conv?"; "*" matches dots too), for the module of that name and all within
            it; or a class; or a function of (name, module) that returns whether; or several of these, of which one
            has to match. A module that has several names is meant by each of them.
        exclude: Which of them to leave, in the same forms.
        inplace: Whether `model` itself is changed and returned. If not, the result is a copy of it like
            `copy.deepcopy`'s, except that it shares all parameters and buffers with `model`, which stays as it was. An
            optimizer of either trains both.

    Returns:
        The converted model.

    Raises:
        TypeError: `model` is no module, or `include` or `exclude` is none of the above.
        ValueError: A name in `include` matches no module.
        Exception: What copying the model, or a function in `include` or `exclude`, raises. The model is as it was.

    Example:
        >>> import torch, unfoldconv as uc
        >>> model = uc.convert(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()))
        >>> uc.conversion_report(model)
        unfoldconv.convert: 1 swapped, 0 left
          0: Conv2d, swapped
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    included, excluded = selectors("include", include), selectors("exclude", exclude)
    if not inplace:
        model = _sharing_copy(model)
    names = _names(model)
    check_matched(included or (), names)

    swaps: list[tuple[nn.Module, type[nn.Module]]] = []
    swapped: list[Entry] = []
    left: list[Entry] = []
    for module in model.modules():
        if not _is_concerned(module):
            continue
        kind = _type_name(module)
        if included is not None and not is_selected(included, names[module], module):
            reason: str | None = "not included"
        elif excluded is not None and is_selected(excluded, names[module], module):
            reason = "excluded"
        else:
            reason = _obstacle(module)
        if reason is None:
            try:
                swaps.append((module, converted_class(module)))
            except Exception as error:  # the user's class may have its own ideas of subclasses
                reason = f"no subclass of its class can be made ({error})"
        if reason is None:
            swapped.append(Entry(names[module], kind))
        else:
            left.append(Entry(names[module], kind, reason))

    report = ConversionReport(tuple(swapped), tuple(left))
    _give_classes(swaps)
    for module, _ in swaps:
        vars(module)[_MARK] = True
    vars(model)[_REPORT] = report
    _logger.info("%s", report)
    return model


def revert(model: Module) -> Module:
    """Undoes `convert`, on the model itself: every module that it swapped computes by torch again.

    Modules that were made as unfoldconv's stay what they are. What happened to the model meanwhile, training or new
    parametrizations, stays as well.

    Args:
        model: A converted model, a part of it, a copy of it, or a model that has one as a part.

    Returns:
        `model`.

    Example:
        >>> import torch, unfoldconv as uc
        >>> type(uc.revert(uc.convert(torch.nn.Unfold(3))))
        <class 'torch.nn.modules.fold.Unfold'>
    """
    marked = [module for module in model.modules() if _MARK in vars(module)]
    _give_classes([(module, reverted_class(module)) for module in marked])
    for module in marked:
        del vars(module)[_MARK]
    for module in model.modules():
        vars(module).pop(_REPORT, None)
    return model


def conversion_report(model: nn.Module) -> ConversionReport:
    """What the last `convert` of this model swapped, and what it left and why.

    Args:
        model: What `convert` returned, or a copy of it.

    Raises:
        ValueError: The model was not converted.
    """
    report: ConversionReport | None = vars(model).get(_REPORT)
    if report is None:
        raise ValueError(
            f"model must be what unfoldconv.convert returned, but got a {type(model).__name__} that is not"
        )
    return report


def _sharing_copy(model: Module) -> Module:
    """A deep copy, but for the tensors that modules have as parameters, buffers or (old weight_norm) attributes."""
    tensors = [
        value
        for module in model.modules()
        for values in (module._parameters, module._buffers, vars(module))
        for value in values.values()
        if isinstance(value, Tensor)
    ]
    try:
        return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    except Exception as error:
        error.add_note("unfoldconv.convert copies the structure of the model, unless it is called with inplace=True")
        raise


def _names(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    names: dict[nn.Module, tuple[str, ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names[module] = (*names.get(module, ()), name)
    return names


def _is_concerned(module: nn.Module) -> bool:
    return isinstance(module, CONVERTIBLE) or (
        isinstance(module, torch.jit.ScriptModule)
        and getattr(module, "original_name", None) in {cls.__name__ for cls in CONVERTIBLE}
    )


def _type_name(module: nn.Module) -> str:
    return str(module.original_name) if isinstance(module, torch.jit.ScriptModule) else type(module).__name__


def _obstacle(module: nn.Module) -> str | None:
    """Why a module cannot be swapped, if it cannot."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled by TorchScript"
    if _MARK in vars(module) or isinstance(module, _OURS):
        return "it is unfoldconv's already"
    if reason := own_computation(module):
        return reason
    for name, parameter in module.named_parameters():  # those below parametrizations too, none of which is computed
        if reason := foreign(parameter):
            return f"its {name} {reason}"
    return None


_OURS = tuple(getattr(modules, cls.__name__) for cls in CONVERTIBLE)


def _give_classes(swaps: list[tuple[nn.Module, type[nn.Module]]]) -> None:
    """Gives each module its class, or none of them."""
    before = [(module, type(module)) for module, _ in swaps]
    try:
        for module, cls in swaps:
            object.__setattr__(module, "__class__", cls)  # a user's __setattr__ has no say in it
    except BaseException:
        for module, cls in before:
            object.__setattr__(module, "__class__", cls)
        raise
