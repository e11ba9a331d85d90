"""The objects of the module `_C`, for tests that look at them or link them: what setup.py has compiled stays."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from unfoldconv._build import Toolkit
from unfoldconv._build.extension import ROOT, object_of
from unfoldconv._build.recipe import source_files


def module_objects(toolkit: Toolkit | None, **environment: str) -> dict[Path, Path]:
    """Brings the objects up to date and returns them by their sources.

    Args:
        toolkit: The one that setup.py will choose, or None for a build without CUDA.
        environment: What else its environment holds.
    """
    environment["UNFOLDCONV_CUDA"] = "1" if toolkit else "0"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "setup.py", "build_ext", "--build-lib", folder]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    csrc = ROOT / "csrc"
    sources = source_files(csrc, csrc.rglob("*"), cuda=toolkit is not None, python_module=True)
    return {source: object_of(source, toolkit) for source in sources}
