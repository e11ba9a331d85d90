"""The modules against torch.nn: arguments, parameters, results, gradients, and the rules for what torch.nn refuses."""

import contextlib
import copy
import inspect
import io
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unfoldconv as uc
from cases import CASES, Case

RANKS = (1, 2, 3)
CONV_NAMES = [f"Conv{rank}d" for rank in RANKS]
TRANSPOSE_NAMES = [f"ConvTranspose{rank}d" for rank in RANKS]
MODES = ("reflect", "replicate", "circular")
TORCH_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TORCH_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

# Results here are float64 sums of a few hundred products of numbers around 1, whose rounding errors stay below 1e-13.
assert_same = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)


def double(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def flat(pairs: tuple[tuple[int, int], ...]) -> list[int]:
    """(low, high) pairs as torch.nn.functional.pad takes them: last axis first."""
    return [number for pair in reversed(pairs) for number in pair]


def conv_arguments(case: Case) -> dict[str, Any]:
    return {
        "in_channels": case.in_channels,
        "out_channels": case.out_channels,
        "kernel_size": case.kernel_size,
        "stride": case.stride,
        "padding": case.torch_padding,
        "dilation": case.dilation,
        "groups": case.groups,
        "bias": case.bias,
        "dtype": torch.float64,
    }


def transpose_arguments(case: Case) -> dict[str, Any]:
    """Of the transposed convolution that goes from the case's output to its input."""
    swapped = {"in_channels": case.out_channels, "out_channels": case.in_channels}
    return conv_arguments(case) | swapped | {"output_padding": case.output_padding}


def twins(name: str, arguments: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Our module and torch.nn's, made with the same random seed."""
    modules = []
    for namespace in (uc, nn):
        torch.manual_seed(1)
        modules.append(getattr(namespace, name)(**arguments))
    return modules[0], modules[1]


def results(module: nn.Module, input: Tensor, *output_size: list[int]) -> list[Tensor]:
    """The output, and the gradients of the input and of each parameter, for a fixed random gradient of the output."""
    input = input.clone().requires_grad_()
    output = module(input, *output_size)
    generator = torch.Generator().manual_seed(2)
    grad_output = torch.randn(output.shape, dtype=output.dtype, generator=generator)
    return [output, *torch.autograd.grad(output, [input, *module.parameters()], grad_output)]


# --- the same as torch.nn ---------------------------------------------------------------------------------------------

SYMMETRIC = [case for case in CASES if case.symmetric]
# torch.nn refuses an output padding of a stride or more, and has no rule for a batch without images in every rank.
REVERSIBLE = [case for case in SYMMETRIC if case.batch > 0]


@pytest.mark.parametrize("name", sorted(set(uc.modules.__all__) - {"UnfoldTranspose"}))
def test_signature_and_type_are_those_of_torch(name: str) -> None:
    ours, theirs = getattr(uc, name), getattr(nn, name)
    assert issubclass(ours, theirs)
    our_parameters, their_parameters = inspect.signature(ours).parameters, inspect.signature(theirs).parameters
    assert list(our_parameters)[: len(their_parameters)] == list(their_parameters)
    for parameter in their_parameters:
        assert our_parameters[parameter].default == their_parameters[parameter].default


@pytest.mark.parametrize("case", SYMMETRIC, ids=lambda case: case.name)
def test_convolution_is_torchs(case: Case) -> None:
    ours, theirs = twins(f"Conv{case.rank}d", conv_arguments(case))
    input = double(*case.input_shape)
    assert_same(results(ours, input), results(theirs, input))


@pytest.mark.parametrize("case", REVERSIBLE, ids=lambda case: case.name)
def test_transposed_convolution_is_torchs(case: Case) -> None:
    ours, theirs = twins(f"ConvTranspose{case.rank}d", transpose_arguments(case))
    input = double(*case.output_shape)
    assert_same(results(ours, input), results(theirs, input))


@pytest.mark.parametrize("name", CONV_NAMES + TRANSPOSE_NAMES)
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_and_attributes_are_torchs(name: str, bias: bool) -> None:
    ours, theirs = twins(name, {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 2, "bias": bias})
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for parameter, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[parameter], value), f"{parameter} is initialised in another way"
    for attribute in (*nn.Conv1d.__constants__, "transposed"):
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("name", CONV_NAMES + TRANSPOSE_NAMES)
def test_state_dict_loads_in_both_directions(name: str) -> None:
    ours = getattr(uc, name)(2, 3, 2, dtype=torch.float64)
    theirs = getattr(nn, name)(2, 3, 2, dtype=torch.float64)
    input = double(2, 2, *(5, 4, 3)[: int(name[-2])])
    assert not torch.equal(ours(input), theirs(input))
    for target, source in ((ours, theirs), (theirs, getattr(uc, name)(2, 3, 2, dtype=torch.float64))):
        target.load_state_dict(source.state_dict())
        assert_same(target(input), source(input))


@pytest.mark.parametrize("name", CONV_NAMES + TRANSPOSE_NAMES)
def test_unbatched_input(name: str) -> None:
    module = getattr(uc, name)(2, 3, 2, padding=1, padding_mode="circular", dtype=torch.float64)
    input = double(2, *(5, 4, 3)[: int(name[-2])])
    assert_same(module(input), module(input.unsqueeze(0)).squeeze(0))


@pytest.mark.parametrize("name", CONV_NAMES + TRANSPOSE_NAMES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), "torch.save"])
def test_copies_compute_the_same(name: str, copied: Callable[[nn.Module], nn.Module] | str) -> None:
    module = getattr(uc, name)(2, 3, 2, stride=2, padding="same", padding_mode="replicate", dtype=torch.float64)
    if copied == "torch.save":
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    else:
        twin = copied(module)
    input = double(1, 2, *(5, 4, 3)[: int(name[-2])])
    assert type(twin) is type(module)
    assert torch.equal(twin(input), module(input))
    assert twin.weight is not module.weight


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_conversion_of_the_dtype(dtype: torch.dtype) -> None:
    module = uc.Conv2d(2, 3, 3, padding="same").to(dtype).eval()
    assert module.weight.dtype == dtype
    assert module(torch.ones(1, 2, 4, 4, dtype=dtype)).dtype == dtype
    assert not module.training
    assert module.train().training


def test_meta_device_and_memory_format() -> None:
    module = uc.Conv2d(3, 4, 3, stride=2, padding="same", device="meta")
    assert module(torch.empty(2, 3, 7, 7, device="meta")).shape == (2, 4, 4, 4)
    module = uc.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    assert module(torch.ones(2, 3, 7, 7)).is_contiguous(memory_format=torch.channels_last)


def test_spectral_norm_normalises_the_output_channels() -> None:
    """torch asks for the class to find them: they come second in the weight of a transposed convolution."""
    ours, theirs = twins("ConvTranspose2d", {"in_channels": 3, "out_channels": 5, "kernel_size": 2})
    weights = []
    for module in (ours, theirs):
        torch.manual_seed(3)
        weights.append(nn.utils.parametrizations.spectral_norm(module).weight)
    assert torch.equal(*weights)


def test_only_what_needs_a_gradient_gets_one() -> None:
    module = uc.Conv2d(2, 3, 3)
    module.weight.requires_grad_(False)
    module(torch.ones(1, 2, 5, 5)).sum().backward()
    assert module.weight.grad is None
    assert torch.equal(module.bias.grad, torch.full((3,), 9.0))


# --- padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONV_NAMES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", [1, "same", "valid"])
def test_padding_modes_are_torchs(name: str, mode: str, padding: int | str) -> None:
    arguments = {"in_channels": 2, "out_channels": 3, "kernel_size": 4, "padding": padding, "padding_mode": mode}
    ours, theirs = twins(name, arguments | {"dtype": torch.float64})
    input = double(2, 2, *(7, 6, 5)[: int(name[-2])])
    assert_same(results(ours, input), results(theirs, input))
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("mode", ["zeros", *MODES])
@pytest.mark.parametrize("rank", RANKS)
def test_asymmetric_padding_of_convolution(rank: int, mode: str) -> None:
    padding = ((1, 0), (0, 2), (2, 1))[:rank]
    module = getattr(uc, f"Conv{rank}d")(2, 3, 3, stride=2, padding=padding, padding_mode=mode, dtype=torch.float64)
    input = double(2, 2, *(7, 6, 5)[:rank])
    padded = F.pad(input, flat(padding), mode="constant" if mode == "zeros" else mode)
    assert_same(module(input), TORCH_CONV[rank](padded, module.weight, module.bias, stride=2))
    assert module.padding == padding
    assert f"padding={padding}" in repr(module)


@pytest.mark.parametrize("mode", ["zeros", *MODES])
@pytest.mark.parametrize("size", range(4, 12))
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (4, 3, 1), (2, 2, 3), (1, 3, 1)])
def test_same_padding_with_any_stride(size: int, kernel: int, stride: int, dilation: int, mode: str) -> None:
    module = uc.Conv1d(
        2, 3, kernel, stride=stride, padding="same", dilation=dilation, padding_mode=mode, dtype=torch.float64
    )
    positions = math.ceil(size / stride)
    missing = max((positions - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    input = double(2, 2, size)
    padded = F.pad(input, (missing // 2, missing - missing // 2), mode="constant" if mode == "zeros" else mode)
    expected = F.conv1d(padded, module.weight, module.bias, stride=stride, dilation=dilation)
    assert expected.shape == (2, 3, positions)
    assert_same(module(input), expected)


def reflected(index: Tensor, size: int) -> Tensor:
    """... 2 1 [0 1 2 3] 2 1 0 1 ..."""
    period = max(2 * (size - 1), 1)
    index = index % period
    return torch.minimum(index, period - index)


SOURCE_INDEX: dict[str, Callable[[Tensor, int], Tensor]] = {
    "reflect": reflected,
    "replicate": lambda index, size: index.clamp(0, size - 1),
    "circular": lambda index, size: index % size,
}


def transposed_of_extended(module: nn.Module, input: Tensor, mode: str, low: tuple[int, ...], size: Tensor) -> Tensor:
    """The rule, literally: the input goes on far beyond its ends, and `size` elements from `low` on are kept."""
    far, rank = 6, input.dim() - 2
    for axis in range(rank):
        length = input.shape[2 + axis]
        index = SOURCE_INDEX[mode](torch.arange(-far, length + far), length)
        input = input.index_select(2 + axis, index)
    output = TORCH_TRANSPOSE[rank](
        input, module.weight, module.bias, module.stride, groups=module.groups, dilation=module.dilation
    )
    for axis in range(rank):
        output = output.narrow(2 + axis, far * module.stride[axis] + low[axis], size[axis])
    return output


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "output_padding"),
    [
        (3, 1, (0, 0), 1, 0),
        (3, 2, (1, 1), 1, 1),
        (4, 2, (1, 2), 1, 0),
        (5, 3, (0, 3), 1, 2),
        (3, 2, (2, 0), 2, 0),
        (2, 3, (0, 0), 1, 1),
        (2, 3, (0, 0), 2, 2),
        (3, 1, (4, 4), 1, 0),
        (1, 2, (0, 0), 1, 0),
    ],
)
@pytest.mark.parametrize("rank", RANKS)
def test_padding_modes_of_transposed_convolution(
    rank: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int, output_padding: int, mode: str
) -> None:
    module = getattr(uc, f"ConvTranspose{rank}d")(
        4, 6, kernel, stride, (padding,) * rank, output_padding, 2, True, dilation, mode, dtype=torch.float64
    )
    zeros = getattr(uc, f"ConvTranspose{rank}d")(
        4, 6, kernel, stride, (padding,) * rank, output_padding, 2, True, dilation, dtype=torch.float64
    )
    input = double(2, 4, *(11, 10, 9)[:rank])
    size = zeros(input).shape[2:]
    expected = transposed_of_extended(module, input, mode, (padding[0],) * rank, size)
    assert expected.shape == zeros(input).shape
    assert_same(module(input), expected)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (4, 2, 1), (5, 3, 1), (2, 3, 1), (3, 2, 2)]
)
@pytest.mark.parametrize("rank", RANKS)
def test_circular_transposed_convolution_commutes_with_rolling(
    rank: int, kernel: int, stride: int, dilation: int
) -> None:
    module = getattr(uc, f"ConvTranspose{rank}d")(
        2, 3, kernel, stride, "same", dilation=dilation, padding_mode="circular", dtype=torch.float64
    )
    input = double(2, 2, *(7, 6, 5)[:rank])
    for axis in range(2, 2 + rank):
        assert_same(module(input.roll(1, axis)), module(input).roll(stride, axis))


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (4, 2, 1), (5, 3, 1), (2, 3, 1), (3, 2, 2)]
)
@pytest.mark.parametrize("rank", RANKS)
def test_circular_transposed_convolution_is_the_adjoint(rank: int, kernel: int, stride: int, dilation: int) -> None:
    arguments = {"stride": stride, "padding": "same", "dilation": dilation, "padding_mode": "circular", "bias": False}
    up = getattr(uc, f"ConvTranspose{rank}d")(2, 3, kernel, dtype=torch.float64, **arguments)
    down = getattr(uc, f"Conv{rank}d")(3, 2, kernel, dtype=torch.float64, **arguments)
    down.load_state_dict(up.state_dict())
    small = double(2, 2, *(6, 5, 4)[:rank])
    large = double(2, 3, *[size * stride for size in (6, 5, 4)[:rank]])
    assert_same((down(large) * small).sum(), (large * up(small)).sum())


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (4, 2, 1), (2, 3, 1), (1, 2, 1), (2, 2, 2)]
)
def test_same_padding_of_transposed_convolution(kernel: int, stride: int, dilation: int) -> None:
    module = uc.ConvTranspose2d(2, 3, kernel, stride, "same", dilation=dilation, dtype=torch.float64)
    input = double(2, 2, 5, 4)
    full = F.conv_transpose2d(input, module.weight, stride=stride, dilation=dilation)
    span = dilation * (kernel - 1) + 1
    crop = (-(max(span - stride, 0) // 2), -(span - stride - max(span - stride, 0) // 2))
    expected = F.pad(full, crop * 2) + module.bias.reshape(-1, 1, 1)
    assert_same(module(input), expected)
    assert expected.shape == (2, 3, 5 * stride, 4 * stride)


# --- output_size ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["spatial", "whole"])
@pytest.mark.parametrize("name", TRANSPOSE_NAMES)
def test_output_size_is_torchs(name: str, form: str) -> None:
    rank = int(name[-2])
    ours, theirs = twins(
        name, {"in_channels": 2, "out_channels": 3, "kernel_size": 3, "stride": 3, "padding": 1, "dtype": torch.float64}
    )
    input = double(2, 2, *(4, 3, 2)[:rank])
    for extra in range(3):
        spatial = [(size - 1) * 3 + 1 + extra for size in input.shape[2:]]
        output_size = spatial if form == "spatial" else [2, 3, *spatial]
        assert_same(results(ours, input, output_size), results(theirs, input, output_size))
    for wrong in ([*spatial[:-1], spatial[-1] + 1], [1] * rank, [5] * (rank + 3)):
        with pytest.raises(ValueError) as theirs_error:  # noqa: PT011
            theirs(input, wrong)
        with pytest.raises(type(theirs_error.value), match=r"^output_size must .* but got "):
            ours(input, wrong)


@pytest.mark.parametrize("mode", ["zeros", "circular", "replicate"])
def test_output_size_with_padding_modes(mode: str) -> None:
    arguments = {"in_channels": 2, "out_channels": 3, "kernel_size": 4, "stride": 3, "padding": 1, "padding_mode": mode}
    by_size = uc.ConvTranspose1d(**arguments, dtype=torch.float64)
    by_padding = uc.ConvTranspose1d(**arguments, output_padding=2, dtype=torch.float64)
    by_padding.load_state_dict(by_size.state_dict())
    input = double(1, 2, 5)
    assert_same(by_size(input, output_size=by_padding(input).shape), by_padding(input))


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 3), (2, 3), (1, 2)])
def test_output_size_with_same_padding_is_the_adjoint(kernel: int, stride: int) -> None:
    """Every size that the convolution takes to 4 can be asked for, and the result is that convolution's adjoint."""
    down = uc.Conv1d(2, 3, kernel, stride, "same", bias=False, dtype=torch.float64)
    up = uc.ConvTranspose1d(3, 2, kernel, stride, "same", bias=False, dtype=torch.float64)
    up.load_state_dict(down.state_dict())
    small = double(1, 3, 4)
    sizes = range(3 * stride + 1, 4 * stride + 1)
    for size in sizes:
        large = double(1, 2, size)
        assert_same((down(large) * small).sum(), (large * up(small, output_size=[size])).sum())
    assert_same(up(small, output_size=[4 * stride]), up(small))
    for size in (sizes.start - 1, sizes.stop):
        with pytest.raises(
            uc.GeometryError, match=rf"valid sizes range from \[{sizes.start}\] to \[{sizes.stop - 1}\]"
        ):
            up(small, output_size=[size])


# --- lazy forms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CONV_NAMES + TRANSPOSE_NAMES)
def test_lazy_form_becomes_the_module(name: str, bias: bool) -> None:
    rank = int(name[-2])
    input = double(2, 4, *(5, 4, 3)[:rank])
    outputs = []
    for namespace in (uc, nn):
        module = getattr(namespace, f"Lazy{name}")(6, 3, stride=2, groups=2, bias=bias, dtype=torch.float64)
        assert isinstance(module.weight, nn.UninitializedParameter)
        torch.manual_seed(4)
        outputs.append(module(input))
        assert type(module) is getattr(namespace, name)
        assert module.in_channels == 4
        assert (module.bias is not None) == bias
    assert_same(*outputs)


@pytest.mark.parametrize("name", CONV_NAMES + TRANSPOSE_NAMES)
def test_lazy_form_loads_weights_of_torch(name: str) -> None:
    theirs = getattr(nn, name)(4, 6, 3, dtype=torch.float64)
    ours = getattr(uc, f"Lazy{name}")(6, 3, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    input = double(2, 4, *(5, 4, 3)[: int(name[-2])])
    assert_same(ours(input), theirs(input))


def test_lazy_form_takes_what_torch_refuses() -> None:
    module = uc.LazyConvTranspose2d(3, 3, stride=2, padding="same", padding_mode="circular")
    assert module(torch.ones(1, 2, 4, 5)).shape == (1, 3, 8, 10)
    assert module.padding_mode == "circular"


@pytest.mark.parametrize(
    ("out_channels", "shape", "message"),
    [
        (6, (1, 3, 5, 5), "in_channels must be divisible by groups"),
        (3, (1, 4, 5, 5), "out_channels must be divisible by groups and not negative, but got 3 with groups 2"),
        (6, (4, 5), r"Expected 3D \(unbatched\) or 4D \(batched\) input"),
    ],
)
def test_lazy_form_refuses(out_channels: int, shape: tuple[int, ...], message: str) -> None:
    module = uc.LazyConv2d(out_channels, 3, groups=2)
    with pytest.raises(uc.GeometryError, match=message):
        module(torch.ones(shape))


# --- bad arguments ----------------------------------------------------------------------------------------------------

BAD_ARGUMENTS: list[tuple[str, dict[str, Any], str]] = [
    ("groups", {"groups": 0}, "groups must be a positive integer, but got 0"),
    ("groups", {"groups": -1}, "groups must be a positive integer, but got -1"),
    ("in_channels", {"groups": 3}, "in_channels must be divisible by groups and not negative, but got 4 with groups 3"),
    ("out_channels", {"groups": 4}, "out_channels must be divisible by groups and not negative, but got 6"),
    ("negative in_channels", {"in_channels": -2}, "in_channels must .* not negative, but got -2"),
    ("negative out_channels", {"out_channels": -2}, "out_channels must .* not negative, but got -2"),
    ("padding_mode", {"padding_mode": "mirror"}, "padding_mode must be one of .*, but got 'mirror'"),
    ("padding word", {"padding": "full"}, "padding must be 'same', 'valid', .* but got 'full'"),
    ("padding length", {"padding": (1, 2, 3)}, r"padding must .* per spatial axis \(2\), but got \(1, 2, 3\)"),
    ("padding pairs", {"padding": ((1, 2),)}, r"padding must have one \(low, high\) pair per spatial axis \(2\)"),
    ("padding triple", {"padding": ((1, 2, 3), (1, 2, 3))}, r"padding must have one \(low, high\) pair"),
    ("kernel_size", {"kernel_size": 0}, r"kernel_size must be positive, but got \(0, 0\)"),
    ("kernel_size length", {"kernel_size": (3, 3, 3)}, r"kernel_size must .* per spatial axis \(2\)"),
    ("stride", {"stride": (1, 0)}, r"stride must be positive, but got \(1, 0\)"),
    ("stride length", {"stride": (1, 1, 1)}, r"stride must .* per spatial axis \(2\)"),
    ("dilation", {"dilation": -1}, r"dilation must be positive, but got \(-1, -1\)"),
]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d"])
@pytest.mark.parametrize(
    ("arguments", "message"), [row[1:] for row in BAD_ARGUMENTS], ids=[row[0] for row in BAD_ARGUMENTS]
)
def test_bad_arguments_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    good = {"in_channels": 4, "out_channels": 6, "kernel_size": 3}
    with pytest.raises(uc.GeometryError, match=message):
        getattr(uc, name)(**good | arguments)
    with contextlib.suppress(RuntimeError, ValueError):  # all that torch raises here, and GeometryError is both
        getattr(nn, name)(**good | arguments)


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d"])
@pytest.mark.parametrize("argument", ["kernel_size", "stride", "dilation", "padding"])
@pytest.mark.parametrize("value", [1.5, (1, 1.5), None])
def test_numbers_of_the_wrong_type_are_refused(name: str, argument: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{argument} must be"):
        getattr(uc, name)(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3} | {argument: value})


@pytest.mark.parametrize(("mode", "size"), [("reflect", 2), ("circular", 1)])
@pytest.mark.parametrize("name", ["Conv1d", "ConvTranspose1d"])
def test_too_long_an_extension_is_refused(name: str, mode: str, size: int) -> None:
    padding = 0 if name == "ConvTranspose1d" else 2
    module = getattr(uc, name)(1, 1, 3, padding=padding, padding_mode=mode)
    with pytest.raises(uc.GeometryError, match=rf"padding must .* but got \(2, 2\) for size {size} along axis 0"):
        module(torch.ones(1, 1, size))
    assert module(torch.ones(1, 1, size + 1)).shape[0] == 1


# --- patches ----------------------------------------------------------------------------------------------------------


def test_unfold_and_fold_are_torchs() -> None:
    arguments = {"kernel_size": (3, 2), "dilation": (1, 2), "padding": 1, "stride": (2, 1)}
    input = double(2, 3, 7, 6)
    columns = nn.Unfold(**arguments)(input)
    assert torch.equal(uc.Unfold(**arguments)(input), columns)
    assert_same(uc.Fold((7, 6), **arguments)(columns), nn.Fold((7, 6), **arguments)(columns))
    assert repr(uc.Unfold(**arguments)) == repr(nn.Unfold(**arguments))
    assert repr(uc.Fold((7, 6), **arguments)) == repr(nn.Fold((7, 6), **arguments))


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_mean_of_the_patches_is_the_image(rank: int, batch: tuple[int, ...]) -> None:
    arguments = {"kernel_size": (3, 2, 2)[:rank], "padding": ((1, 0), (1, 1), (0, 2))[:rank]}
    input = double(*batch, 3, *(6, 5, 4)[:rank])
    fold = uc.Fold((6, 5, 4)[:rank], **arguments, reduction="mean")
    assert_same(fold(uc.Unfold(**arguments)(input)), input)
    assert repr(fold).endswith("reduction=mean)")


@pytest.mark.parametrize("rank", RANKS)
def test_transposed_convolution_is_a_product_with_the_transposed_patches(rank: int) -> None:
    window = {"stride": 2, "padding": (1, 0, 1)[:rank], "output_padding": 1}
    module = getattr(uc, f"ConvTranspose{rank}d")(3, 4, (3, 2, 2)[:rank], bias=False, dtype=torch.float64, **window)
    input = double(2, 3, *(4, 3, 2)[:rank])
    columns = uc.UnfoldTranspose((3, 2, 2)[:rank], **window)(input)
    output = module(input)
    assert_same(module.weight.transpose(0, 1).flatten(1) @ columns, output.flatten(2))
    assert repr(uc.UnfoldTranspose(3, stride=2)) == (
        "UnfoldTranspose(kernel_size=3, dilation=1, padding=0, stride=2, output_padding=0)"
    )


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d"])
def test_modules_compile_into_one_graph(name: str, mode: str) -> None:
    module = getattr(uc, name)(2, 3, 3, stride=2, padding="same", padding_mode=mode, dtype=torch.float64)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in (6, 9):
        input = double(2, 2, size, size + 1)
        assert_same(results(compiled, input), results(module, input))
