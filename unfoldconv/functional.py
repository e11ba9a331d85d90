"""Convolution and patches as functions, with the signatures of `torch.nn.functional`.

Where torch has the function, it takes the same arguments and gives the same result. Beyond torch:

* padding may be `'same'` with any stride and for transposed convolution, and a `(low, high)` pair per axis;
* `unfold` and `fold` work in 1-D, 2-D and 3-D and on every dtype; `fold` can average.

Shapes below: N batch, C channels, `*` one number per spatial axis. A missing batch dimension is allowed everywhere.
Sizes, strides, padding and dilation are counted in elements. Refused calls raise `GeometryError`,
`UnsupportedDtypeError` among them, wrong types `TypeError`.
"""

from ._convolution import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from ._patches import (
    fold,
    fold1d,
    fold2d,
    fold3d,
    unfold,
    unfold1d,
    unfold2d,
    unfold3d,
    unfold_transpose,
    unfold_transpose1d,
    unfold_transpose2d,
    unfold_transpose3d,
)

__all__ = [
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "fold",
    "fold1d",
    "fold2d",
    "fold3d",
    "unfold",
    "unfold1d",
    "unfold2d",
    "unfold3d",
    "unfold_transpose",
    "unfold_transpose1d",
    "unfold_transpose2d",
    "unfold_transpose3d",
]
