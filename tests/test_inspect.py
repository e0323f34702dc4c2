"""What `inspect` says of a checkpoint: counts against figures worked out by hand, and safe text."""

import json
from dataclasses import replace

import msgspec
import pytest

from wavenet_fast.cases import CASES
from wavenet_fast.config import Conditioning, FrameConv, RepeatStage, Speakers, Stages, TransposedStage
from wavenet_fast.inspect import describe, format_description, multiply_adds, weight_bytes
from wavenet_fast.weights import weight_count


@pytest.mark.parametrize("case, millions", [("nv-medium", 0.67), ("r9y9-mol", 3.2), ("r9y9-512", 23.7)])
def test_multiply_adds_are_those_of_the_published_shapes(case, millions):
    assert multiply_adds(CASES[case])[0] / 1e6 == pytest.approx(millions, rel=0.02)


def test_multiply_adds_by_hand(make_config):
    config = make_config()  # R 12, G 20, S 14, H 18, A 256, M 5, K 3, 4 layers, one-hot input
    layers = 4 * (20 * 12 * 3 + 14 * 10) + 3 * 12 * 10
    assert multiply_adds(config) == (layers + 18 * 14 + 256 * 18, 4 * 20 * 5)
    with_speakers = msgspec.structs.replace(config, speakers=Speakers(channels=3, count=9))
    assert multiply_adds(with_speakers) == multiply_adds(config)


def test_multiply_adds_of_a_conditioning_network_by_hand(make_config):
    """hop 6 = 2 · 3: a transposed stage reads 1 column a frame, a repeat stage makes 6, projections read 6."""
    stages = (TransposedStage(scale=2, kernel_size=4, channels=7), RepeatStage(scale=3, kernel_size=5))
    network = (FrameConv(channels=9, kernel_size=3),)
    config = make_config(conditioning=Conditioning(network=network, upsampling=Stages(stages=stages)))
    assert multiply_adds(config)[1] == 9 * 5 * 3 + 9 * 7 * 4 + 6 * 7 * 7 * 5 + 6 * 4 * 20 * 7
    picture = (TransposedStage(scale=6, kernel_size=6, image=True, freq_kernel_size=3),)
    config = make_config(conditioning=Conditioning(upsampling=Stages(stages=picture)))
    assert multiply_adds(config)[1] == 5 * 3 * 6 + 6 * 4 * 20 * 5


def test_weight_bytes(make_config):
    config = make_config()
    sizes, count = weight_bytes(config), weight_count(config)
    vectors = 12 + 4 * 20 + 3 * 12 + 4 * 14 + 18 + 256  # biases of input, dilated, residual, skip, head
    assert sizes["fp32"] == 4 * count
    assert sizes["bf16"] == sizes["fp16"] == 2 * (count - vectors) + 4 * vectors
    rows = vectors + 4 * 20  # the conditioning projections have rows and no bias
    assert sizes["int8"] == (count - vectors) + 4 * vectors + 4 * rows


def test_the_description_is_complete_and_json(make_checkpoint):
    told = describe(make_checkpoint(license="MIT", provenance={"data": "x"}, sampling={"temperature": 0.9}))
    assert json.loads(json.dumps(told, allow_nan=False)).keys() == told.keys()
    assert told["receptive_field_samples"] == 2 * 11 + 1 and told["receptive_field_ms"] == pytest.approx(23 / 8)
    assert told["state_bytes_per_stream"] == 4 * 2 * 11 * 12
    assert told["temperature"] == 0.9 and told["lookahead_frames"] == 0 and not told["mel_statistics"]
    text = format_description(told)
    for part in ("8000 Hz", "4 layers", "1 3 2 5", "23 samples", "MIT", "data: x", told["mel_fingerprint"]):
        assert part in text


@pytest.mark.parametrize("case", CASES)
def test_every_case_can_be_described(case, make_checkpoint):
    assert format_description(describe(replace(make_checkpoint(), config=CASES[case])))


def test_cycles_are_recognised(make_checkpoint, make_config):
    text = format_description(describe(make_checkpoint(make_config(dilations=(1, 2, 4) * 3))))
    assert "3 × (1 2 4)" in text


def test_what_a_file_says_of_itself_cannot_drive_the_terminal(make_checkpoint):
    evil = "\x1b]0;title\x07\x1b[2J\nlicence  none\u202e"
    text = format_description(describe(make_checkpoint(license=evil, provenance={evil: [evil], "b": evil})))
    assert not any(ch in text for ch in "\x1b\x07\u202e")
    assert "\nlicence  none" not in text


def test_a_recipe_that_is_not_known_is_not_described(make_checkpoint):
    checkpoint = make_checkpoint()
    unknown = replace(checkpoint, mel=msgspec.structs.replace(checkpoint.mel, normalize="elsewhere"))
    text = format_description(describe(unknown))
    assert "made elsewhere" in text and "slaney" not in text
