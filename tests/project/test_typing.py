"""What a type checker says of code that uses the library: `mypy --strict` over a file of a user's."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PREAMBLE = """
import torch
import unfoldconv as uc

x, w = torch.ones(1, 3, 8, 8), torch.ones(4, 3, 3, 3)
layer = uc.Conv2d(3, 4, 3, padding="same", padding_mode="circular")
transposed = uc.ConvTranspose2d(3, 4, 3, padding=((1, 0), (0, 1)))
"""

# The expression, and its type.
REVEALED = [
    ("uc.conv2d(x, w, None, (2, 1), ((1, 0), (0, 1)), 1, 3)", "Tensor"),
    ("uc.conv_transpose3d(x, w, stride=[2, 2, 1], output_padding=1)", "Tensor"),
    ("uc.unfold(x, (3,), padding='same')", "Tensor"),
    ("uc.fold2d(x, x.shape[2:], 3, reduction='mean')", "Tensor"),
    ("uc.functional.unfold_transpose1d(x, 3)", "Tensor"),
    ("layer", "Conv2d"),
    ("layer(x)", "Tensor"),
    ("layer.weight", "Tensor"),
    ("layer.bias", "Tensor | None"),
    ("transposed(x, output_size=(9, 9))", "Tensor"),
    ("uc.LazyConv1d(4, 3)(x)", "Tensor"),
    ("uc.Unfold(3)(x)", "Tensor"),
    ("uc.Fold(3, 3, reduction='mean')(x)", "Tensor"),
    ("uc.UnfoldTranspose(3)(x)", "Tensor"),
    ("uc.explain(uc.conv2d, x, w).ops[0].steps[0].tasks", "int"),
    ("uc.build_info()", "dict[str, str | None]"),
]

# The expression, and what is said of it.
WRONG = [
    ("uc.conv2d(x)", 'Missing positional argument "weight"'),
    ("uc.conv2d(x, w, strides=2)", 'Unexpected keyword argument "strides"'),
    ("uc.conv2d([1.0], w)", 'Argument 1 to "conv2d" has incompatible type'),
    ("uc.conv2d(x, w, stride=2.0)", 'Argument "stride" to "conv2d" has incompatible type'),
    ("uc.conv2d(x, w, padding=None)", 'Argument "padding" to "conv2d" has incompatible type'),
    ("uc.conv2d(x, w, groups=(1,))", 'Argument "groups" to "conv2d" has incompatible type'),
    ("uc.fold(x, 3, 3, reduction='max')", 'Argument "reduction" to "fold" has incompatible type'),
    ("uc.unfold(x, 3, output_padding=1)", 'Unexpected keyword argument "output_padding"'),
    ("uc.conv2d(x, w).no_such_method()", '"Tensor" has no attribute "no_such_method"'),
    ("uc.Conv2d(3, 4)", 'Missing positional argument "kernel_size"'),
    ("uc.Conv2d(3, 4, 3, padding_mode='mirror')", 'Argument "padding_mode" to "Conv2d" has incompatible type'),
    ("uc.Conv2d(3, 4, 3, dtype='float32')", 'Argument "dtype" to "Conv2d" has incompatible type'),
    ("layer(x, x)", "Too many arguments"),
    ("layer(3)", 'Argument 1 to "__call__" of "ConvModule" has incompatible type'),
    ("transposed(x, 9)", 'Argument 2 to "__call__" of "ConvTransposeModule" has incompatible type'),
    ("uc.no_such_name", 'Module has no attribute "no_such_name"'),
]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What mypy says of each expression."""
    expressions = [*(f"reveal_type({expression})" for expression, _ in REVEALED), *(wrong for wrong, _ in WRONG)]
    source = tmp_path_factory.mktemp("typing") / "user.py"
    source.write_text(PREAMBLE + "\n".join(expressions) + "\n")
    options = ["--strict", "--hide-error-codes", "--cache-dir", str(ROOT / "build" / "mypy"), "--config-file="]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(source)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr
    first = PREAMBLE.count("\n") + 1
    lines: dict[str, list[str]] = {expression: [] for expression in expressions}
    for line, message in re.findall(r"^\S*user\.py:(\d+): (.*)$", done.stdout, re.MULTILINE):
        assert int(line) >= first, message
        lines[expressions[int(line) - first]].append(message)
    return lines


@pytest.mark.parametrize(("expression", "kind"), REVEALED, ids=[expression for expression, _ in REVEALED])
def test_types_are_precise(expression: str, kind: str, said: dict[str, list[str]]) -> None:
    (message,) = said[f"reveal_type({expression})"]
    revealed = re.fullmatch(r'note: Revealed type is "(.*)"', message)
    assert revealed, message
    assert re.sub(r"\b\w+\.", "", revealed[1]) == kind


@pytest.mark.parametrize(("expression", "message"), WRONG, ids=[expression for expression, _ in WRONG])
def test_a_wrong_call_is_flagged(expression: str, message: str, said: dict[str, list[str]]) -> None:
    assert any(line.startswith("error: ") and message in line for line in said[expression]), said[expression]
