"""That one window is copied and the next prepared while a kernel runs: the backend `cuda` over the stand-in for the
NVIDIA driver, whose kernels do nothing and whose work is done as late as it may."""

from __future__ import annotations

from pathlib import Path

import fake_cuda
import pytest

pytest.importorskip("cuda.bindings", reason='cuda-bindings is not installed: pip install "wavenet-fast[cuda]"')

from wavenet_fast.backends import gpu

if gpu.why_no_nvrtc() is not None:
    pytest.skip(gpu.why_no_nvrtc(), allow_module_level=True)

ENGINE = f"""
sys.path.insert(0, {str(Path(__file__).parent)!r})
from engine_models import random_mel, random_weights, small
from wavenet_fast.backends import gpu_engine
from wavenet_fast.backends.cuda import CudaEngine

gpu_engine._LAUNCH_PRODUCTS = 1  # a window is one frame
WINDOWS = 9


def log(text):
    with open(os.environ["FAKE_CUDA_LOG"], "a") as file:
        print(text, file=file)


class Engine(CudaEngine):
    def _window_features(self, *rest):
        log("features")
        return super()._window_features(*rest)

    def _launch(self, *rest):
        given = super()._launch(*rest)
        log("asked for")
        return given


config = small()
device = CudaDevice(0)
engine = Engine(config, random_weights(config), "fp32", device)
mel, ended = random_mel(config, WINDOWS, 3), np.ones(3, bool)


def speak(state, progress=None):
    counts = np.array([WINDOWS, WINDOWS - 3, WINDOWS])
    return engine.advance(state, mel, counts, ended, 1.0, progress=progress)[0]


state = engine.start(np.arange(3, dtype=np.uint64), None)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = fake_cuda.build(tmp_path_factory.mktemp("overlap"))
    return lambda code, **variables: fake_cuda.run(folder, ENGINE + code, FAKE_CUDA_IDLE="1", **variables)


@pytest.mark.parametrize("pools", [{}, {"FAKE_CUDA_NO_POOLS": "1"}])
def test_nothing_waits_for_the_kernel_that_runs(run, pools):
    run(
        """
said()
speak(state)
lines = said()
# Per window two kernels: the projection and the sample loop.
assert lines.count("features") == WINDOWS and lines.count("a kernel runs") == 2 * WINDOWS

parts = "\\n".join(lines).split("features\\n")[1:]
for k, part in enumerate(parts[:-1]):
    asked, after = part.split("asked for\\n")
    assert asked.count("cuLaunchKernelEx") == 2 and "cuLaunchKernelEx" not in after
    if k < 5:
        continue  # memory is taken for the first time
    # Nothing is waited for until window k is asked for, then for window k - 1 alone: k is not done when the features
    # of k + 1 are computed.
    assert "WAITS" not in asked and "a kernel runs" not in asked, asked
    waits = [line.split()[0] for line in after.splitlines() if "WAITS" in line]
    assert waits == ["cuEventSynchronize"] * 2, after  # the abort word and the audio
    assert after.count("a kernel runs") == 2, (k, part)
    assert not any(word in part for word in ("cuMemAlloc ", "cuMemFree ", "cuMemHostAlloc", "cuMemFreeHost")), part

# No kernel waits for a copy to the host.
copies = f"{device._copies:#x}"
recorded = [line.split() for line in lines if line.startswith("cuEventRecord")]
of_copies = {event for _, event, stream in recorded if stream == copies}
held = [line.split() for line in lines if line.startswith("cuStreamWaitEvent")]
assert len(of_copies) == 2 * WINDOWS and {stream for _, stream, _ in held} == {copies}
""",
        **pools,
    )


def test_a_call_that_is_interrupted_leaves_the_device_usable(run):
    run("""
from wavenet_fast.kernels.cuda.cuda_streams import CudaPending
wait, waited = CudaPending.wait, []

def interrupted(self):
    wait(self)
    waited.append(self)
    if len(waited) == 5:
        raise KeyboardInterrupt  # as Python does when a call that took long returns

CudaPending.wait = lambda self: interrupted(self) or self._out
rings = device.download(state.rings)
device.upload(np.full(rings.shape, 3, rings.dtype), state.rings)
before = state.state_dict()
refused(KeyboardInterrupt, lambda: speak(state))
# The window that runs meanwhile, and what puts the rings back behind it, has been asked for; nothing of it is lost.
after = state.state_dict()
for name, value in before.items():
    assert np.array_equal(after[name], value), name
assert (after["rings"] == 3).all()

def stop(done, total):
    raise KeyboardInterrupt

refused(KeyboardInterrupt, lambda: speak(state, stop))
assert speak(state).shape == (3, WINDOWS * config.hop_length) and (state.positions > 0).all()
""")


def test_a_gpu_that_fails_leaves_the_numbers_of_the_host_as_they_were(run):
    run("""
os.environ["FAKE_CUDA_FAIL"] = "cuEventSynchronize=719"
assert "this process cannot use the GPU any more; restart it" in refused(BackendError, lambda: speak(state))
assert not state.positions.any() and not state.frames.any()
os.environ["FAKE_CUDA_FAIL"] = "cuMemAllocFromPoolAsync=2"
assert "the GPU's memory is full" in refused(InputError, lambda: engine.start(np.arange(300, dtype=np.uint64), None))
os.environ["FAKE_CUDA_FAIL"] = "cuLaunchKernelEx=720"
assert "its blocks cannot all be resident at once" in refused(BackendError, lambda: speak(state))
os.environ["FAKE_CUDA_FAIL"] = ""
assert speak(state).shape == (3, WINDOWS * config.hop_length)
""")


def test_a_launch_made_ready_is_captured(run):
    """Memsets and kernels alone, on the stream that is captured."""
    run("""
from wavenet_fast.kernels.cuda.launches import Heard, Made, Streams
from wavenet_fast.kernels.cuda.layout import Layout

model, s = engine.model, engine.model.shape
grid = Layout(s, "fp32", "resident", 8, 1, 1, tiles=1, residual=1, first_layers=(0, 2, s.LAYERS))
zeros = device.zeros
streams = Streams(state.rings, zeros((3, s.IN_DEPTH), np.float32), zeros((3,), np.float32), zeros((3,), np.int64),
                  zeros((3,), np.uint64))
heard = Heard(zeros((3, 2, s.LAYERS, s.HALF, 2), np.float32), zeros((3,), np.int32), zeros((3,), np.int32))
made = Made(zeros((3, 6), np.float32), zeros((3, 6), np.float32))
given = grid, 1, streams, np.full(3, 6), heard, made
ready = model.ready(*given)
ready.prepare()
ready.launch()
said()
ready.launch(stream=0xCA)
ready.go_on(stream=0xCA)
lines = said()
assert [line.split()[0] for line in lines] == [*["cuMemsetD8Async"] * 2, *["cuLaunchKernelEx"] * 2]  # abort, flags
assert all("0xca" in line for line in lines)
class torch:
    class cuda:
        is_available = is_initialized = staticmethod(lambda: True)
        class current_stream:
            cuda_stream = 0xCA
            def __init__(self, index): pass
sys.modules["torch"] = torch
for whole in (lambda: model.generate(*given, trusted=True), lambda: model.ready(*given), ready.check):
    assert "cannot be part of a CUDA graph; do it before the capture begins" in refused(BackendError, whole)
os.environ["FAKE_CUDA_CAPTURED"] = "1"
ready.check()
""")
