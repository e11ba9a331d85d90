"""The instruction sets of the CPU engines that this processor has, and those that tests run."""

import os

import torch

import unfoldconv as uc

# In the order in which each has all of those before it.
ISAS = ("generic", "avx2", "avx512", "avx512_bf16", "amx")


def set_isa(name: str) -> None:
    torch.ops.unfoldconv.set_isa(name)


def _available() -> tuple[str, ...]:
    names: list[str] = []
    for name in ISAS:
        try:
            set_isa(name)
        except RuntimeError:
            break  # nor those after it
        names.append(name)
    return tuple(names)


USED = uc.build_info()["isa"]
AVAILABLE = _available()
set_isa(USED)

_BEST_ALONE = os.environ.get("UNFOLDCONV_TEST_ISAS") == "best"


def tested(*names: str) -> tuple[str, ...]:
    """Those of the names that the processor has, or where UNFOLDCONV_TEST_ISAS=best the best one of them."""
    found = tuple(name for name in AVAILABLE if name in names)
    return found[-1:] if _BEST_ALONE else found
