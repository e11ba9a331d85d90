"""What every public function does around its work."""

import functools
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ._geometry import GeometryError, translated

P = ParamSpec("P")


def public(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Lets `__torch_function__` have the call first, and shows the compiled code's refusals as GeometryError."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        operands = (*args, *kwargs.values()) if kwargs else args
        if has_torch_function(operands):
            return handle_torch_function(call, operands, *args, **kwargs)
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            raise translated(error) from None

    return call


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, but got {type(value).__name__}")


def batched(name: str, tensor: Tensor, dim: int) -> tuple[Tensor, bool]:
    """The tensor with a batch dimension, `dim` in all, and whether it lacked one."""
    if not isinstance(tensor, Tensor):
        check_tensor(name, tensor)
    if tensor.dim() == dim:
        return tensor, False
    if tensor.dim() == dim - 1:
        return tensor.unsqueeze(0), True
    raise GeometryError(
        f"{name} must have {dim - 1} (unbatched) or {dim} (batched) dimensions (Expected {dim - 1}D (unbatched) or "
        f"{dim}D (batched) input), but got input of size: {list(tensor.shape)}"
    )


def foreign(tensor: Tensor) -> str | None:
    """What about a tensor the ops do not know, though torch's own may, if anything."""
    if is_traceable_wrapper_subclass(tensor):
        return f"is a {type(tensor).__name__}"
    if tensor.device.type not in ("cpu", "cuda", "meta"):
        return f"is on {tensor.device}"
    if tensor.layout != torch.strided:
        return f"has layout {tensor.layout}"
    if tensor.is_quantized:
        return f"has dtype {tensor.dtype}"
    return None
