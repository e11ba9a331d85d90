"""`unfoldconv.explain`: what it says of a call, and that it computes and changes nothing."""

import math

import pytest
import torch

import unfoldconv as uc


def operands(dtype: torch.dtype = torch.float32, *, channels: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.ones(2, channels, 12, 10, dtype=dtype)
    return x, torch.ones(32, channels, 3, 3, dtype=dtype)


def test_numbers_of_a_convolution() -> None:
    x, w = operands()
    (op,) = uc.explain(uc.conv2d, x, w, padding=1).ops
    assert op.name == "conv"
    assert op.flops == 2 * 2 * 32 * 12 * 10 * 64 * 9
    assert op.bytes == 4 * (x.numel() + w.numel() + 2 * 32 * 12 * 10)
    (step,) = op.steps
    rows, lanes = map(int, step.tile.split("x"))
    assert rows > 0
    assert lanes > 0
    assert step.tasks > 0
    assert 0 < step.thread_bytes <= 2 << 20


def test_the_engine_follows_the_memory_format_and_the_dtype() -> None:
    x, w = operands()
    last = torch.channels_last
    assert uc.explain(uc.conv2d, x, w).ops[0].steps[0].family == "positions"
    assert uc.explain(uc.conv2d, x.to(memory_format=last), w).ops[0].steps[0].family == "channels"
    few, large = torch.ones(1, 64, 1, 1).to(memory_format=last), torch.ones(32, 64, 1, 1)
    assert uc.explain(uc.conv2d, few, large).ops[0].steps[0].family == "positions"
    assert uc.explain(uc.conv2d, x.long(), w.long()).ops[0].steps[0].family == "columns"


def test_gradients_are_explained_where_they_are_wanted() -> None:
    x, w = operands()
    w.requires_grad_()
    names = [op.name for op in uc.explain(uc.conv2d, x, w, stride=2).ops]
    assert names == ["conv", "conv_weight_grad"]
    x.requires_grad_()
    explanation = uc.explain(uc.conv2d, x, w, stride=2)
    assert sorted(op.name for op in explanation.ops) == ["conv", "conv_input_grad", "conv_weight_grad"]
    (input_grad,) = (op for op in explanation.ops if op.name == "conv_input_grad")
    assert len(input_grad.steps) == 4, "one for each phase of the stride"
    assert x.grad is None
    assert w.grad is None


def test_modules_and_models() -> None:
    model = torch.nn.Sequential(uc.Conv2d(3, 8, 3), torch.nn.ReLU(), uc.ConvTranspose2d(8, 3, 2, stride=2))
    explanation = uc.explain(model, torch.ones(1, 3, 9, 9))
    assert [op.name for op in explanation.ops][:2] == ["conv", "conv_input_grad"]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_unfold_and_fold() -> None:
    x = torch.ones(2, 3, 9, 8, requires_grad=True)
    columns_numel = 2 * 3 * 4 * 8 * 7
    explanation = uc.explain(uc.unfold, x, 2)
    moved = 4 * (x.numel() + columns_numel)
    assert [(op.name, op.flops, op.bytes, op.steps) for op in explanation.ops] == [
        ("im2col", 0, moved, ()),
        ("col2im", columns_numel, moved, ()),
    ]
    assert str(explanation).startswith("im2col: 0 FLOP, ")
    folded = uc.fold(uc.unfold(x, 2), (9, 8), 2)
    assert folded[0, 0, 1, 1] == 4, "computed as ever after a report"


def test_it_computes_nothing_and_ends() -> None:
    x, w = operands()
    with pytest.raises(uc.GeometryError):
        uc.explain(uc.conv2d, x, w, stride=0)
    expected = torch.full((2, 32, 10, 8), 64.0 * 9)
    torch.testing.assert_close(uc.conv2d(x, w), expected)


def test_the_table_names_every_op_and_engine() -> None:
    x, w = operands()
    text = str(uc.explain(uc.conv2d, x, w))
    assert text.startswith("conv: ")
    assert "positions.gathered, tile " in text
    assert str(uc.explain(torch.relu, x)) == "no op of unfoldconv"


@pytest.mark.parametrize("engine", ["columns", "positions", "channels"])
def test_an_engine_can_be_forced(engine: str) -> None:
    x, w = (tensor.to(memory_format=torch.channels_last) for tensor in operands(torch.float64))
    expected = torch.full((2, 32, 10, 8), 64.0 * 9, dtype=torch.float64)
    ops = torch.ops.unfoldconv
    ops.force_engine(engine)
    try:
        assert uc.explain(uc.conv2d, x, w).ops[0].steps[0].family == engine
        torch.testing.assert_close(uc.conv2d(x, w), expected)
    finally:
        ops.force_engine("automatic")


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"engine must be one of automatic, .*, but got fastest"):
        torch.ops.unfoldconv.force_engine("fastest")
    assert math.isclose(uc.conv1d(torch.ones(1, 1, 3), torch.ones(1, 1, 3)).item(), 3.0)
