"""The examples run as a user starts them, and their own checks can fail."""

import os
import re
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import unfoldconv as uc

ROOT = Path(__file__).resolve().parents[2]
TRAIN_DIGITS = ROOT / "examples" / "train_digits.py"
TRAIN_DISTRIBUTED = ROOT / "examples" / "train_distributed.py"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back that an example changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_train_digits_prints_a_table_and_draws(tmp_path: Path) -> None:
    picture = tmp_path / "new" / "digits.png"
    command = [sys.executable, TRAIN_DIGITS, "--epochs", "2", "--no-check", "--output", picture]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("torch.nn", "unfoldconv"):
        assert re.search(rf"│ {name} +│ \d\d\.\d\d% +│ \d\.\d{{6}} +│ \d+\.\d{{3}} +│", done.stdout), done.stdout
    assert "ok    float64 losses" in done.stdout
    assert "ok    float32 losses" in done.stdout
    header = picture.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(header[16:20]) > 1000, "the picture is narrower than that"


@pytest.mark.usefixtures("threads")
def test_train_digits_notices_a_wrong_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slightly_wrong(*arguments: Tensor) -> Tensor:
        return uc.conv2d(*arguments) * (1 + 1e-6)

    monkeypatch.setattr(uc.Conv2d, "_function", staticmethod(slightly_wrong))
    status = runpy.run_path(str(TRAIN_DIGITS))["main"](["--epochs", "1", "--output", str(tmp_path / "digits.png")])
    output = capsys.readouterr().out
    assert status == 1
    assert "FAILS lowest test accuracy" in output, "one epoch is too short for 97 %"
    assert "FAILS float64 losses" in output


def test_train_distributed_is_training_in_one_process(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, TRAIN_DISTRIBUTED, "--strategy", "fsdp", "--epochs", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert "ok    float64 losses" in done.stdout, done.stdout + done.stderr
    assert "ok    float64 weights" in done.stdout
    assert "FAILS test accuracy" in done.stdout, "one epoch is too short for 97 %"
    assert done.returncode == 1


def test_train_distributed_ends_when_a_process_dies(tmp_path: Path) -> None:
    """Without torchrun, which would end the others itself."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-u", TRAIN_DISTRIBUTED, "--epochs", "100000", "--timeout", "20"]
    meeting = ENVIRONMENT | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    with (tmp_path / "output").open("w") as output:
        processes = [
            subprocess.Popen(command, cwd=tmp_path, env=meeting | {"RANK": rank}, stdout=output, stderr=output)
            for rank in ("0", "1")
        ]
    try:
        wait_for("ddp: epoch 1 ", tmp_path / "output")
        processes[1].kill()
        assert processes[0].wait(timeout=60) == 1
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = (tmp_path / "output").read_text()
    assert "ok    float64 losses" in said
    assert re.search(r"RuntimeError: .*(Connection|connection|Timed out|timeout)", said), said


def wait_for(words: str, file: Path) -> None:
    """Until they are in the file."""
    deadline = time.monotonic() + 240
    while words not in (text := file.read_text()):
        assert time.monotonic() < deadline, text
        time.sleep(0.1)
