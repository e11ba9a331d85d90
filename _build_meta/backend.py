"""The build backend: setuptools, with the torch of the environment that the package is installed into.

pip builds in an environment of its own. Listing torch as a build requirement would download another torch into it,
gigabytes of it, for headers that are already there. pip runs the backend with the user's interpreter, though, so
`sysconfig` still names the user's site-packages, and they are added at the end of the search path.
"""

import importlib.util
import site
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks of PEP 517)


def _site_packages() -> list[str]:
    """The folders in which the interpreter would find packages outside of an isolated build."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()]
    settings = Path(sys.prefix, "pyvenv.cfg")
    if settings.exists() and "include-system-site-packages = true" in settings.read_text().lower():
        base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        folders += [sysconfig.get_path(name, vars=base) for name in ("purelib", "platlib")]
        folders += site.getsitepackages([sys.base_prefix])
    return folders


def _find_torch() -> None:
    if importlib.util.find_spec("torch") is not None:
        return
    for folder in _site_packages():
        if Path(folder, "torch").is_dir():
            sys.path.append(folder)
            return
    raise SystemExit(
        "unfoldconv is built with the torch that it will run with, but none was found: pip install torch first"
    )


def _with_torch(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook of setuptools, in a process of its own: setup.py uses torch's build whatever it is asked for."""

    def run(*args: Any, **kwargs: Any) -> Any:
        _find_torch()
        return hook(*args, **kwargs)

    return run


def _requirements(config_settings: Any = None) -> list[str]:
    _find_torch()
    return ["ninja"]


get_requires_for_build_wheel = get_requires_for_build_editable = get_requires_for_build_sdist = _requirements
prepare_metadata_for_build_wheel = _with_torch(build_meta.prepare_metadata_for_build_wheel)
prepare_metadata_for_build_editable = _with_torch(build_meta.prepare_metadata_for_build_editable)
build_wheel = _with_torch(build_meta.build_wheel)
build_editable = _with_torch(build_meta.build_editable)
build_sdist = _with_torch(build_meta.build_sdist)
