"""Derivatives: of every order, in every direction, through torch.autograd and torch.func.

What is right is told by finite differences (gradcheck) and, for the transforms of torch.func, by torch's own ops or
by the same thing done in a loop.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import unfoldconv as uc
from derivatives import OPS, OPS_2D, Op
from unfoldconv import _conv_ops

every_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
every_op_2d = pytest.mark.parametrize("op", OPS_2D, ids=lambda op: op.name)


@every_op
def test_first_derivatives(op: Op) -> None:
    arguments = op.arguments()
    assert gradcheck(
        op.function, arguments, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )


@every_op
def test_second_derivatives(op: Op) -> None:
    assert gradgradcheck(op.function, op.arguments(), check_fwd_over_rev=True, check_rev_over_rev=True)


@every_op_2d
def test_complex_derivatives(op: Op) -> None:
    arguments = op.arguments(torch.complex128)
    assert gradcheck(op.function, arguments, check_forward_ad=True)
    assert gradgradcheck(op.function, arguments)


@every_op_2d
def test_third_derivative(op: Op) -> None:
    """The set of ops is closed under differentiation, so order three needs nothing new."""
    arguments = op.arguments()

    def second(*tensors: Tensor) -> Tensor:
        output = op.function(*tensors).pow(3).sum()
        first = torch.autograd.grad(output, tensors, create_graph=True)
        return torch.stack([g.pow(2).sum() for g in first]).sum()

    def third(*tensors: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(second(*tensors), tensors, create_graph=True)

    directions = [torch.randn_like(a) for a in arguments]
    step = 1e-5
    analytic = sum(((g * d).sum() for g, d in zip(third(*arguments), directions, strict=True)), torch.zeros(()))
    ahead, behind = (
        second(*[(a + sign * step * d) for a, d in zip(arguments, directions, strict=True)]) for sign in (1, -1)
    )
    torch.testing.assert_close(analytic, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-5)


# --- only what is needed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
@pytest.mark.parametrize("transposed", [False, True])
def test_only_needed_gradients_are_computed(
    needed: tuple[bool, bool, bool], transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def spy(name: str) -> Callable[..., Tensor]:
        original = getattr(_conv_ops, name)

        def call(*arguments: object) -> Tensor:
            called.append(name)
            return original(*arguments)

        return call

    x, w, b = (torch.randn(s, requires_grad=n) for s, n in zip(((1, 2, 5, 5), (2, 2, 3, 3), (2,)), needed, strict=True))
    output = (uc.conv_transpose2d if transposed else uc.conv2d)(x, w, b)
    for name in ("conv", "conv_input_grad", "conv_weight_grad"):
        monkeypatch.setattr(_conv_ops, name, spy(name))
    output.sum().backward()
    of_input = "conv" if transposed else "conv_input_grad"
    assert called == [name for name, n in zip((of_input, "conv_weight_grad"), needed, strict=False) if n]
    assert [t.grad is not None for t in (x, w, b)] == list(needed)


def test_saved_tensors_are_the_operands() -> None:
    """Input and weight are saved, each only where the other's gradient is needed; the columns never are."""
    packed: list[int] = []
    x, w = torch.randn(1, 2, 5, 5, requires_grad=True), torch.randn(2, 2, 3, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.data_ptr()) or t, lambda t: t):
        uc.conv2d(x, w)
        assert packed == [x.data_ptr(), w.data_ptr()]
        packed.clear()
        uc.conv2d(x, w.detach())
        assert packed == [w.data_ptr()]
        packed.clear()
        uc.unfold(x, 3)
        assert packed == []


def test_inplace_change_of_a_saved_tensor_is_caught() -> None:
    x, w = torch.randn(1, 2, 5, 5, requires_grad=True), torch.randn(2, 2, 3, 3, requires_grad=True)
    output = uc.conv2d(x, w)
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_no_graph_without_need() -> None:
    x, w = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3, requires_grad=True)
    with torch.no_grad():
        assert not uc.conv2d(x, w).requires_grad
    with torch.inference_mode():
        assert uc.conv2d(x, w).is_inference()
    assert not uc.conv2d(x, w.detach()).requires_grad
    assert uc.conv2d(x, w).requires_grad


# --- torch.func: compared with torch's own convolution ----------------------------------------------------------------


def _loss(conv2d: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda w, x: conv2d(x, w, None, 2, 1, 1, 2).tanh().square().sum()


@pytest.mark.parametrize("transform", [grad, jacrev, jacfwd, hessian], ids=lambda t: t.__name__)
@pytest.mark.parametrize("argument", [0, 1])
def test_transforms(transform: Callable[..., Callable[..., Tensor]], argument: int) -> None:
    w, x = torch.randn(4, 1, 2, 3, dtype=torch.float64), torch.randn(2, 2, 4, 3, dtype=torch.float64)
    ours, theirs = (transform(_loss(conv), argnums=argument)(w, x) for conv in (uc.conv2d, F.conv2d))
    torch.testing.assert_close(ours, theirs)


@every_op
def test_jvp_and_vjp_agree(op: Op) -> None:
    """<u, J v> = <J^T u, v> for random u and v, and both go through torch.func."""
    primals = op.arguments(requires_grad=False)
    tangents = tuple(torch.randn_like(p) for p in primals)
    output, forward = jvp(op.function, primals, tangents)
    cotangent = torch.randn_like(output)
    backward = vjp(op.function, *primals)[1](cotangent)
    right = sum(((g * t).sum() for g, t in zip(backward, tangents, strict=True)), torch.zeros(()))
    torch.testing.assert_close((cotangent * forward).sum(), right.to(torch.float64))


def test_forward_mode_with_some_tangents() -> None:
    """An argument without a tangent counts as constant."""
    import torch.autograd.forward_ad as fw

    x, w, b = (torch.randn(s, dtype=torch.float64) for s in ((1, 2, 5, 5), (3, 2, 3, 3), (3,)))
    for index in range(3):
        tangent = torch.randn_like((x, w, b)[index])
        results = []
        for conv in (uc.conv2d, F.conv2d):
            with fw.dual_level():
                operands = [x, w, b]
                operands[index] = fw.make_dual(operands[index], tangent)
                results.append(fw.unpack_dual(conv(*operands)).tangent)
        torch.testing.assert_close(results[0], results[1])


def test_per_sample_gradients() -> None:
    """vmap(grad) over the batch gives what a loop over the samples gives."""
    weight = torch.randn(4, 1, 3, 2, dtype=torch.float64)
    images = torch.randn(5, 1, 2, 6, 5, dtype=torch.float64)  # five samples, each a batch of one
    gradient = grad(_loss(uc.conv2d))
    together = vmap(gradient, in_dims=(None, 0))(weight, images)
    torch.testing.assert_close(together, torch.stack([gradient(weight, image) for image in images]))


def _in_dims(count: int) -> list[tuple[int | None, ...]]:
    """Every choice of which tensors carry the vmapped dimension, at the front or the back."""
    choices: list[tuple[int | None, ...]] = [()]
    for index in range(count):
        choices = [(*c, d) for c in choices for d in (None, 0 if index % 2 == 0 else -1)]
    return [c for c in choices if any(d is not None for d in c)]


@every_op
def test_vmap(op: Op) -> None:
    """vmap over each subset of the arguments equals a loop."""
    for in_dims in _in_dims(len(op.shapes)):
        arguments = [
            torch.randn(shape, dtype=torch.float64)
            if dim is None
            else torch.randn(3, *shape, dtype=torch.float64).movedim(0, dim)
            for shape, dim in zip(op.shapes, in_dims, strict=True)
        ]
        together = vmap(op.function, in_dims=in_dims)(*arguments)
        for index in range(3):
            single = [a if dim is None else a.select(dim, index) for a, dim in zip(arguments, in_dims, strict=True)]
            torch.testing.assert_close(together[index], op.function(*single), msg=f"in_dims={in_dims}")


@every_op_2d
def test_nested_vmap(op: Op) -> None:
    tensors = [torch.randn(2, 3, *shape, dtype=torch.float64) for shape in op.shapes]
    together = vmap(vmap(op.function))(*tensors)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(together[i, j], op.function(*[t[i, j] for t in tensors]))


@every_op_2d
def test_vmap_of_derivatives(op: Op) -> None:
    """vmap over a gradient and over a forward derivative, and their second derivatives."""
    tensors = [torch.randn(3, *shape, dtype=torch.float64) for shape in op.shapes]

    def scalar(*t: Tensor) -> Tensor:
        return op.function(*t).tanh().sum()

    def directional(*t: Tensor) -> Tensor:
        return jvp(scalar, t, t)[1]

    for function in (grad(scalar), directional, grad(directional), grad(lambda *t: grad(scalar)(*t).square().sum())):
        together = vmap(function)(*tensors)
        singles = torch.stack([function(*[t[i] for t in tensors]) for i in range(3)])
        torch.testing.assert_close(together, singles)


# --- torch.ops.unfoldconv.* called directly ---------------------------------------------------------------------------

_WINDOW = ([2, 1], [1, 0], [0, 1], [1, 2])


def _direct_calls() -> list[tuple[str, tuple[object, ...]]]:
    x, w = torch.randn(2, 4, 6, 7, dtype=torch.float64), torch.randn(6, 2, 3, 2, dtype=torch.float64)
    y = torch.ops.unfoldconv.conv(x, w, None, *_WINDOW, 2)
    columns = torch.ops.unfoldconv.im2col(x, [3, 2], *_WINDOW)
    return [
        ("conv", (x, w, torch.randn(6, dtype=torch.float64), *_WINDOW, 2)),
        ("conv_input_grad", (y, w, torch.randn(4, dtype=torch.float64), [6, 7], *_WINDOW, 2)),
        ("conv_weight_grad", (y, x, [3, 2], *_WINDOW, 2)),
        ("im2col", (x, [3, 2], *_WINDOW)),
        ("col2im", (columns, [6, 7], [3, 2], *_WINDOW)),
    ]


direct_call = pytest.mark.parametrize(
    ("name", "arguments"), _direct_calls(), ids=lambda a: a if isinstance(a, str) else ""
)


@direct_call
def test_direct_calls_differentiate(name: str, arguments: tuple[object, ...]) -> None:
    op = getattr(torch.ops.unfoldconv, name)
    tensors = [a.clone().requires_grad_() for a in arguments if isinstance(a, Tensor)]
    rest = [a for a in arguments if not isinstance(a, Tensor)]
    assert gradcheck(lambda *t: op(*t, *rest), tensors, check_forward_ad=True)


@direct_call
def test_direct_calls_under_vmap(name: str, arguments: tuple[object, ...]) -> None:
    op = getattr(torch.ops.unfoldconv, name)
    rest = [a for a in arguments if not isinstance(a, Tensor)]
    tensors = [torch.stack([a, a * 2]) for a in arguments if isinstance(a, Tensor)]
    together = vmap(lambda *t: op(*t, *rest))(*tensors)
    for i in range(2):
        torch.testing.assert_close(together[i], op(*[t[i] for t in tensors], *rest))


@direct_call
def test_direct_calls_under_grad_are_never_silently_wrong(name: str, arguments: tuple[object, ...]) -> None:
    """torch.func.grad of a direct call either raises or gives the gradient."""
    op = getattr(torch.ops.unfoldconv, name)
    first, *others = arguments

    def loss(tensor: Tensor) -> Tensor:
        return op(tensor, *others).square().sum()

    leaf = first.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    try:
        actual = grad(loss)(first)
    except NotImplementedError:
        return
    torch.testing.assert_close(actual, expected)


@direct_call
def test_opcheck(name: str, arguments: tuple[object, ...]) -> None:
    op = getattr(torch.ops.unfoldconv, name).default
    torch.library.opcheck(op, arguments)
    with_grad = tuple(a.clone().requires_grad_() if isinstance(a, Tensor) else a for a in arguments)
    torch.library.opcheck(op, with_grad)
