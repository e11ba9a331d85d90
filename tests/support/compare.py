"""How results are compared: bit for bit, or within what rounding explains."""

import torch
from torch import Tensor

# Per dtype: the relative error of rounding a result to it, and of one addition in the type it is summed in. 16-bit
# types are summed in float32, so that only the last step rounds to 16 bits.
_ROUNDING: dict[torch.dtype, tuple[float, float]] = {
    torch.float16: (2**-11, 2**-24),
    torch.bfloat16: (2**-8, 2**-24),
    torch.float32: (2**-24, 2**-24),
    torch.float64: (2**-53, 2**-53),
    torch.complex64: (2**-24, 2**-24),
    torch.complex128: (2**-53, 2**-53),
}

# A sum of n terms in any order is off by at most n roundings of the sum of their absolute values. Errors have either
# sign, so they grow like sqrt(n): 16 is that for the largest sums of the tests (some hundred terms), with room.
_ADDITIONS = 16

# The smallest positive float16 is 2^-24: what is rounded to it is off by up to half of that however small it is.
_UNDERFLOW = {torch.float16: 2**-25}

# The largest of many errors, ours and torch's, of sums in different order: how far the two are apart is luck.
_AS_TORCHS = 8


def wide(tensor: Tensor) -> Tensor:
    """In double precision."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def assert_within_rounding(actual: Tensor, expected: Tensor, magnitude: Tensor, what: str = "") -> None:
    """Checks a result of sums against its double-precision value.

    Args:
        actual: The result.
        expected: The same computed in double precision from the same, already rounded, arguments.
        magnitude: What the sums would be if every term were replaced by its absolute value.
        what: Named in the message.
    """
    rounding, addition = _ROUNDING[actual.dtype]
    allowed = 2 * rounding * expected.abs() + _ADDITIONS * addition * magnitude + _UNDERFLOW.get(actual.dtype, 0.0)
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    excess = (wide(actual) - expected).abs() - allowed
    # Not `excess > 0`, which a NaN would pass.
    wrong = ~(excess <= 0)
    assert not wrong.any(), (
        f"{what}: {int(wrong.sum())} of {wrong.numel()} elements are wrong, first {wrong.nonzero()[0].tolist()}: "
        f"{actual[wrong][0].item()} instead of {expected[wrong][0].item()}, off by more than "
        f"{allowed[wrong][0].item():.3g}"
    )


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor in row-major order; tells 0 from -0 and compares NaN."""
    # Not `contiguous`, which leaves a single element its stride.
    plain = tensor.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return plain.flatten().view(torch.uint8)


def assert_same_bits(actual: Tensor, expected: Tensor, what: str = "") -> None:
    """Checks shape, dtype, device and every bit."""
    for name in ("shape", "dtype", "device"):
        found, wanted = getattr(actual, name), getattr(expected, name)
        assert found == wanted, f"{what}: {name} {found} instead of {wanted}"
    assert torch.equal(bits(actual), bits(expected)), f"{what}: the values differ"


def assert_as_accurate(actual: Tensor, theirs: Tensor, exact: Tensor, what: str = "") -> None:
    """Checks a result of many layers, for which nobody knows what rounding explains, by the errors of torch's own.

    Args:
        actual: Our result.
        theirs: Torch's result of the same type.
        exact: The same in double precision.
        what: Named in the message.
    """
    error, their_error = (((wide(result) - exact).abs().max().item()) for result in (actual, theirs))
    # Errors of results that cancel to nearly nothing are not small beside the result, but they are in both.
    _, addition = _ROUNDING[actual.dtype]
    allowed = _AS_TORCHS * their_error + _ADDITIONS * addition * exact.abs().max().item()
    assert error <= allowed, f"{what}: off by {error:.3g}, torch's by {their_error:.3g}, allowed are {allowed:.3g}"
