"""Faults planted in copies of the CUDA sources, and how a test shows that the emulator finds one."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .kernels import MOST, SCHEDULES, set_schedule


@dataclass(frozen=True)
class PlantedFault:
    """An edit of a source, which takes effect while the emulator is told to have the fault of that name."""

    name: str
    file: str  # its name, which is the only one in csrc
    text: str
    replacement: str  # {fault} is an expression that says whether the fault is in effect

    @property
    def edit(self) -> tuple[str, str]:
        return self.text, self.replacement.replace("{fault}", f'emulator::planted("{self.name}")')


def assert_found(
    emulated: Any,
    fault: PlantedFault,
    message: str,
    check: Callable[[], None],
    schedules: Sequence[tuple[str, int]] = SCHEDULES,
) -> None:
    """Checks that all is well without the fault, and that with it some order of threads gives the right message.

    Other tests show in every order that all is well with the sources as they are.
    """
    set_schedule(emulated, *schedules[0])
    emulated.set_fault("")
    check()
    emulated.set_fault(fault.name)
    found = ""
    for order in schedules:
        set_schedule(emulated, *order)
        try:
            check()
        except (AssertionError, RuntimeError) as error:
            found = str(error)
            break
    assert found, "no order of threads shows it"
    assert re.search(message, found), found


# --- faults of single kernels ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault(PlantedFault):
    """A fault of a single kernel, and what shows it."""

    check: Callable[[Any, Any], None]
    to_format: Callable[[Tensor], Tensor]  # of the tensors to check with
    message: str


GUARD = "must not be touched"
VALUES = "the values differ"
BARRIER = "__syncthreads();"
NO_BARRIER = "if (!{fault}) __syncthreads();"
plain = Tensor.contiguous


def ignored(condition: str) -> tuple[str, str]:
    return condition, f"({condition} || {{fault}})"


def check_found(emulated: Any, fault: Fault) -> None:
    emulated.set_limits(index=MOST, blocks=2)  # more than one tile for each block
    assert_found(emulated, fault, fault.message, lambda: fault.check(emulated, fault.to_format))
