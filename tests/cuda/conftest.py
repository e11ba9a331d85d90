"""Fixtures of the tests on the emulator."""

from collections.abc import Iterator

import pytest

from emulator.convolutions import plainly
from emulator.kernels import reset


@pytest.fixture
def plain_emulator() -> Iterator[None]:
    """What a test changes of the emulator is as before."""
    yield
    reset()


@pytest.fixture
def plain_engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """The same for convolutions, which the engine that the module's ENGINE names computes, in strict float32."""
    with plainly(request.module.ENGINE):
        yield
