"""Compiles the ops and puts their sources into the package; everything else is in pyproject.toml."""

import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "unfoldconv"))
import _build  # noqa: E402  (the package itself cannot be imported before it is built)

sys.path.pop(0)
CSRC = ROOT / "csrc"


class BuildLibrary(build_ext):
    """Builds the compiled module by the recipe that `unfoldconv.jit` uses too."""

    def build_extension(self, ext: Extension) -> None:
        try:
            toolkit = _build.select_toolkit(default=True)
            print(
                f"CUDA {toolkit.version}: {toolkit.home}" if toolkit else "no CUDA code: no nvcc, or UNFOLDCONV_CUDA=0"
            )
            _build.build_library(
                CSRC,
                Path(self.get_ext_fullpath(ext.name)),
                ROOT / "build" / "objects",
                version=_build.VERSION,
                toolkit=toolkit,
                python_module=True,
            )
        except _build.BuildError as error:
            raise CompileError(str(error)) from error


class BuildPackage(build_py):
    """Adds the C++ and CUDA sources, which `unfoldconv.jit` compiles edited copies of."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)  # or files that are gone would go on into the wheel
        super().run()
        if not self.editable_mode:
            shutil.copytree(CSRC, Path(self.build_lib) / "unfoldconv" / "csrc", dirs_exist_ok=True)


sources = _build.source_files(CSRC, cuda=True, python_module=True)
setup(
    ext_modules=[
        Extension("unfoldconv._C", [str(path.relative_to(ROOT)) for path in sources], py_limited_api=True),
    ],
    cmdclass={"build_ext": BuildLibrary, "build_py": BuildPackage},
    options={"bdist_wheel": {"py_limited_api": "cp{}{}".format(*_build.PYTHON_TARGET)}},
)
