"""Builds a library of edited sources, unless there is one of the same content already."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import recipe
from .instruction_sets import left_out
from .library import build_library
from .mirror import folders_of_outward_includes, read_files, write_mirror
from .stale import contents, made_from
from .toolkit import Toolkit
from .tools import BuildError, cxx, run


def build_edition(
    root: Path,
    folder: Path,
    name: str,
    *,
    toolkit: Toolkit | None,
    namespace: str | None,
    verbose: bool,
    announce: Callable[[], None],
) -> tuple[Path, str]:
    """Returns the library of the sources below `root` and its op namespace.

    What it was made of is known by content: the sources, the options, the tools, and every file outside of `root` that
    ninja has been told of.

    Args:
        root: A copy of csrc.
        folder: Where the libraries are, with the objects of the last one. The caller holds it (see `exclusive`).
        name: What the files of the libraries begin with.
        toolkit: The CUDA toolkit for .cu sources, or None to leave them out.
        namespace: The op namespace; None makes one of the name and a hash of the content.
        verbose: Shows the steps of a build.
        announce: Is called before something is compiled.

    Raises:
        BuildError: `root` is not a copy of csrc, a tool is missing, or failed.
    """
    files = read_files(root, without=folder)
    absent = left_out()
    sources = recipe.source_files(root, map(Path, files), cuda=toolkit is not None, python_module=False)
    sources = [source for source in sources if not _is_of(source, absent)]
    flags = [f"-DUNFOLDCONV_HAS_{set_name.upper()}=0" for set_name in absent]
    flags += [f"-iquote{path}" for path in folders_of_outward_includes(files, root)]
    tools = (cxx(), run([*cxx(), "--version"]), toolkit, torch.__version__)
    # Ninja compiles again what has another command, but cannot know that a program of the same name is another one.
    flags.append(f"-DUNFOLDCONV_TOOLS={_hash(tools)}")
    key = _hash((files, recipe.compile_flags(recipe.RELEASE, toolkit), flags, namespace))

    record = folder / "editions.json"
    editions: list[dict[str, Any]] = json.loads(record.read_text()) if record.exists() else []
    alike = [edition for edition in editions if edition["key"] == key]
    current = contents({path for edition in alike for path in edition["outside"]})
    for edition in alike:
        if all(digest is not None and digest == current[path] for path, digest in edition["outside"].items()):
            library = folder / edition["library"]
            if library.exists():
                return library, edition["namespace"]

    announce()
    content = _hash((key, current, len(alike)))
    library = folder / f"{name}_{content}.so"
    namespace = namespace or f"unfoldconv_{name}_{content}"
    write_mirror(files, folder / "csrc")
    recipe.write_registration(folder, namespace, toolkit)
    try:
        build_library(
            library,
            [folder / "csrc" / source for source in sources],
            folder,
            profile=recipe.RELEASE,
            toolkit=toolkit,
            include=[folder / "csrc", folder],
            flags=flags,
            verbose=verbose,
        )
    except BuildError as error:  # which names the copies
        raise BuildError(str(error).replace(str(folder / "csrc"), str(root))) from error
    outside = {
        path: digest
        for inputs in made_from(folder).values()
        for path, digest in inputs.items()
        if not Path(os.path.realpath(path)).is_relative_to(folder.resolve())
    }
    editions.append({"key": key, "outside": outside, "library": library.name, "namespace": namespace})
    record.with_suffix(".partial").write_text(json.dumps(editions))
    record.with_suffix(".partial").replace(record)
    return library, namespace


def _is_of(source: Path, instruction_sets: list[str]) -> bool:
    """Whether the file has kernels of one of those sets, in the folder named like it."""
    return source.parent.name in instruction_sets and source.parent.parent.name == "isa"


def _hash(facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
