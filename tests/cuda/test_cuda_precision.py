"""That float32 on CUDA follows torch's setting, for which the library asks libtorch. Needs CUDA code, but no GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import unfoldconv as uc

pytestmark = pytest.mark.skipif(uc.build_info()["cuda"] is None, reason="built without CUDA")
backends: Any = torch.backends


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    former = backends.cudnn.conv.fp32_precision
    yield
    backends.cudnn.conv.fp32_precision = former


@pytest.mark.parametrize(("precision", "allowed"), [("ieee", False), ("tf32", True)])
def test_precision_of_convolutions(precision: str, allowed: bool) -> None:
    backends.cudnn.conv.fp32_precision = precision
    assert torch.ops.unfoldconv.float32_as_tf32() is allowed


@pytest.mark.parametrize("allowed", [False, True])
def test_the_older_switch(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    assert torch.ops.unfoldconv.float32_as_tf32() is allowed


def test_the_precision_of_matrix_products_is_another() -> None:
    backends.cudnn.conv.fp32_precision = "ieee"
    former = backends.cuda.matmul.fp32_precision
    backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert torch.ops.unfoldconv.float32_as_tf32() is False
    finally:
        backends.cuda.matmul.fp32_precision = former
