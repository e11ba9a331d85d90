"""Builds a library by `torch.utils.cpp_extension.load`, for `unfoldconv.jit` and for the tests."""

import itertools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from . import recipe
from .recipe import Profile
from .stale import by_content
from .toolkit import Toolkit
from .tools import BuildError, cuda_home, environment

_attempts = itertools.count()

# What `load` always links with CUDA sources. A torch without CUDA has no such libraries, and where there are some the
# result shall not depend on them: these empty ones are found first.
_UNUSED_LIBRARIES = ("c10_cuda", "torch_cuda", "cudart")


def build_library(
    output: Path,
    sources: Sequence[Path],
    folder: Path,
    *,
    profile: Profile,
    toolkit: Toolkit | None,
    include: Sequence[Path] = (),
    flags: Sequence[str] = (),
    objects: Sequence[Path] = (),
    verbose: bool = False,
) -> None:
    """Compiles what has changed and links it, in a folder that the caller holds (see `exclusive`).

    Args:
        output: The library to write; it appears whole or not at all.
        sources: What it is made of; no two with the same name.
        folder: Where objects are kept.
        profile: The optimisation and debugging options.
        toolkit: The CUDA toolkit for .cu sources, or None where there are none.
        include: Folders in which includes are looked for.
        flags: More options of the compilers.
        objects: What else is linked.
        verbose: Shows the steps on stdout as they are taken.

    Raises:
        BuildError: A tool is missing, or failed.
    """
    from torch.utils import cpp_extension

    link = [*map(str, objects), *recipe.link_flags(profile, toolkit), "-shared", "-Wl,--as-needed"]
    if toolkit is not None:
        for name in _UNUSED_LIBRARIES:
            (folder / f"lib{name}.a").write_bytes(b"!<arch>\n")
        link.insert(0, f"-L{folder}")

    def load(shown: bool) -> Path:
        # As a Python module, the name of the library would be in the command of every object; as a library it would be
        # loaded at once. So torch is told of a program, and the linker of a library. The name is new each time: torch
        # builds nothing if it has been asked for the same name, sources and options before, whatever the headers.
        built = cpp_extension.load(
            f"linked{next(_attempts)}",
            [str(source) for source in sources],
            extra_cflags=_quoted([*recipe.compile_flags(profile, toolkit), *flags]),
            extra_cuda_cflags=_quoted(recipe.nvcc_flags(profile, toolkit, flags)) if toolkit is not None else [],
            extra_ldflags=_quoted(link),
            extra_include_paths=[str(path) for path in include],
            build_directory=str(folder),
            verbose=shown,
            with_cuda=toolkit is not None,
            is_standalone=True,
            is_python_module=False,
        )
        return Path(str(built))

    with environment(folder), cuda_home(toolkit.home if toolkit else None), by_content(folder):
        (folder / "lock").unlink(missing_ok=True)  # torch's own, which a build that was killed leaves behind for ever
        try:
            built = load(verbose)
        except RuntimeError as error:
            if verbose:  # the steps went to the terminal, with what the compiler wrote: once more, for the message
                try:
                    built = load(False)
                except RuntimeError as again:
                    raise BuildError(_failures(str(again))) from again
            else:
                raise BuildError(_failures(str(error))) from error
        output.parent.mkdir(parents=True, exist_ok=True)
        built.replace(output)


def _quoted(flags: Sequence[str]) -> list[str]:
    """For the shell that ninja starts, and for ninja itself."""
    return [shlex.quote(flag).replace("$", "$$") for flag in flags]


def _failures(printed: str) -> str:
    """The steps that failed, of all that ninja has printed."""
    steps = re.split(r"(?:^|: )\[\d+/\d+\] .*\n", printed, flags=re.MULTILINE)
    return "".join(step for step in steps if step.startswith("FAILED: ")) or printed
