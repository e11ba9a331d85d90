"""What the compiled library was built with."""

import torch

from ._binding import NAMESPACE


def build_info() -> dict[str, str | None]:
    """Says what the compiled library was built with and where it runs.

    Returns:
        A dictionary with

        - `version`: of unfoldconv;
        - `torch`: the version that is running;
        - `torch_target`: the oldest version of torch that the library works with;
        - `cuda`: the version of the CUDA toolkit that built the CUDA kernels, None where there are none;
        - `architectures`: of the CUDA kernels, written as in TORCH_CUDA_ARCH_LIST and separated by commas, or None;
        - `isa`: the instruction set that the CPU kernels use on this processor;
        - `baseline`: the instruction set that any processor must have to load the library.

    Example:
        >>> import unfoldconv as uc
        >>> uc.build_info()["torch_target"]
        '2.11'
    """
    facts = dict(fact.split("=", 1) for fact in getattr(torch.ops, NAMESPACE).build_info().split(";"))
    return {"torch": torch.__version__} | {name: value or None for name, value in facts.items()}
