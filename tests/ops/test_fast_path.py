"""The packed twins of the convolutions: the same results, and nobody that looks on sees them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import unfoldconv as uc
from cases import CASES, Case, random_tensor
from unfoldconv import _fast_path
from unfoldconv._ops import RECORDS, namespace

NAMES = ("conv", "conv_input_grad", "conv_weight_grad")


@pytest.fixture
def packed_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the packed ops that were called."""
    called: list[str] = []
    names = {_fast_path._packed_op(name): name for name in (*NAMES, "conv_backward")}
    run = _fast_path._run

    def spy(op: Callable[..., object], *arguments: object) -> object:
        called.append(names[op])
        return run(op, *arguments)

    monkeypatch.setattr(_fast_path, "_run", spy)
    return called


def operands(requires_grad: bool = True) -> tuple[Tensor, Tensor]:
    x, w = torch.randn(2, 4, 7, 6), torch.randn(6, 2, 3, 2)
    return x.requires_grad_(requires_grad), w.requires_grad_(requires_grad)


def forward_and_backward(x: Tensor, w: Tensor) -> None:
    uc.conv2d(x, w, stride=2, padding=1, groups=2).sum().backward()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_packed_ops_are_the_public_ops(case: Case, packed_calls: list[str]) -> None:
    x, w, y = (random_tensor(s, torch.float32) for s in (case.input_shape, case.weight_shape, case.output_shape))
    window = (*map(tuple, case.op_window), case.groups)
    size, kernel = tuple(case.input_size), tuple(case.kernel_size)
    for name, (tensors, numbers) in (
        ("conv", ((x, w, None), window)),
        ("conv_input_grad", ((y, w, None), (size, *window))),
        ("conv_weight_grad", ((y, x), (kernel, *window))),
    ):
        packed = _fast_path.below_autograd(RECORDS[name])(tensors, numbers)
        assert torch.equal(packed, getattr(namespace, name)(*tensors, *numbers)), name
    assert packed_calls == [*NAMES]
    gradients = _fast_path.packed_gradients(RECORDS["conv"])
    assert gradients is not None
    both = gradients(y, x, w, window)
    assert both is not None
    assert torch.equal(both[0], namespace.conv_input_grad(y, w, None, size, *window))
    assert torch.equal(both[1], namespace.conv_weight_grad(y, x, kernel, *window))
    assert packed_calls[-1] == "conv_backward"


@pytest.mark.parametrize(
    ("wanted", "packed"),
    [
        ((True, True), ["conv", "conv_backward"]),
        ((True, False), ["conv", "conv_input_grad"]),
        ((False, True), ["conv", "conv_weight_grad"]),
    ],
)
def test_plain_calls_are_packed(wanted: tuple[bool, bool], packed: list[str], packed_calls: list[str]) -> None:
    x, w = operands(requires_grad=False)
    forward_and_backward(x.requires_grad_(wanted[0]), w.requires_grad_(wanted[1]))
    assert packed_calls == packed


@pytest.mark.parametrize(("rank", "most"), [(1, 2**15 - 1), (2, 127), (3, 31)])
def test_numbers_that_do_not_fit_go_by_lists(rank: int, most: int, packed_calls: list[str]) -> None:
    """The largest stride that fits is read back as it was, the next one is not packed."""
    x, w = torch.randn(1, 1, *(1,) * (rank - 1), most + 2), torch.randn(1, 1, *(1,) * rank)
    for stride, packed in ((most, 1), (most + 1, 1)):
        result = getattr(uc, f"conv{rank}d")(x, w, stride=stride)
        assert torch.equal(result, (x * w)[..., ::stride])
        assert len(packed_calls) == packed


# --- who looks on sees the public ops ---------------------------------------------------------------------------------


class _Dispatched(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def _profiled() -> Iterator[list[str]]:
    seen: list[str] = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield seen
    seen += [event.key.replace("::", ".") for event in profile.key_averages()]


@contextmanager
def _dispatched() -> Iterator[list[str]]:
    with _Dispatched() as mode:
        yield mode.seen


@pytest.mark.parametrize("watch", [_dispatched, _profiled])
def test_modes_and_the_profiler_see_public_ops(
    watch: Callable[[], AbstractContextManager[list[str]]], packed_calls: list[str]
) -> None:
    x, w = operands()
    forward_and_backward(x, w)
    packed_calls.clear()
    with watch() as seen:
        forward_and_backward(x, w)
    assert packed_calls == []
    assert all(any(f"unfoldconv.{name}" in line for line in seen) for name in NAMES), seen


@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_graphs_hold_public_ops(pre_dispatch: bool, packed_calls: list[str]) -> None:
    x, w = operands(requires_grad=False)
    uc.conv2d(x, w, groups=2)
    packed_calls.clear()
    graph = make_fx(lambda x, w: uc.conv2d(x, w, groups=2), pre_dispatch=pre_dispatch)(x, w)
    assert "unfoldconv.conv.default" in graph.code
    assert packed_calls == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_traces_hold_public_ops(packed_calls: list[str]) -> None:
    x, w = operands(requires_grad=False)
    traced = torch.jit.trace(lambda x, w: uc.conv2d(x, w, groups=2), (x, w), check_trace=False)
    assert "unfoldconv::conv(" in str(traced.graph)
    assert packed_calls == []


class _Silent(Tensor):
    """A subclass that Python sees only below the dispatcher."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        cls.seen.append(str(func))
        with torch._C._DisableTorchDispatch():
            return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("which", [0, 1])
def test_subclasses_see_public_ops(which: int, packed_calls: list[str]) -> None:
    pair = list(operands(requires_grad=False))
    pair[which] = pair[which].as_subclass(_Silent)
    _Silent.seen.clear()
    with torch.no_grad():
        uc.conv2d(*pair, groups=2)
    assert _Silent.seen == ["unfoldconv.conv.default"]
    assert packed_calls == []


def test_other_devices_and_layouts_are_refused_in_the_name_of_the_public_op() -> None:
    x, w = operands(requires_grad=False)
    with pytest.raises(NotImplementedError, match="'unfoldconv::conv'"):
        uc.conv2d(x.to_sparse(), w, groups=2)
    assert uc.conv2d(x.to("meta"), w.to("meta"), groups=2).shape == (2, 6, 5, 5)


def test_nothing_of_a_packed_op_is_recorded() -> None:
    """What calls it records the derivative, so its own result must be as one from below autograd."""
    x, w = operands()
    result = _fast_path.below_autograd(RECORDS["conv"])((x, w, None), ((1, 1), (0, 0), (0, 0), (1, 1), 2))
    assert not result.requires_grad
    (grad,) = torch.autograd.grad(uc.conv2d(x, w, groups=2).sum(), w)
    (expected,) = torch.autograd.grad(torch.nn.functional.conv2d(x, w, groups=2).sum(), w)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("stride", [[1, 1], torch.Size((1, 1))])
def test_what_equals_a_cached_window_means_the_same(stride: object) -> None:
    x, w = operands(requires_grad=False)
    assert torch.equal(uc.conv2d(x, w, stride=(1, 1), groups=2), uc.conv2d(x, w, stride=stride, groups=2))


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("_conv_packed", (None, 0, 1)),
        ("_conv_input_grad_packed", (None, 0, 0, 1)),
        ("_conv_weight_grad_packed", (0, 0, 1)),
        ("_conv_backward_packed", (torch.ones(1, 1, 1, 1), 0, 1)),
    ],
)
def test_a_packed_op_that_is_called_by_itself_refuses_to_lose_a_gradient(name: str, others: tuple[object, ...]) -> None:
    first, second = torch.randn(1, 1, 3, 3, requires_grad=True), torch.randn(1, 1, 1, 1, requires_grad=True)
    with pytest.raises(RuntimeError, match="without grad mode"):
        getattr(torch.ops.unfoldconv, name)(first, second, *others)


def test_a_packed_op_refuses_a_rank_that_no_numbers_are_packed_for() -> None:
    flat = torch.ones(2, 3)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"1, 2 or 3 spatial axes, but got shape \(2, 3\)"):
        namespace._conv_packed(torch.ones(1, 1, 2, 3), flat, None, 0, 1)
