"""What the tests of the benchmarks share: tiny layers, and implementations that are wrong."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import DTYPES, Case, Operands
from benchmarks.peers import OURS, Peer, Thunk
from benchmarks.problems import Problem, load_problems

CPU = torch.device("cpu")


def layer(name: str, kernel: list[int], size: list[int], **changes: object) -> dict[str, Any]:
    rank = len(kernel)
    row = {"name": name, "family": f"rank{rank}", "N": 2, "C_in": 4, "C_out": 6, "input": size, "kernel": kernel}
    row |= {"stride": [1] * rank, "padding": [0] * rank, "dilation": [1] * rank, "groups": 1}
    return {**row, "cpu": {"N": row["N"], "input": size}, **changes}


TINY = [
    layer("line", [3], [17], stride=[2], padding=[1], dilation=[2]),
    layer("plane", [3, 2], [9, 8], stride=[2, 1], padding=[1, 1], dilation=[1, 2], groups=2),
    layer("sparse", [1, 1], [7, 6], stride=[3, 2]),
    layer("volume", [2, 3, 1], [4, 5, 6], stride=[1, 2, 1], padding=[1, 0, 0]),
    layer("depthwise", [3, 3], [6, 6], padding=[1, 1], C_in=32, C_out=32, groups=32),
]


def tiny_problems(tmp_path: Path) -> dict[str, Problem]:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps({"layers": TINY}))
    return {problem.name: problem for problem in load_problems(path)}


def tiny_case(tmp_path: Path, name: str, pass_: str, device: torch.device = CPU, **changes: object) -> Case:
    case = Case(tiny_problems(tmp_path)[name], pass_, DTYPES["f32"], "contiguous", device)
    return dataclasses.replace(case, **changes)


def spoiled(spoil: Callable[[Tensor], object]) -> Peer:
    """Our op with its result changed in place."""

    def prepare(case: Case, operands: Operands) -> Thunk:
        call = OURS.prepare(case, operands)

        def wrong() -> Tensor:
            result = call()
            spoil(result)
            return result

        return wrong

    return dataclasses.replace(OURS, prepare=prepare)


def raising(case: Case, operands: Operands) -> Thunk:
    raise RuntimeError("no such engine\nand a long trace")
