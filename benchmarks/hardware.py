"""What a measurement ran on: versions and hardware, for the results file."""

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

BUSY_SHARE = 0.5
"""Load per core, averaged over the last minute, from which a machine counts as busy."""
ROOT = Path(__file__).resolve().parent.parent


def versions() -> dict[str, Any]:
    """Versions of everything that a time depends on; ``commit`` is that of this repository, or None."""
    import unfoldconv

    cuda = torch.backends.cuda.is_built()
    return {
        "unfoldconv": unfoldconv.__version__,
        "unfoldconv_build": unfoldconv.build_info(),
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda and torch.cuda.is_available() else None,
        "mkl": _config_version(r"Math Kernel Library Version (\S+)"),
        "onednn": _config_version(r"(?:oneDNN|MKL-DNN) v(\S+)"),
        "openmp": _config_version(r"OpenMP (\S+)"),
        "os": platform.platform(),
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """The CPU, and the GPU if that is the device."""
    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_capability": f"{properties.major}.{properties.minor}",
            "gpu_multiprocessors": properties.multi_processor_count,
            "gpu_l2_bytes": properties.L2_cache_size,
            "gpu_memory_bytes": properties.total_memory,
            "gpu_driver": _command(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]),
        }
    return found


def busy_warning() -> str | None:
    """What to say if other work takes the processor: with threads that wait for each other, times then mislead."""
    try:
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
    except OSError:
        return None
    if load < BUSY_SHARE * cores:
        return None
    return f"the machine is busy (load {load:.1f} on {cores} cores): times will mislead"


def device_name(found: dict[str, Any]) -> str:
    """One line for a report's head, from `hardware`."""
    if "gpu" in found:
        return f"{found['gpu']} (driver {found['gpu_driver']})"
    return f"{found['cpu']}, {found['threads']} threads, {found['cpu_capability']}"


def last_level_cache_bytes() -> int:
    """The last-level caches of all cores together; 0 where Linux does not say."""
    caches: dict[tuple[int, str], int] = {}  # (level, the cores that share it) -> bytes
    for index in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        try:
            level, shared, size = ((index / name).read_text().strip() for name in ("level", "shared_cpu_list", "size"))
            caches[int(level), shared] = int(size.removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last)


def _cpu_model() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match.group(1) if match else platform.processor() or platform.machine()


def _config_version(pattern: str) -> str | None:
    match = re.search(pattern, torch.__config__.show())
    return match.group(1) if match else None


def _commit() -> str | None:
    commit = _command(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"])
    if commit is None:
        return None
    changed = _command(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return f"{commit} and uncommitted changes" if changed else commit


def _command(arguments: list[str]) -> str | None:
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
