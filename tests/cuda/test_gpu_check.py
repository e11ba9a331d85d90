"""The runner of `make gpu-check`, on commands that need no GPU."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu import check as gpu_check
from gpu.check import Check

INTERRUPTED = (
    "import time\ntry:\n  print('begun', flush=True)\n  time.sleep(60)\nexcept KeyboardInterrupt:\n  print('written')"
)


@pytest.fixture
def check(tmp_path: Path) -> Iterator[Check]:
    with (tmp_path / "log").open("w") as log:
        yield Check(tmp_path, log, 100)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_step_passes_or_fails_by_its_exit_status(check: Check) -> None:
    assert check.step("right", python("print('all'); print('well')"), 50)
    assert not check.step("wrong", python("print('this is why'); raise SystemExit(3)"), 50)
    assert check.step("other", python("raise SystemExit(5)"), 50, passing=(0, 5))
    assert [(outcome.status, outcome.message) for outcome in check.outcomes] == [
        ("ok", "well"),
        ("failed", "this is why"),
        ("ok", ""),
    ]
    log = (check.out / "log").read_text()
    assert "this is why" in log
    assert "all\nwell" in log


def test_a_step_that_runs_out_of_time_is_interrupted_and_heard(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "GRACE", 3)
    assert not check.step("long", python(INTERRUPTED), 6)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    assert not check.step("deaf", python(deaf), 6)
    assert [outcome.status for outcome in check.outcomes] == ["out of time", "out of time"]
    assert check.outcomes[0].message == "begun\nwritten"
    assert sum(outcome.seconds for outcome in check.outcomes) < 50


def test_no_step_begins_when_the_time_is_up(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        check = Check(tmp_path, log, 0)
        assert not check.step("late", python("print(1)"), 50)
    assert (check.outcomes[0].status, check.outcomes[0].message) == ("skipped", "no time was left")


def test_variables_reach_the_step(check: Check) -> None:
    assert check.step("told", python("import os; print(os.environ['JOBS'])"), 50, JOBS="7")
    assert check.outcomes[0].message == "7"


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["check.py"])
    assert gpu_check.main() == 1
    assert "gpu-check must have a CUDA device" in capsys.readouterr().out
