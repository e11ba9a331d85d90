"""Builds the library on the model of the tile instructions."""

import shutil
from pathlib import Path

from unfoldconv import _build

SOURCES = Path(__file__).parent
ROOT = SOURCES.parents[2]
DIFFERING = ("isa.cpp.*", "amx_pair_tiles.cpp.*")  # what names UNFOLDCONV_AMX_MODEL


def build_modelled(folder: Path, others: Path, toolkit: _build.Toolkit | None, profile: _build.Profile) -> Path:
    """Returns the library with the model, whose objects are kept in `folder`.

    Args:
        folder: Where to build.
        others: Objects of a build of the same sources without the model, which all but two can be taken from.
        toolkit: The CUDA toolkit of that build.
        profile: The options of that build.
    """
    objects, library = folder / "objects", folder / "modelled.so"
    if others.is_dir():
        unwanted = shutil.ignore_patterns(*DIFFERING, "*.lock", "*.partial")
        shutil.copytree(others, objects, dirs_exist_ok=True, ignore=unwanted)
    _build.build_library(
        ROOT / "csrc",
        library,
        objects,
        version=_build.VERSION,
        toolkit=toolkit,
        profile=profile,
        definitions={"UNFOLDCONV_AMX_MODEL": f'"{SOURCES / "model.h"}"'},
    )
    return library
