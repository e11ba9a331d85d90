"""Convolution by unfolding, as a compiled PyTorch extension.

`unfold` (im2col), `fold` (col2im), convolutions and transposed convolutions in 1-D, 2-D and 3-D, with gradients of
every order, on CPU and CUDA. The functions and modules take the arguments of their namesakes in torch, and more; see
`unfoldconv.functional` and `unfoldconv.modules`.
"""

from . import distributed, functional, jit, modules, onnx, reference
from ._build import VERSION
from ._build_info import build_info
from ._explain import explain
from ._geometry import GeometryError, UnsupportedDtypeError
from ._settings import benchmark, workspace_limit
from .convert import ConversionReport, conversion_report, convert, revert
from .functional import *  # noqa: F403
from .modules import *  # noqa: F403
from .override import TorchOverride, override_torch

__version__ = VERSION

__all__ = [
    "ConversionReport",
    "GeometryError",
    "TorchOverride",
    "UnsupportedDtypeError",
    "benchmark",
    "build_info",
    "distributed",
    "conversion_report",
    "convert",
    "explain",
    "functional",
    "jit",
    "modules",
    "onnx",
    "override_torch",
    "reference",
    "revert",
    "workspace_limit",
    *functional.__all__,
    *modules.__all__,
]
