"""Which instruction sets a library that stays on this machine can do without."""

import os
import re
from pathlib import Path

# What Linux calls the features that a set of csrc/cpu/isa needs, in ascending order.
_FEATURES = {
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx512_bf16": {"avx512_bf16"},
    "amx": {"amx_bf16", "amx_tile"},
}


def left_out(processors: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The sets but the best one, what that one is made of, and the one that UNFOLDCONV_ISA names."""
    try:
        found = re.search(r"^flags\s*:(.*)", processors.read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found is None:
        return []
    features = set(found[1].split())
    has = [name for name, needed in _FEATURES.items() if needed <= features]
    wanted = {os.environ.get("UNFOLDCONV_ISA"), *(has if "avx512" not in has else has[1:])}
    return [name for name in _FEATURES if name not in wanted]
