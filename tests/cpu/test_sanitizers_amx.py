"""The tests of the AMX kernels on a library with sanitizers."""

import pytest
import torch

from amx.build import SOURCES, build_modelled
from sanitized import SANITIZED, assert_tests_pass, library


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="all but the tiles of these kernels needs a processor with AVX-512",
)
def test_amx_kernels_pass_under_the_sanitizers() -> None:
    """On a model of their tile instructions (test_amx.py): it reads and writes what the instructions would.

    The situations of every op add no path and no tile to those that are made for the engines.
    """
    path, objects = library()
    modelled = build_modelled(path.parent / "amx", objects, None, SANITIZED)
    assert_tests_pass(
        SOURCES / "engines.py", selection="values_of_paths_and_tiles or small_workspaces", library=modelled
    )
