"""Builds the library on the model of the tile instructions."""

from collections.abc import Mapping
from pathlib import Path

from unfoldconv._build import Profile, Toolkit, exclusive
from unfoldconv._build.library import build_library

SOURCES = Path(__file__).parent
ROOT = SOURCES.parents[2]
CSRC = ROOT / "csrc"


def build_modelled(folder: Path, objects: Mapping[Path, Path], toolkit: Toolkit | None, profile: Profile) -> Path:
    """Returns the library with the model.

    Args:
        folder: Where to build.
        objects: By their sources, those of a build without the model. All but the few that differ are taken from it.
        toolkit: The CUDA toolkit of that build.
        profile: The options of that build.
    """
    differing = [source for source in objects if source.name == "isa.cpp" or "amx" in source.stem]
    library = folder / "modelled.so"
    with exclusive(folder, lambda: None):
        build_library(
            library,
            differing,
            folder,
            profile=profile,
            toolkit=toolkit,
            include=[CSRC],
            flags=[f'-DUNFOLDCONV_AMX_MODEL="{SOURCES / "model.h"}"'],
            objects=[path for source, path in objects.items() if source not in differing],
        )
    return library
