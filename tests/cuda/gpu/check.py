"""Everything that wants a GPU, in under eight minutes and without a network: `make gpu-check`.

Builds in place for the GPU at hand, runs every test that has a device on CUDA, the sanitizers of CUDA on small
problems, tensors beyond 2^31 elements, and the benchmarks; then writes one JSON and one log. What lacks its tool is
skipped with a sentence. The exit status is 1 if any step failed.

    python tests/cuda/gpu/check.py --out build/gpu-check
"""

import argparse
import datetime
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 460  # of all steps
GRACE = 10  # what a step that ran out of time has to write what it knows
TEST_PROCESSES = 6
GPU_TESTS = "tests/cuda/test_gpu.py"
# These run kernels in the emulator, or compile them: nothing of it needs a GPU.
WITHOUT_GPU = (
    *("test_cuda_", "test_emulator", "test_instructions", "test_sanitizers", "test_amx"),
    *("test_build", "test_wheel", "test_jit", "test_benchmark"),
)
TAIL_LINES = 30
NO_TESTS = 5  # pytest's exit status where it selected none


@dataclass
class Outcome:
    """What came of a step: `ok`, `failed`, `out of time` or `skipped`, and why."""

    name: str
    status: str
    seconds: float
    message: str = ""


class Check:
    """Runs steps until the time is up, and keeps what came of them."""

    def __init__(self, out: Path, log: TextIO, seconds: float) -> None:
        self.out, self.outcomes = out, list[Outcome]()
        self._log, self._deadline = log, time.monotonic() + seconds

    def left(self) -> float:
        """Seconds."""
        return self._deadline - time.monotonic()

    def skip(self, name: str, why: str) -> None:
        """Notes that a step cannot be done here."""
        self._note(Outcome(name, "skipped", 0.0, why))

    def step(
        self, name: str, command: Sequence[str], seconds: float, *, passing: Sequence[int] = (0,), **variables: str
    ) -> bool:
        """Runs a command for so many seconds at most, or for what is left; says whether it passed."""
        begun = time.monotonic()
        limit = min(seconds, self.left())
        if limit <= GRACE:
            self.skip(name, "no time was left")
            return False
        done, output = _run(command, limit, variables)
        status = "out of time" if done is None else "ok" if done in passing else "failed"
        tail = output.splitlines()[-TAIL_LINES:]
        self._log.write(f"\n=== {name}: {' '.join(command)}\n{output}")
        last = tail[-1] if tail else ""
        self._note(Outcome(name, status, time.monotonic() - begun, last if status == "ok" else "\n".join(tail)))
        return status == "ok"

    def _note(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        line = f"{outcome.status:12}{outcome.seconds:6.1f} s  {outcome.name}: {outcome.message.rpartition(chr(10))[2]}"
        print(line, flush=True)
        self._log.write(line + "\n")
        self._log.flush()


def _run(command: Sequence[str], seconds: float, variables: dict[str, str]) -> tuple[int | None, str]:
    """The exit status, None where the time ran out, and what was printed. An interrupt first: benchmarks then write."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | variables
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # In the background of a shell interrupts are ignored, and what is started there would ignore them too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        return None, output


def build(check: Check) -> bool:
    """In place, for the GPU at hand alone."""
    major, minor = torch.cuda.get_device_capability()
    architecture = f"{major}.{minor}" + ("a" if (major, minor) == (9, 0) else "")
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    jobs = str(os.cpu_count() or 1)
    return check.step("build", command, 200, TORCH_CUDA_ARCH_LIST=architecture, MAX_JOBS=jobs, UNFOLDCONV_CUDA="1")


def tests(check: Check) -> None:
    """Each file in a process of its own, some at once: small problems leave a GPU idle."""
    files = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py"))
    files = [file for file in files if not file.name.startswith((*WITHOUT_GPU, "test_gpu"))]
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]

    def run(file: Path) -> None:
        check.step(str(file), [*pytest, "-x", "-k", "cuda", str(file)], 150, passing=(0, NO_TESTS))

    with ThreadPoolExecutor(TEST_PROCESSES) as pool:
        list(pool.map(run, files))
    # By itself: it needs most of the memory, and its streams the GPU.
    check.step(GPU_TESTS, [*pytest, GPU_TESTS], 120)


def sanitizers(check: Check) -> None:
    """Each op on small problems; torch's own cache of memory would hide what lies beside a tensor."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    for tool in ("memcheck", "racecheck"):
        if not Path(program).exists():
            check.skip(tool, "compute-sanitizer was not found: it comes with the CUDA toolkit")
            continue
        command = [program, f"--tool={tool}", "--error-exitcode=9"]
        command += [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            GPU_TESTS,
            "-k",
            "every_op",
        ]
        check.step(tool, command, 60, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def benchmarks(check: Check) -> None:
    """Their results files lie beside this check's."""
    for name, seconds in (("unfold", 30), ("layers", 150)):
        if importlib.util.find_spec("rich") is None:
            check.skip(f"benchmarks {name}", "the package rich was not found")
            continue
        command = [sys.executable, "-m", "benchmarks", name, "--device", "cuda", "--seconds", str(seconds)]
        check.step(f"benchmarks {name}", [*command, "--json", str(check.out / f"{name}.json")], 2 * seconds)


STEPS: tuple[Callable[[Check], None], ...] = (tests, sanitizers, benchmarks)


def facts() -> dict[str, Any]:
    """What the results depend on."""
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or None,
        "device": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": sys.version.split()[0],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check", help="folder of the JSON and the log")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of it (default: %(default)s)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu-check must have a CUDA device and a torch built for it, but got neither or one only")
        return 1
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with (out / "gpu-check.log").open("w") as log:
        check = Check(out, log, arguments.seconds)
        if build(check):
            for step in STEPS:
                step(check)
        results = facts() | {"steps": [asdict(outcome) for outcome in check.outcomes]}
        for name in ("unfold", "layers"):
            path = out / f"{name}.json"
            if path.exists():
                results[name] = json.loads(path.read_text())
                path.unlink()
        (out / "gpu-check.json").write_text(json.dumps(results, indent=1) + "\n")
    failed = [outcome.name for outcome in check.outcomes if outcome.status in ("failed", "out of time")]
    print(
        f"{out / 'gpu-check.json'}: "
        + (f"FAILED: {', '.join(failed)}" if failed else "all steps passed or were skipped")
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
