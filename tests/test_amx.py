"""The AMX kernels, whose tile instructions a model in plain C++ executes: few machines have them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unfoldconv import _build

ROOT = Path(__file__).resolve().parent.parent
EMULATOR = ROOT / "tests" / "emulator"
DEFINITIONS = {"UNFOLDCONV_AMX_MODEL": f'"{EMULATOR / "amx_model.h"}"'}


@pytest.fixture(scope="module")
def library() -> Path:
    """This library with the model, from the objects of the installed one but for the two files that differ."""
    folder = ROOT / "build" / "amx"
    objects, installed = folder / "objects", ROOT / "build" / "objects"
    if installed.is_dir():
        shutil.copytree(installed, objects, dirs_exist_ok=True, ignore=shutil.ignore_patterns("isa.cpp.*", "isa_amx.cpp.*", "*.lock"))
    toolkit = _build.select_toolkit(default=True)
    library = folder / "modelled.so"
    _build.build_library(
        ROOT / "csrc", library, objects, version=_build.VERSION, toolkit=toolkit, definitions=DEFINITIONS
    )
    return library


def test_engines_on_modelled_tiles(library: Path) -> None:
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("the rest of these kernels needs a processor with AVX-512")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--capture=sys", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(EMULATOR / "amx_engines.py")],
        cwd=ROOT,
        env=os.environ | {"UNFOLDCONV_LIBRARY": str(library), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-10_000:]
