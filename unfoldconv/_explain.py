"""What a call would do: engines, tiles, workspace, operations and bytes, without doing it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from ._binding import NAMESPACE


@dataclass(frozen=True)
class Considered:
    """An engine that was asked.

    Attributes:
        engine: Its name.
        reason: Why it declines, in words; None if it could have run.
    """

    engine: str
    reason: str | None


@dataclass(frozen=True)
class Step:
    """One use of an engine.

    Attributes:
        engine: The row of the engine tables that runs, such as `positions.lines`: the name of its family and its own.
            `torch.ops.unfoldconv.engines` has all names.
        tile: Rows x lanes that the micro-kernel holds in registers; on CUDA what a block computes, rows x positions (or
            terms), or rows x columns of positions of a plane; empty where the engine has neither.
        tasks: Into how many parts the work is cut, on CUDA blocks; the same for any number of threads.
        thread_bytes: Workspace of each thread, on CUDA of the whole op.
        shared_bytes: Memory beside: packed weights, partial sums.
        why: The reason for the engine.
        phases: How many phases of the stride are computed together, on CUDA by one launch of at most twelve.
        splits: Of how many tasks the longest sums are, on CUDA; a second pass adds what each has summed, in order.
        considered: Every engine of the table in the order in which they are asked, the one that runs among them; of
            the first phase of an input gradient also those that would compute it as a whole. Empty unless asked for.
    """

    engine: str
    tile: str
    tasks: int
    thread_bytes: int
    shared_bytes: int
    why: str
    phases: int = 1
    splits: int = 1
    considered: tuple[Considered, ...] = ()

    @property
    def family(self) -> str:
        """`columns`, `positions`, `channels`, `depthwise` or `grouped`; on CUDA also `implicit_gemm` or `stem`."""
        return self.engine.partition(".")[0]


@dataclass(frozen=True)
class Op:
    """One op of the library.

    Attributes:
        name: `conv`, `conv_input_grad`, `conv_weight_grad`, `im2col` or `col2im`.
        flops: Multiplications and additions, those with padding included.
        bytes: Sizes of the operands and the result.
        steps: The engines in order; on the CPU an input gradient has one for each phase of the stride that a tap
            reaches. None for `im2col` and `col2im`, which have one way on each device and no workspace.
    """

    name: str
    flops: int
    bytes: int
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Explanation:
    """The ops of a call in order; `str` makes a table of them."""

    ops: tuple[Op, ...]

    def __str__(self) -> str:
        lines = []
        for op in self.ops:
            intensity = op.flops / op.bytes if op.bytes else 0.0
            lines.append(f"{op.name}: {op.flops:.3g} FLOP, {op.bytes:.3g} bytes, {intensity:.3g} FLOP/byte")
            for step in op.steps:
                tile = f", tile {step.tile}" if step.tile else ""
                tile += f", {step.phases} phases" if step.phases > 1 else ""
                tile += f", {step.splits} splits" if step.splits > 1 else ""
                lines.append(
                    f"  {step.engine}{tile}, {step.tasks} tasks, workspace {step.thread_bytes} bytes a thread"
                    f" + {step.shared_bytes}: {step.why}"
                )
                chosen = [other.engine for other in step.considered if other.reason is None][:1]
                for other in step.considered:
                    said = other.reason or ("runs" if other.engine in chosen else "would take it too")
                    lines.append(f"    {other.engine}: {said}")
        return "\n".join(lines) or "no op of unfoldconv"


def explain(function: Callable[..., Any], *args: Any, considered: bool = False, **kwargs: Any) -> Explanation:
    """Says what a call's convolutions, unfolds and folds would do, and those of its gradients where they are wanted.

    The call is gone through without any of them being computed, so `function` may be a convolution, a module of them,
    or a whole model; its results, which are not numbers that mean anything, are thrown away. Gradients are
    explained for the arguments and, of a module, the parameters that require them; no `.grad` is written.

    Args:
        function: What is called, such as `unfoldconv.conv2d` or a module.
        *args: Its arguments.
        considered: Whether to ask every engine, also those after the one that runs, and to tell why each declines.
        **kwargs: Its keyword arguments.

    Returns:
        The ops in order, the forward ones first.

    Example:
        >>> import torch, unfoldconv as uc
        >>> report = uc.explain(uc.conv2d, torch.ones(1, 64, 56, 56), torch.ones(64, 64, 3, 3), padding=1)
        >>> report.ops[0].name, report.ops[0].flops
        ('conv', 231211008)
        >>> report = uc.explain(uc.conv2d, torch.ones(1, 3, 8, 8), torch.ones(8, 3, 3, 3), considered=True)
        >>> [(other.engine, other.reason) for other in report.ops[0].steps[0].considered if other.engine == "columns"]
        [('columns', None)]
    """
    ops = getattr(torch.ops, NAMESPACE)
    ops.begin_report(considered)
    try:
        # Reports are of one thread, so the backward pass must run in this one.
        with torch.autograd.set_multithreading_enabled(False):
            outputs = [tensor for tensor in _tensors(function(*args, **kwargs)) if tensor.requires_grad]
            wanted = [tensor for tensor in _tensors((args, kwargs)) if tensor.requires_grad]
            if isinstance(function, torch.nn.Module):
                wanted += [parameter for parameter in function.parameters() if parameter.requires_grad]
            if outputs and wanted:
                torch.autograd.grad(
                    outputs, wanted, [torch.zeros_like(output) for output in outputs], allow_unused=True
                )
    finally:
        text = ops.end_report()
    return Explanation(_parse(text))


_NUMBERS = ("tasks", "thread_bytes", "shared_bytes", "phases", "splits")


def _tensors(tree: Any) -> Iterable[Tensor]:
    return (leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Tensor))


def _parse(text: str) -> tuple[Op, ...]:
    ops: list[Op] = []
    considered: list[Considered] = []
    for line in text.splitlines():
        kind, *fields = line.split("\t")
        facts = dict(field.split("=", 1) for field in fields)
        if kind == "op":
            ops.append(Op(facts["name"], int(facts["flops"]), int(facts["bytes"]), ()))
        elif kind == "considered":
            considered.append(Considered(facts["name"], facts["reason"] or None))
        else:
            numbers = {name: int(facts[name]) for name in _NUMBERS}
            step = Step(facts["name"], facts["tile"], why=facts["why"], considered=tuple(considered), **numbers)
            considered.clear()
            ops[-1] = Op(ops[-1].name, ops[-1].flops, ops[-1].bytes, (*ops[-1].steps, step))
    return tuple(ops)
