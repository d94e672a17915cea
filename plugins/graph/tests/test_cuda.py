"""NVRTC, launching and cuSPARSE: what can be said without a GPU, and products where there is one."""

from __future__ import annotations

import ctypes
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from planish.errors import MissingRequirement, PlanishError
from planish_graph import cusparse, driver, libraries, nvrtc
from planish_graph.dispatch import SPMM
from planish_graph.generate import from_degrees

SCALE = """
extern "C" __global__ void scale(float* x, long long n, int by, float more, const float* absent) {
    extern __shared__ float shared[];
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    shared[threadIdx.x] = more;
    if (i < n && absent == nullptr) x[i] = x[i] * by * WIDTH + shared[threadIdx.x];
}
"""
needs_nvrtc = pytest.mark.skipif(
    libraries.load("nvrtc") is None, reason="no NVRTC, which torch's CUDA wheels bring"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@needs_nvrtc
def test_sources_compile_for_a_device_that_is_not_there() -> None:
    code = nvrtc.build(SCALE, defines={"WIDTH": 2}, arch=90)
    assert code.startswith(b"\x7fELF"), "machine code"
    assert b".target" in nvrtc.build(SCALE, defines={"WIDTH": 2}, arch=999), "PTX for a device of the future"
    assert "registers" in nvrtc.log(SCALE, defines={"WIDTH": 2}, arch=90)


@needs_nvrtc
def test_a_mistake_in_a_source_shows_the_compiler_s_words() -> None:
    with pytest.raises(PlanishError, match='"WIDTH" is undefined'):
        nvrtc.build(SCALE, arch=90)


def test_without_a_device_the_error_says_what_is_missing() -> None:
    if nvrtc.available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(MissingRequirement, match="CUDA device and NVRTC"):
        nvrtc.compile(SCALE)
    graph = from_degrees(torch.tensor([2, 1]))
    assert cusparse.product(graph, torch.ones(2, 3), "ALG2") is None


def test_arguments_are_laid_out_as_a_kernel_s_parameters() -> None:
    """Pointer, long long, int, float and pointer again lie at multiples of their sizes."""
    buffer = driver.Buffer((torch.Tensor, int, driver.i32, float, type(None)))
    buffer.layout.pack_into(buffer.bytes, 0, 1, 2, 3, 0.5, 4)
    assert buffer.layout.size == 32
    assert list(buffer.extra)[::2] == [1, 2, None]


class Driver:
    """A CUDA driver whose kernel has 36 bytes of shared memory of its own: they count where nothing was asked for."""

    limit = (48 << 10) - 36

    def cuFuncSetAttribute(self, function: object, attribute: int, value: int) -> int:
        assert attribute == driver.DYNAMIC_SHARED
        self.limit = value
        return 0

    def cuLaunchKernel(self, *arguments: object) -> int:
        shared = arguments[7]
        assert isinstance(shared, int)
        return int(shared > self.limit)

    def cuGetErrorString(self, *arguments: object) -> None:
        pass


def test_shared_memory_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Driver()
    monkeypatch.setattr(driver, "_cuda", lambda: cuda)
    monkeypatch.setattr(driver, "_enter", lambda device: None)
    monkeypatch.setattr(driver, "_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    kernel = driver.Kernel("kernel", ctypes.c_void_p(), SimpleNamespace(device=0))  # type: ignore[arg-type]
    for shared in (0, 1000, 48 << 10, 200 << 10, 1000):
        kernel(1, 32, shared=shared)


@needs_gpu
@pytest.mark.gpu
def test_kernels_run_on_the_current_stream() -> None:
    module = nvrtc.compile(SCALE, defines={"WIDTH": 2})
    x = torch.ones(1000, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        module["scale"]((4, 1, 1), 256, x, len(x), nvrtc.i32(3), 0.5, None, shared=100_000)
    stream.synchronize()
    assert (x == 6.5).all()
    with pytest.raises(PlanishError, match="find the kernel 'other'"):
        module["other"]
    with pytest.raises(PlanishError, match="launch scale"):
        module["scale"](1, 4096, x, len(x), nvrtc.i32(3), 0.5, None)


@needs_gpu
@pytest.mark.gpu
def test_cusparse_follows_the_values() -> None:
    graph = from_degrees(torch.tensor([3, 0, 2, 40] * 50).cuda())
    for algorithm in cusparse.ALGORITHMS:
        for _ in range(3):
            weighted = graph.with_values(torch.rand(graph.num_edges, device="cuda"))
            x = torch.randn(graph.num_cols, 16, device="cuda")
            program = cusparse.product(weighted, x, algorithm)
            assert program is not None
            torch.testing.assert_close(
                program().double(), weighted.to_dense() @ x.double(), rtol=1e-5, atol=1e-5
            )
    assert SPMM.choose(graph, x).seconds


def test_devices_that_nvrtc_no_longer_knows_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_nvrtc", lambda: None)
    monkeypatch.setattr(nvrtc, "_architectures", lambda: [75, 80])
    with pytest.raises(PlanishError, match=r"compute capability 7.0 is too old for it; valid: 7.5 on"):
        nvrtc.build(SCALE, arch=70)


def test_threads_with_values_of_their_own_share_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other thread's values take the place of a call's before it is launched."""
    graph, x = from_degrees(torch.tensor([2, 1])), torch.ones(2, 4)
    launched = threading.local()

    def call(name: str, *arguments: object) -> None:
        time.sleep(0.001)  # lets the others run
        if name == "SpMM":
            launched.value = plan._value.clone()

    monkeypatch.setattr(cusparse, "_call", call)
    monkeypatch.setattr(cusparse, "_handle", lambda device: ctypes.c_void_p())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    plan = cusparse._Plan(graph, torch.zeros(3), x, "ALG2")

    def own(number: int) -> bool:
        value = torch.full((3,), float(number))
        plan(value, x)
        return torch.equal(launched.value, value)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(own, range(1, 30)))
    plan.close()
