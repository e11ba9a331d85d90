"""Which class a module of torch.nn gets when it is converted, and which one it gets back.

A module is swapped by giving the same object another class, as torch's lazy modules, parametrizations and fully_shard
do, and not by putting a new object in its place. All that a module has stays with it then, without being copied: its
parameters (which optimizers and shardings hold), hooks and their handles, the attributes of the old weight_norm and
spectral_norm, training mode, and every reference to it: from several parents, from a list that no parent registers, a
bound method, or whoever holds the root. state_dict, deepcopy and pickle see a module of the new class, and compiled
code notices, because Dynamo guards the types of modules.

Three kinds of classes are swapped:

* those of torch.nn, for our namesake;
* a subclass without a forward of its own, for a subclass of both: `isinstance` still finds the user's class;
* the class that torch.nn.utils.parametrize makes for each module it is used on, for a copy that stands on the swapped
  base. Its first base has to be the class without parametrizations: that is how torch takes them off again.
"""

import copyreg
from typing import Any

from torch import nn

from . import modules

_OURS_OF: dict[type[nn.Module], type[nn.Module]] = {
    getattr(nn, name): getattr(modules, name) for name in modules.__all__ if hasattr(nn, name)
}
_TORCHS_OF = {ours: theirs for theirs, ours in _OURS_OF.items()}

CONVERTIBLE = tuple(_OURS_OF)
"""The classes of torch.nn that have a namesake here."""

# What a module computes is in these methods. Whoever overrides one wants something else than the base class does.
_COMPUTING = ("forward", "_conv_forward", "_output_padding", "__call__", "_call_impl", "_wrapped_call_impl")


def own_computation(module: nn.Module) -> str | None:
    """Which of its methods does not compute as in torch.nn, if any, in words."""
    for name in _COMPUTING:
        if name in vars(module):
            return f"{name} was replaced on this module"
    for cls in type(module).__mro__:
        if cls in _OURS_OF:
            return None
        for name in _COMPUTING:
            if name in vars(cls):
                return f"{cls.__name__} has its own {name}"
    return None


def converted_class(module: nn.Module) -> type[nn.Module]:
    """The class that makes a module of torch.nn, without an own computation, one of ours."""
    return _converted(type(module), _is_parametrized(module))


def reverted_class(module: nn.Module) -> type[nn.Module]:
    """The class that the module would have without its conversion."""
    return _reverted(type(module), _is_parametrized(module))


def _is_parametrized(module: nn.Module) -> bool:
    return "parametrizations" in module._modules


def _is_injected(cls: type) -> bool:
    """Whether torch.nn.utils.parametrize made the class."""
    return len(cls.__bases__) == 1 and cls.__name__ == f"Parametrized{cls.__base__.__name__}"  # type: ignore[union-attr]


def _converted(cls: type[nn.Module], parametrized: bool) -> type[nn.Module]:
    if cls in _OURS_OF:
        return _OURS_OF[cls]
    if parametrized and _is_injected(cls):
        return _moved(cls, _converted(cls.__bases__[0], False))
    return _joined(cls)


def _reverted(cls: type[nn.Module], parametrized: bool) -> type[nn.Module]:
    if cls in _TORCHS_OF:
        return _TORCHS_OF[cls]
    if parametrized and _is_injected(cls):
        return _moved(cls, _reverted(cls.__bases__[0], False))
    return cls.__bases__[0]  # of a joined class


def _moved(cls: type[nn.Module], base: type[nn.Module]) -> type[nn.Module]:
    """A copy of a class of torch.nn.utils.parametrize on another base."""
    namespace = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{base.__name__}", (base,), namespace)


_joined_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _joined(cls: type[nn.Module]) -> type[nn.Module]:
    """A subclass of a user's class and of ours, which comes before torch's among the bases; the same each time."""
    if cls in _joined_classes:
        return _joined_classes[cls]
    ours = next(_OURS_OF[base] for base in cls.__mro__ if base in _OURS_OF)

    def reduce(self: Any, protocol: Any) -> Any:
        function, arguments, *rest = super(joined, self).__reduce_ex__(protocol)
        if function is copyreg.__newobj__:  # type: ignore[attr-defined]  # else the user's class pickles in its own way
            return _empty, (cls, *arguments[1:]), *rest
        return (function, arguments, *rest)

    namespace = {"__module__": cls.__module__, "__doc__": cls.__doc__, "__reduce_ex__": reduce}
    joined: Any = type(cls.__name__, (cls, ours), namespace)
    # Two threads may come here at once: the first one's class is everybody's.
    return _joined_classes.setdefault(cls, joined)


def _empty(cls: type[nn.Module], *arguments: Any) -> nn.Module:
    """What pickle fills: pickle finds classes by name, and a joined class has the name of the user's."""
    joined = _joined(cls)
    module: nn.Module = joined.__new__(joined, *arguments)
    return module
