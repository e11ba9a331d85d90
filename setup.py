"""Compiles the ops and puts their sources into the package; everything else is in pyproject.toml."""

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "unfoldconv"))
import _build  # noqa: E402  (the package itself cannot be imported before it is built)
from _build.extension import BuildModule, module_extension  # noqa: E402

sys.path.pop(0)


class BuildPackage(build_py):
    """Adds the C++ and CUDA sources, which `unfoldconv.jit` compiles edited copies of."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)  # or files that are gone would go on into the wheel
        super().run()
        if not self.editable_mode:
            shutil.copytree(ROOT / "csrc", Path(self.build_lib) / "unfoldconv" / "csrc", dirs_exist_ok=True)


toolkit = _build.select_toolkit(default=True)
print(f"CUDA {toolkit.version}: {toolkit.home}" if toolkit else "no CUDA code: no nvcc, or UNFOLDCONV_CUDA=0")
setup(
    ext_modules=[module_extension(toolkit)],
    cmdclass={"build_ext": BuildModule.with_options(toolkit=toolkit), "build_py": BuildPackage},
    options={"bdist_wheel": {"py_limited_api": "cp{}{}".format(*_build.PYTHON_TARGET)}},
)
