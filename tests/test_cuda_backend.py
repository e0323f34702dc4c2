"""The backend `cuda` as its users meet it where something is missing or too small: PyTorch, shared memory, a cache
folder that can be written. On the emulated device; what only a driver can say is in test_gpu and test_cuda_driver."""

from __future__ import annotations

import dataclasses
import sys
import warnings

import numpy as np
import pytest
from children import python
from engine_models import MODELS, case, random_mel, random_weights, small, speaker_vectors

from wavenet_fast import Vocoder
from wavenet_fast.backends import gpu, prepare
from wavenet_fast.config import Conditioning, FrameConv, Linear, RepeatStage, Speakers, Stages
from wavenet_fast.errors import BackendError, BackendWarning

pytestmark = pytest.mark.skipif(
    gpu.why_not_emulated_cuda_kernels() is not None, reason=str(gpu.why_not_emulated_cuda_kernels())
)

FRAMES = 4
PLAIN = {
    "tiny": MODELS["tiny"],
    "standardised, speakers": small(
        conditioning=Conditioning(standardise=True, upsampling=Linear(0.5)), speakers=Speakers(channels=3)
    ),
}
"""Models whose layers hear the mel itself."""
LEARNED = {
    "a conditioning network": small(conditioning=Conditioning(network=(FrameConv(7, 3),))),
    "learned upsampling": small(conditioning=Conditioning(upsampling=Stages((RepeatStage(6, 3, channels=8),)))),
}


def spoken(config, engine=None):
    """The sound (2, T) of two utterances on the emulated GPU."""
    engine = engine or prepare(config, random_weights(config), "cuda", "emulated", "fp32").engine
    state = engine.start(np.arange(2, dtype=np.uint64), speaker_vectors(config, 2))
    return engine.advance(state, random_mel(config, FRAMES, 2), np.full(2, FRAMES), np.ones(2, bool), 0.8)[0]


# --- without PyTorch --------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from test_cuda_backend import PLAIN, spoken
for config in PLAIN.values():
    print(spoken(config).tobytes().hex())
"""


def test_models_that_hear_the_mel_itself_need_no_torch():
    told = python(WITHOUT_TORCH).split()
    assert len(told) == len(PLAIN)
    for config, theirs in zip(PLAIN.values(), told, strict=True):
        assert spoken(config).tobytes().hex() == theirs


@pytest.mark.parametrize("what", LEARNED)
def test_other_models_say_that_they_do(what, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "wavenet_fast.reference", raising=False)
    config = LEARNED[what]
    with pytest.raises(BackendError, match=rf'has {what}, .* PyTorch .*`pip install "wavenet-fast\[torch\]"` adds it'):
        prepare(config, random_weights(config), "cuda", "emulated")


# --- too little shared memory -----------------------------------------------------------------------------------


def test_a_block_with_too_little_room_gives_another_plan_and_the_same_sound():
    from wavenet_fast.kernels.cuda.emulated_device import EmulatedDevice, emulated_properties

    from wavenet_fast.backends.cuda import CudaEngine

    config, roomy = PLAIN["standardised, speakers"], emulated_properties(90)
    weights, plans, sounds = random_weights(config), [], []
    # Three hops a sample take longer than to stream weights as few as these: resident is asked for.
    full, small = roomy.shared_per_block, 24_000
    rooms = (full, 16, 16, "auto"), (small, 16, 16, "resident"), (small, 16, 1, "resident"), (small, 1, 1, "auto")
    for size, multiprocessors, cluster, variant in rooms:
        properties = dataclasses.replace(
            roomy, shared_per_block=size, multiprocessors=multiprocessors, max_cluster=cluster
        )
        device = EmulatedDevice(90, properties=properties)
        engine = CudaEngine(config, weights, "fp32", device, variant=variant)
        plans.append(engine.explain(2, 1).details)
        assert plans[-1]["shared_bytes"] <= size
        sounds.append(spoken(config, engine))
    assert [(plan["variant"], plan["hop"]) for plan in plans] == [
        ("resident", "none"), ("resident", "cluster"), ("resident", "grid"), ("streaming_weights", "none"),
    ]  # fmt: skip
    for sound in sounds[1:]:
        np.testing.assert_array_equal(sound, sounds[0])
    tight = EmulatedDevice(90, properties=dataclasses.replace(roomy, shared_per_block=9_000))
    with pytest.raises(
        BackendError, match=r"needs 19 KiB of shared memory in fp32 .* possible are a smaller number fo"
    ):
        CudaEngine(config, weights, "fp32", tight)


# --- clusters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability, most", [(90, 16), (120, 8)])
def test_how_many_clusters_fit_is_asked_of_the_device(capability, most):
    from wavenet_fast.kernels.cuda.emulated_device import EmulatedDevice, emulated_properties
    from wavenet_fast.kernels.cuda.model import Model

    class Device(EmulatedDevice):
        def load(self, name, headers):
            return name

        def clusters(self, kernel, block, shared, cluster):
            assert kernel == "resident" and shared <= self.properties.shared_per_block
            self.asked.append(cluster)
            return self.answers.get(cluster, 0)

    config = case("nv-small")
    properties = dataclasses.replace(emulated_properties(capability), multiprocessors=132, gpcs=(most,) * 8)
    weights = random_weights(config)

    def planned(answers):
        device = Device(capability, properties=properties)
        device.answers, device.asked = answers, []
        model = Model(config, weights, "bf16", device)
        plan = model.plan(8)
        assert device.asked and len(device.asked) == len(set(device.asked)) and model.plan(8) is plan
        assert plan.hop == "grid" or plan.blocks == device.asked[-1]
        return plan

    any_size = planned({size: 3 for size in range(most + 1)})
    assert any_size.hop == "cluster"
    assert planned({}).hop == "grid"
    if any_size.blocks < most:
        one_more = planned({any_size.blocks + 1: 2})
        assert (one_more.hop, one_more.blocks) == ("cluster", any_size.blocks + 1)


# --- a cache folder that cannot be written ----------------------------------------------------------------------


def test_a_cache_that_cannot_be_written_costs_a_warning_and_no_sound(make_checkpoint, monkeypatch, tmp_path):
    checkpoint = make_checkpoint()
    mel = random_mel(checkpoint.config, FRAMES)
    expected = Vocoder(checkpoint, "cuda", "emulated", "fp32")(mel)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WAVENET_FAST_CACHE", str(tmp_path / "file" / "under"))
    with pytest.warns(
        BackendWarning, match=r"compiled kernels cannot be kept in .*name another folder in WAVENET_FAST"
    ):
        sound = Vocoder(checkpoint, "cuda", "emulated", "fp32")(mel)
    np.testing.assert_array_equal(sound, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(Vocoder(checkpoint, "cuda", "emulated", "fp32")(mel), expected)
