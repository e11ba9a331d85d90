"""The build of setup.py: the Python module `_C`, by torch's own build command."""

import os
import shlex
from pathlib import Path
from typing import Any

from torch.utils import cpp_extension

from . import recipe
from .stale import by_content
from .toolkit import Toolkit
from .tools import cuda_home, environment, exclusive, ninja_folder, write_if_changed

ROOT = Path(__file__).resolve().parents[2]

# What ptxas says of registers and shared memory, beside the object: ninja shows it once and forgets it.
_NVCC = """#!/bin/sh
for argument; do
  [ "$before" = -o ] && object=$argument
  before=$argument
done
{nvcc} "$@" > "$object.log" 2>&1
status=$?
[ $status = 0 ] || cat "$object.log"
exit $status
"""


def object_folder(toolkit: Toolkit | None) -> Path:
    """Where objects are kept, apart for builds with and without CUDA: they are compiled with other options."""
    return ROOT / "build" / ("cuda" if toolkit else "cpu")


def object_of(source: Path, toolkit: Toolkit | None) -> Path:
    """What a source is compiled into."""
    return object_folder(toolkit) / source.relative_to(ROOT).with_suffix(".o")


def module_extension(toolkit: Toolkit | None) -> Any:
    """The module `unfoldconv._C` of the sources in csrc, in the words of setuptools.

    A plain CppExtension even with CUDA sources: one for CUDA would link torch's CUDA libraries, and the module could
    not be imported where they are missing.
    """
    csrc = ROOT / "csrc"
    sources = recipe.source_files(csrc, csrc.rglob("*"), cuda=toolkit is not None, python_module=True)
    # Torch's headers are not free of warnings, and its CppExtension has them among one's own.
    headers = [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]
    flags = {"cxx": [*recipe.compile_flags(recipe.RELEASE, toolkit), *headers]}
    if toolkit is not None:
        flags["nvcc"] = [*recipe.nvcc_flags(recipe.RELEASE, toolkit), *headers]
    extension = cpp_extension.CppExtension(
        "unfoldconv._C",
        [str(path.relative_to(ROOT)) for path in sources],
        py_limited_api=True,
        extra_compile_args=flags,
        # The interpreter that imports the module has the C API.
        extra_link_args=[*recipe.link_flags(recipe.RELEASE, toolkit), "-Wl,-z,undefs"],
    )
    extension.include_dirs = [str(csrc)]
    extension.libraries = ["torch_cpu"]
    return extension


class BuildModule(cpp_extension.BuildExtension):
    """Compiles what has changed, into a folder that stays. Given a toolkit, the CUDA sources too."""

    toolkit: Toolkit | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        folder = ninja_folder()
        if folder is not None:  # torch looks for ninja at once, and on PATH alone
            os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), folder])
        super().__init__(*args, **kwargs)

    def build_extensions(self) -> None:
        toolkit = self.toolkit
        objects = object_folder(toolkit)
        self.build_temp = str(objects)
        recipe.write_registration(objects, "unfoldconv", toolkit)
        for extension in self.extensions:
            extension.include_dirs.append(str(objects))
        # The options with which the interpreter itself was compiled say nothing about this library.
        self.compiler.compiler_so = self.compiler.compiler_so[:1]
        cpp_extension.min_supported_cpython = recipe.PYTHON_TARGET_HEX
        variables = {}
        if toolkit is not None:
            nvcc = objects / "nvcc"
            write_if_changed(nvcc, _NVCC.format(nvcc=shlex.quote(toolkit.nvcc)).encode())
            nvcc.chmod(0o755)
            variables["PYTORCH_NVCC"] = str(nvcc)
        with (
            exclusive(objects, lambda: print(f"waiting for another process that builds in {objects}")),
            environment(objects, **variables),
            cuda_home(toolkit.home if toolkit else None),
            by_content(objects),
        ):
            super().build_extensions()
