"""Fixtures of every test: the same random numbers each time, and each device that there is."""

from collections.abc import Callable, Iterator

import pytest
import torch

from instruction_sets import ISAS, USED, set_isa, tested
from ranks import Ranks

# Files that take longest, with what they compile, begun first: each runs in one process, and the others fill up the
# rest. The library with sanitizers is there when the second file that needs it begins.
LONGEST = (
    *("test_sanitizers.py", "test_jit.py", "test_readme.py", "test_engines.py", "test_cuda_weight_grad.py"),
    *("test_sanitizers_engines.py", "test_sanitizers_amx.py", "test_amx.py", "test_cuda_stem.py"),
    *("test_cuda_integers.py", "test_cuda_implicit_gemm.py", "test_cuda_gemm_faults.py", "test_compile.py"),
    *("test_examples.py", "test_autograd.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(autouse=True)
def seed() -> None:
    """Random tensors are the same in every run and in any order of the tests."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Convolutions of float32 on CUDA are computed in float32, ours and torch's, and not in TensorFloat-32."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


@pytest.fixture(autouse=True)
def threads() -> Iterator[Callable[[int], None]]:
    """Tests run on one thread, where small tensors are fastest. A test of threads gets the function that sets them."""
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.fixture
def fresh_inductor() -> Iterator[None]:
    """Nothing is compiled yet: Inductor's cache of graphs does not see it when a fake kernel changes."""
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """Processes of a gloo group: two, or as many as the module's RANKS says."""
    ranks = Ranks(getattr(request.module, "RANKS", 2))
    yield ranks
    ranks.stop()


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that there is."""
    return torch.device(request.param)


@pytest.fixture
def isas() -> Iterator[tuple[str, ...]]:
    """The instruction sets to test; the one in use is put back."""
    yield tested(*ISAS)
    set_isa(USED)


# Those that differ in more than their products of 16-bit numbers.
@pytest.fixture(params=tested("generic", "avx2", "avx512"))
def isa(request: pytest.FixtureRequest, isas: tuple[str, ...]) -> str:
    """Every one of these instruction sets, which the library then uses."""
    set_isa(request.param)
    return str(request.param)
