import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import unfoldconv as uc
from benchmarks import builds, ceilings, engines, options, results, targets, timing
from benchmarks.__main__ import main
from benchmarks.cases import FORMATS, Case, Operands
from benchmarks.peers import OURS, Thunk
from benchmarks.problems import COLUMN_PASSES, CONVOLUTION_PASSES
from tiny_layers import TINY, spoiled


@pytest.fixture
def layers_file(tmp_path: Path) -> Path:
    path = tmp_path / "layers.json"
    path.write_text(json.dumps({"layers": TINY}))
    return path


# --- the command line and the results file ------------------------------------------------------------------------

SIDE_KEYS = {"refusal", "error", "extra_bytes", "ms", "ratio", "rounds"}
CASE_KEYS = {
    *("name", "family", "dtype", "format", "pass", "status", "message", "problem", "flop", "valid_flop", "bytes"),
    *("columns_bytes", "floor_ms", "times_floor", "flop_per_second", "bytes_per_second", "error_bound"),
    *("ours", "peers"),
}
QUICK = ("--dtype", "f32", "--format", "contiguous")
RUN_KEYS = {
    *("schema", "benchmark", "date", "command", "settings", "versions", "hardware", "ceilings", "cases", "summary"),
    *("overview", "targets"),
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small ceilings; and the number of threads, which a run sets for good, is put back."""
    monkeypatch.setattr(ceilings, "CPU_ARRAY_BYTES", 1 << 20)
    monkeypatch.setattr(ceilings, "CACHE_MULTIPLE", 0)
    monkeypatch.setattr(ceilings, "MATRIX_SIZES", (64, 128))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run_main(layers_file: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    path = layers_file.with_name("results.json")
    given = [*arguments, "--layers-file", str(layers_file), "--json", str(path), "--seconds", "0.1", "--threads", "1"]
    return main(given), json.loads(path.read_text())


@pytest.mark.usefixtures("quick")
def test_layers_end_to_end(layers_file: Path, device: torch.device, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--name", "plane,line", "--device", device.type, "--dtype", "f32,f64", "--format", "contiguous"]
    status, data = run_main(layers_file, "layers", *chosen, "--peer", "unfold")
    assert status == 0
    assert data.keys() == RUN_KEYS
    assert [(case["name"], case["dtype"], case["pass"]) for case in data["cases"]] == [
        (name, dtype, pass_) for name in ("line", "plane") for dtype in ("f32", "f64") for pass_ in CONVOLUTION_PASSES
    ]
    for case in data["cases"]:
        assert case.keys() == CASE_KEYS
        assert case["status"] == "ok"
        assert case["peers"].keys() == {"torch", "unfold"}
        for side in (case["ours"], *case["peers"].values()):
            assert side.keys() == SIDE_KEYS
        for side in (case["ours"], case["peers"]["torch"]):
            assert side["ms"]["q1"] <= side["ms"]["median"] <= side["ms"]["q3"]
            assert side["rounds"] >= timing.MIN_ROUNDS
        assert (case["peers"]["unfold"]["refusal"] is None) == (case["name"] == "plane")
        assert case["times_floor"] == pytest.approx(case["ours"]["ms"]["median"] / case["floor_ms"], rel=1e-4)
    assert data["ceilings"].keys() == {"f32", "f64"}
    assert all(ceiling > 1e8 for found in data["ceilings"].values() for ceiling in found.values())
    assert data["versions"]["torch"] == torch.__version__
    assert data["hardware"]["threads"] == torch.get_num_threads() == 1
    assert "python -m benchmarks layers --name plane,line" in data["command"]
    ratios = [case["peers"]["torch"]["ratio"]["median"] for case in data["cases"] if case["dtype"] == "f32"]
    overall = [e for e in data["summary"] if (e["dtype"], e["family"], e["pass"]) == ("f32", "all", "all")]
    assert overall[0]["cases"] == len(ratios) == 6
    assert overall[0]["ratio"]["torch"] == pytest.approx(math.prod(ratios) ** (1 / 6), rel=1e-4)
    printed = capsys.readouterr().out
    assert printed.count("contig forward") == 4
    assert "geometric means, f64" in printed


@pytest.mark.usefixtures("quick")
def test_the_whole_matrix_is_the_default(layers_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every layer, pass, dtype and format that torch has; float64 once a family; and what is left out is said."""
    status, data = run_main(layers_file, "layers")
    assert status == 0
    found = [(case["name"], case["dtype"], case["format"], case["pass"]) for case in data["cases"]]
    layers = [row["name"] for row in TINY]
    assert found == [
        (name, dtype, memory_format, pass_)
        for name in layers
        for dtype in ("f32", "bf16", "f64")
        for memory_format in FORMATS
        for pass_ in CONVOLUTION_PASSES
        if (dtype != "f64" or name in ("line", "sparse", "volume"))
        and (name != "line" or memory_format == "contiguous")
    ]
    left_out = data["settings"]["left_out"]
    assert [sentence.partition(" ")[0] for sentence in left_out] == ["9", "12"]
    printed = capsys.readouterr().out
    assert all(sentence in printed for sentence in left_out)
    assert "1 threads" in printed
    assert printed.count("\ntarget ") == 5
    assert "target unfold and fold: not measured in this run" in printed
    by = {entry["by"] for entry in data["overview"]}
    assert by == {"family", "dtype", "format", "pass", "all"}
    for entry in data["overview"]:
        members = [case for case in data["cases"] if entry["by"] == "all" or case[entry["by"]] == entry["name"]]
        ratios = [case["peers"]["torch"]["ratio"]["median"] for case in members]
        assert entry["cases"] == len(ratios)
        assert entry["lowest"] == min(ratios)
        assert entry["ratio"] == pytest.approx(results.geometric_mean(ratios), rel=1e-4)


@pytest.mark.parametrize(
    ("ratios", "line"),
    [
        ([1.5, 1.2], "target f32: reached; mean 1.34 of 1.3; lowest 1.20 of 0.9, b f32 contiguous forward; 0 of 2"),
        ([4.0, 0.5], "target f32: MISSED; mean 1.41 of 1.3; lowest 0.50 of 0.9, short of it by 0.40, b f32"),
        ([1.0, 1.0], "target f32: MISSED; mean 1.00 of 1.3, short of it by 0.30; lowest 1.00 of 0.9, a f32"),
        ([2.0, None], "0 of 1 cases below; 1 more wrong, failed or skipped"),
    ],
)
def test_targets_say_how_much_is_missing(ratios: list[float | None], line: str) -> None:
    cases = [
        {"name": name, "family": "dense", "dtype": "f32", "format": "contiguous", "pass": "forward"}
        | {"status": "ok" if ratio else "wrong", "peers": {"torch": {"ratio": {"median": ratio}}}}
        for name, ratio in zip("ab", ratios, strict=True)
    ]
    found, *others = targets.target_lines(targets.target_json(cases, "cpu"))
    assert line in found
    assert all("not measured" in other for other in others)
    assert targets.target_json(cases, "cpu")[0]["reached"] == ("reached" in line)


def test_targets_on_cuda() -> None:
    """A case may count for several, and no other."""
    case = {"name": "a", "family": "depthwise_mid", "dtype": "f32", "format": "contiguous", "pass": "forward"}
    case |= {"status": "ok", "peers": {"torch": {"ratio": {"median": 1.2}}}}
    found = {target["name"]: target["reached"] for target in targets.target_json([case], "cuda")}
    assert {name: reached for name, reached in found.items() if reached is not None} == {
        "depthwise, 3 to 7 taps a side": False,
        "contiguous": True,
        "f32": True,
    }


@pytest.mark.usefixtures("quick")
def test_unfold_end_to_end(layers_file: Path) -> None:
    """Every rank in every format: torch's part for one and three axes is made of what torch has."""
    status, data = run_main(layers_file, "unfold")
    assert status == 0
    assert {case["name"] for case in data["cases"]} == {layer["name"] for layer in TINY}
    assert {len(layer["kernel"]) for layer in TINY} == {1, 2, 3}
    assert {case["pass"] for case in data["cases"]} == set(COLUMN_PASSES)
    assert {case["dtype"] for case in data["cases"]} == {"f32", "bf16", "f64"}
    assert {case["format"] for case in data["cases"]} == {"contiguous", "channels_last"}
    assert all(case["status"] == "ok" for case in data["cases"])
    assert all(case["peers"].keys() <= {"torch", "unfoldnd"} for case in data["cases"])


@pytest.mark.usefixtures("quick")
def test_a_wrong_op_is_reported_and_sets_the_exit_status(
    layers_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "OURS", spoiled(lambda result: result.mul_(1.01)))
    status, data = run_main(
        layers_file, "layers", "--name", "plane", "--pass", "forward", "--pass", "grad_weight", *QUICK
    )
    assert status == 1
    assert [case["status"] for case in data["cases"]] == ["wrong", "wrong"]
    assert all(case.keys() == CASE_KEYS and case["ours"]["ms"] is None for case in data["cases"])
    assert data["summary"] == []
    printed = capsys.readouterr().out
    assert printed.count("WRONG: error must be at most") == 2
    assert "2 of 2 cases WRONG or FAILED" in printed


@pytest.mark.usefixtures("quick")
def test_an_interrupted_run_keeps_what_it_has(
    layers_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(case: Case, operands: Operands) -> Thunk:
        if case.pass_ == "grad_input":
            raise KeyboardInterrupt
        return OURS.prepare(case, operands)

    monkeypatch.setattr(results, "OURS", dataclasses.replace(OURS, prepare=interrupt))
    status, data = run_main(layers_file, "layers", "--name", "plane", *QUICK)
    assert status == 130
    assert [case["pass"] for case in data["cases"]] == ["forward"]


@pytest.mark.usefixtures("quick")
def test_engines_end_to_end(layers_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every engine that can do a case is timed, none stays forced, and the engines are those of the library."""
    status, data = run_main(layers_file, "engines", "--name", "plane,depthwise", *QUICK)
    assert status == 0
    assert [(case["name"], case["pass"]) for case in data["cases"]] == [
        (name, pass_) for name in ("plane", "depthwise") for pass_ in CONVOLUTION_PASSES
    ]
    for case in data["cases"]:
        assert {"automatic", "columns", case["pick"], case["best"]} <= case["ms"].keys()
        assert case["best"] == min(case["ms"].keys() - {"automatic"}, key=lambda name: case["ms"][name]["median"])
    assert "positions" in data["cases"][0]["ms"]
    x, w = torch.ones(2, 64, 12, 10), torch.ones(32, 64, 3, 3)
    assert uc.explain(uc.conv2d, x, w).ops[0].steps[0].engine == "positions"
    printed = capsys.readouterr().out
    assert "of 6 cases with a pick slower than 1.3 times the best engine" in printed
    with pytest.raises(RuntimeError, match="engine must be one of automatic, " + ", ".join(engines.ENGINES)):
        torch.ops.unfoldconv.force_engine("")


@pytest.mark.usefixtures("quick")
def test_a_slow_pick_is_named(
    layers_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def scripted(runs: list[Any], *_: object) -> list[list[float]]:
        return [[2e-3, 3e-3, 4e-3], *([[1e-3, 1e-3, 1e-3]] * (len(runs) - 1))]

    monkeypatch.setattr(engines, "take_turns", scripted)
    _, data = run_main(layers_file, "engines", "--name", "line", "--pass", "forward", *QUICK)
    assert data["cases"][0]["ratio"]["median"] == 3.0
    printed = capsys.readouterr().out
    assert "1 of 1 cases with a pick slower" in printed
    assert "  3.00 line f32 contiguous forward: " in printed
    assert "largest pick/best: 3.00, line f32 contiguous forward" in printed


def test_calls_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each kind of call, the same in the file; the number of threads is put back."""
    path, threads = tmp_path / "calls.json", torch.get_num_threads()
    assert main(["calls", "--seconds", "0.1", "--json", str(path)]) == 0
    assert torch.get_num_threads() == threads
    data = json.loads(path.read_text())
    names = ["no_grad", "forward", "forward + backward"]
    assert [entry["name"] for entry in data["calls"]] == [*names, *(f"module {name}" for name in names)]
    printed = capsys.readouterr().out
    for entry in data["calls"]:
        assert entry["rounds"] >= timing.MIN_ROUNDS
        for key in ("ours_us", "torch_us", "difference_us"):
            assert entry[key]["q1"] <= entry[key]["median"] <= entry[key]["q3"]
        assert (f"{entry['name']:<25}" in printed) and entry["ours_us"]["median"] > 0.1
    assert data["hardware"]["threads"] == 1
    lines = [line for line in printed.splitlines() if line.endswith("MISSED")]
    assert len(lines) == sum(entry["difference_us"]["median"] > entry["goal_us"] for entry in data["calls"])


def test_builds_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is timed takes minutes; here are times as if."""
    seconds = [20.0, 8.0, 9.0, 70.0]
    made = zip((*builds.BUILDS, builds.INSTALL), seconds, strict=True)
    monkeypatch.setattr(builds, "times", lambda: made)
    assert main(["builds", "--json", str(tmp_path / "builds.json")]) == 0
    assert [entry["seconds"] for entry in json.loads((tmp_path / "builds.json").read_text())["builds"]] == seconds
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("MISSED")]
    assert [line.split("  ")[0] for line in lines] == ["edited engine"]
    for build in builds.BUILDS:
        assert build.edited is None or (builds.ROOT / "csrc" / build.edited).is_file()


def test_training_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "training.json"
    tiny = ["--batch", "4", "--size", "64", "--width", "8", "--seconds", "0.1", "--threads", "1"]
    assert main(["training", *tiny, "--json", str(path)]) == 0
    data = json.loads(path.read_text())
    printed = capsys.readouterr().out
    assert [entry["format"] for entry in data["steps"]] == list(FORMATS)
    for entry in data["steps"]:
        assert entry["rounds"] >= timing.MIN_ROUNDS
        assert 0 < entry["gradient_error"] < 1e-3
        assert 0 < entry["torch_gradient_error"] < 1e-3
        assert f"step, {entry['format']}" in printed
    missed = [entry for entry in data["steps"] if entry["ratio"]["median"] < entry["goal"]]
    assert printed.count("MISSED") == len(missed)
    assert data["conversion"]["modules"] == 53
    assert data["conversion"]["copy_ms"]["median"] > data["conversion"]["inplace_ms"]["q1"] > 0
    assert "convert(ResNet-50): " in printed


def test_training_on_wrong_gradients_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(uc.Conv2d, "_function", staticmethod(lambda *arguments: uc.conv2d(*arguments).roll(1, 2)))
    tiny = ["--batch", "4", "--size", "64", "--width", "8", "--seconds", "0.1", "--threads", "1"]
    assert main(["training", *tiny]) == 1
    assert capsys.readouterr().out.count("WRONG: gradients are off by") == len(FORMATS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["training", "--batch", "0"], "must be positive, but got 0"),
        (["calls", "--seconds", "0"], "must be positive, but got 0"),
        (["layers", "--dtype", "f31"], "must be among bf16, f16, tf32"),
        (["layers", "--rounds", "0"], "must be positive, but got 0"),
        (["layers", "--name", "nothing"], "at least one case"),
        (["layers", "--dtype", "tf32"], "tf32 is a setting of CUDA"),
        (["layers", "--layers-file", "missing.json"], "missing.json"),
        (["compare", "missing.json", "missing.json"], "missing.json"),
    ],
)
def test_bad_options_end_with_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_list_options_replace_the_default_and_repeat() -> None:
    parser = options.argparse.ArgumentParser()
    options.add_options(parser, CONVOLUTION_PASSES, options.Defaults())
    assert parser.parse_args([]).passes == list(CONVOLUTION_PASSES)
    chosen = parser.parse_args(["--pass", "grad_weight,forward", "--pass", "forward", "--name", "a,b"])
    assert (chosen.passes, chosen.names, chosen.dtypes) == (["grad_weight", "forward"], ["a", "b"], ["f32"])


@pytest.mark.usefixtures("quick")
def test_compare_sets_our_change_beside_that_of_torch(
    layers_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, old = run_main(layers_file, "layers", "--name", "plane", "--pass", "forward", *QUICK)
    new = json.loads(json.dumps(old))
    new["cases"][0]["ours"]["ms"]["median"] = old["cases"][0]["ours"]["ms"]["median"] / 2
    old_path, new_path = tmp_path / "old.json", tmp_path / "new.json"
    old_path.write_text(json.dumps(old))
    new_path.write_text(json.dumps(new))
    capsys.readouterr()
    assert main(["compare", str(old_path), str(new_path)]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "plane f32 contiguous forward" in line)
    cells = [cell.strip() for cell in row.split("│")]
    assert cells[4:6] == ["2.000", "1.000"]
    new["cases"][0]["pass"] = "grad_input"
    new_path.write_text(json.dumps(new))
    assert main(["compare", str(old_path), str(new_path)]) == 1
    new_path.write_text(json.dumps(new | {"schema": results.SCHEMA + 1}))
    with pytest.raises(SystemExit):
        main(["compare", str(old_path), str(new_path)])
