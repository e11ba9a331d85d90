"""Calls of torch's own convolution and patch functions, computed by ours for the length of a `with` block."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from . import functional
from ._calls import foreign
from ._geometry import GeometryError

__all__ = ["TorchOverride", "override_torch"]


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Tensor:
    """torch.convolution, which all of torch's convolutions end in."""
    name = f"conv{'_transpose' * transposed}{weight.dim() - 2}d"
    extra = {"output_padding": output_padding} if transposed else {}
    convolve: Callable[..., Tensor] = getattr(functional, name)
    return convolve(input, weight, bias, stride, padding, dilation=dilation, groups=groups, **extra)


_TENSORS_OWN = Tensor.__torch_function__.__func__  # type: ignore[attr-defined]

_OURS_OF: dict[Any, Callable[..., Tensor]] = {
    F.conv1d: functional.conv1d,
    F.conv2d: functional.conv2d,
    F.conv3d: functional.conv3d,
    F.conv_transpose1d: functional.conv_transpose1d,
    F.conv_transpose2d: functional.conv_transpose2d,
    F.conv_transpose3d: functional.conv_transpose3d,
    F.unfold: functional.unfold,
    F.fold: functional.fold,
    torch.convolution: _convolution,
}


class TorchOverride(TorchFunctionMode):
    """What `override_torch` gives: the context manager, and the counts of the calls inside.

    Attributes:
        taken: How many calls of each function, by its name in `torch.nn.functional`, unfoldconv computed.
        left: How many calls torch computed, or refused, by the function's name and the reason.
    """

    def __init__(self) -> None:
        super().__init__()
        self.taken: Counter[str] = Counter()
        self.left: Counter[tuple[str, str]] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        ours = _OURS_OF.get(func)
        if ours is None:
            return func(*args, **kwargs)
        reason = _obstacle(types, (*args, *kwargs.values()))
        if reason is None:
            try:
                result = ours(*args, **kwargs)
            except (GeometryError, TypeError) as error:
                reason = str(error)
        # Compiled code would have to be compiled anew for every count.
        if not torch.compiler.is_dynamo_compiling():
            if reason is None:
                self.taken[func.__name__] += 1
            else:
                self.left[func.__name__, reason] += 1
        return result if reason is None else func(*args, **kwargs)

    def __repr__(self) -> str:
        lines = [f"unfoldconv.override_torch: {self.taken.total()} calls taken, {self.left.total()} left to torch"]
        lines += [f"{name}: {count} taken" for name, count in self.taken.items()]
        lines += [f"{name}: {count} left: {reason}" for (name, reason), count in self.left.items()]
        return "\n  ".join(lines)


def _obstacle(types: Any, arguments: tuple[Any, ...]) -> str | None:
    """Why ours cannot take the call, if so. Whether sizes and dtypes fit, the function itself will say."""
    for cls in types:
        if cls not in (Tensor, Parameter) and getattr(cls.__torch_function__, "__func__", None) is not _TENSORS_OWN:
            return f"{cls.__name__} has its own __torch_function__"
    for argument in arguments:
        if isinstance(argument, Tensor) and (reason := foreign(argument)):
            return f"a tensor {reason}"
    return None


def override_torch() -> TorchOverride:
    """Lets unfoldconv compute calls of torch's convolution and patch functions, in this thread, within a `with` block.

    Taken are `torch.nn.functional.conv1d/2d/3d`, `conv_transpose1d/2d/3d` (also as `torch.conv2d` and so on),
    `torch.convolution`, `unfold` and `fold`, from whatever code, so also from modules of torch.nn. A call that
    unfoldconv refuses goes to torch, which computes it or says in its own words what is wrong. What only unfoldconv
    takes, such as `padding="same"` with a stride, works inside the block. For a model made of modules `convert` costs
    less: the override sees every call of a torch function.

    Returns:
        A context manager, which counts: `taken[name]` are the calls that unfoldconv computed, `left[name, reason]`
        those that it did not. `print` of it shows both. Calls in code compiled by torch.compile are taken, but not
        counted.

    Example:
        >>> import torch, unfoldconv as uc
        >>> with uc.override_torch() as calls:
        ...     output = torch.nn.Conv2d(3, 8, 3)(torch.ones(1, 3, 8, 8))
        >>> calls
        unfoldconv.override_torch: 1 calls taken, 0 left to torch
          conv2d: 1 taken
    """
    return TorchOverride()
