"""The examples run as a user starts them, and their own checks can fail."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import unfoldconv as uc

ROOT = Path(__file__).resolve().parent.parent
TRAIN_DIGITS = ROOT / "examples" / "train_digits.py"


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back that an example changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_train_digits_prints_a_table_and_draws(tmp_path: Path) -> None:
    picture = tmp_path / "new" / "digits.png"
    command = [sys.executable, TRAIN_DIGITS, "--epochs", "2", "--no-check", "--output", picture]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
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
