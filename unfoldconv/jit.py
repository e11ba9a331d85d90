"""Builds the kernels while Python runs: an edited copy of them beside the ones that were installed.

    import unfoldconv as uc

    uc.jit.copy_source("my_csrc")               # edit what you like in my_csrc
    fast = uc.jit.load("my_csrc", name="fast")  # a second unfoldconv, on the edited kernels
    fast.conv2d(x, w), uc.conv2d(x, w)          # both in one process

The first call compiles, which takes seconds; after that only what was edited is compiled again. An edited source gets a
fresh op namespace, so it can be loaded again and again in one process.
"""

import importlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import torch

from . import _build
from ._build import BuildError

__all__ = ["BuildError", "build", "copy_source", "load", "source_directory"]

# Parts of the package that do not depend on the compiled library: every copy shares them, so that an exception of one
# is an exception of all.
_SHARED = ("_build", "_geometry", "jit", "reference")


def load(source: str | os.PathLike[str] | None = None, name: str = "jit", verbose: bool = False) -> ModuleType:
    """Compiles a copy of the C++ and CUDA sources and returns an unfoldconv that runs on it.

    CUDA sources are compiled where torch sees a GPU and there is an nvcc; UNFOLDCONV_CUDA=0|1 overrides. Objects and
    libraries are kept in TORCH_EXTENSIONS_DIR, or where torch keeps those of its own extensions. MAX_JOBS limits how
    many compilers run at a time, CXX and CXXFLAGS choose the compiler and add to its options.

    Args:
        source: A copy of csrc, as made by `copy_source`; None means the sources that this package was built from.
        name: Part of the op namespace, `torch.ops.unfoldconv_<name>_<hash of sources and flags>`, and of the folder in
            which objects are kept; an identifier.
        verbose: Prints every step. Without it one line says that something slow has begun.

    Returns:
        A module with the functions, modules and submodules of `unfoldconv`.

    Raises:
        BuildError: No compiler or no ninja, or the sources were refused; the message holds what the compiler wrote.
        ValueError: `name` is not an identifier.

    Example:
        >>> import torch, unfoldconv as uc
        >>> mine = uc.jit.load("my_csrc", name="mine")  # doctest: +SKIP
        >>> mine.unfold(torch.arange(4.0).reshape(1, 1, 4), kernel_size=(2,))  # doctest: +SKIP
        tensor([[[0., 1., 2.],
                 [1., 2., 3.]]])
    """
    library, namespace = build(source, name, verbose)
    return sys.modules.get(namespace) or _second_package(namespace, library)


def copy_source(directory: str | os.PathLike[str]) -> Path:
    """Copies the C++ and CUDA sources of this package to a new folder, to be edited and given to `load`.

    Args:
        directory: The folder to make.

    Returns:
        The folder.

    Raises:
        FileExistsError: The folder is already there.

    Example:
        >>> import tempfile, unfoldconv as uc
        >>> folder = uc.jit.copy_source(tempfile.mkdtemp() + "/my_csrc")
        >>> (folder / "binding" / "ops.cpp").exists()
        True
    """
    return Path(shutil.copytree(source_directory(), directory, ignore=shutil.ignore_patterns("__pycache__")))


def source_directory() -> Path:
    """The C++ and CUDA sources of this package: inside an installed one, beside it in a checkout.

    Returns:
        The folder; `copy_source` makes one that may be edited.

    Raises:
        BuildError: there is none.

    Example:
        >>> import unfoldconv as uc
        >>> (uc.jit.source_directory() / "binding" / "ops.cpp").exists()
        True
    """
    package = Path(__file__).resolve().parent
    for candidate in (package / "csrc", package.parent / "csrc"):
        if candidate.is_dir():
            return candidate
    raise BuildError(f"the C++ sources must lie inside or beside the package, but {package} has none")


def build(
    source: str | os.PathLike[str] | None, name: str, verbose: bool = False, namespace: str | None = None
) -> tuple[Path, str]:
    """Builds the library of `load`, see its example, unless the cache has it.

    Args:
        source: As for `load`.
        name: As for `load`.
        verbose: As for `load`.
        namespace: The op namespace; None makes one of the name and a hash.

    Returns:
        The library and its op namespace.
    """
    if not (name.isidentifier() and name.isascii()):
        raise ValueError(f"name must be an identifier, but got {name!r}")
    from torch.utils.cpp_extension import get_default_build_root  # slow to import, and most runs never build

    from ._build.edition import build_edition

    root = Path(source if source is not None else source_directory()).absolute()
    toolkit = _build.select_toolkit(default=torch.cuda.is_available())
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()).absolute() / "unfoldconv" / name
    kind = f"with CUDA {toolkit.version}" if toolkit else "without CUDA"
    beginning = f"compiling {root} {kind} into {folder}: this takes a while, later calls reuse it"
    with _build.exclusive(folder, lambda: _report(f"waiting for another process that builds in {folder}")):
        return build_edition(
            root,
            folder,
            name,
            toolkit=toolkit,
            namespace=namespace,
            verbose=verbose,
            announce=lambda: _report(beginning),
        )


def _second_package(namespace: str, library: Path) -> ModuleType:
    """Runs this package's Python files once more, as a package named like the namespace and bound to the library."""
    original = sys.modules[__package__]
    torch.ops.load_library(str(library))
    binding = ModuleType(f"{namespace}._binding", "Which compiled library this copy of the package is bound to.")
    binding.NAMESPACE = namespace  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location(
        namespace, original.__file__, submodule_search_locations=list(original.__path__)
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.modules[namespace] = package
    sys.modules[binding.__name__] = binding
    for shared in _SHARED:
        module = importlib.import_module(f"{__package__}.{shared}")
        sys.modules[f"{namespace}.{shared}"] = module
        setattr(package, shared, module)
    try:
        spec.loader.exec_module(package)
    except BaseException:
        for module_name in set(sys.modules) - before:
            if module_name.partition(".")[0] == namespace:
                del sys.modules[module_name]
        raise
    return package


def _report(message: str) -> None:
    print(f"unfoldconv.jit: {message}", file=sys.stderr, flush=True)
