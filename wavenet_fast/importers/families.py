"""Which family's checkpoint is it? Told by the names of its tensors; and what it seems to be where it is of none."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import CheckpointError
from . import kan_bayashi, nv_wavenet, r9y9

FAMILIES = (r9y9.FAMILY, kan_bayashi.FAMILY, nv_wavenet.FAMILY, "own")

# Patterns that all occur among a checkpoint's names, first fit first.
_OURS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r9y9.FAMILY, (r"first_conv\.", r"conv_layers\.\d+\.conv1x1_skip\.", r"last_conv_layers\.")),
    (kan_bayashi.FAMILY, (r"causal\.conv\.", r"dil_sigmoid\.\d", r"dil_tanh\.\d")),
    (nv_wavenet.FAMILY, (r"dilate_layers\.\d", r"skip_layers\.\d", r"embed\.weight")),
    (nv_wavenet.FAMILY, (r"^embedding_curr$", r"^dilate_weights(\.0)?$")),
    ("own", (r"layers\.\d+\.dilated\.weight", r"head\.out\.weight", r"input\.weight")),
)
_OTHERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a Parallel WaveGAN generator", (r"first_conv\.", r"conv_layers\.\d+\.conv1x1_aux\.")),
    ("a BigVGAN generator", (r"conv_pre\.", r"resblocks\.\d", r"activations?(_post)?\.")),
    ("a HiFi-GAN generator", (r"(conv_pre|input_conv)\.", r"(resblocks|blocks)\.\d", r"(ups|upsamples)\.\d")),
    ("a HiFi-GAN discriminator", (r"discriminators\.\d",)),
    ("a Tacotron 2", (r"(attention_rnn|attention_layer|\batt\b)", r"(decoder_rnn|postnet)\b")),
    ("a WaveGlow", (r"\bWN\.\d", r"convinv\.\d")),
    ("a WaveRNN", (r"\brnn1\.", r"\brnn2\.", r"\bfc1\.")),
    ("a Vocos", (r"backbone\.convnext", r"head\.out\.")),
    ("a MelGAN generator", (r"generator\.\d+|melgan\.\d+|model\.\d+\.weight_[gv]",)),
    ("a FastSpeech or another transformer", (r"(self_attn|slf_attn|attention)\.",)),
    ("a DiffWave", (r"residual_layers\.\d+\.dilated_conv", r"diffusion_embedding")),
)


def detect(names: Iterable[str]) -> str:
    """The family of a checkpoint with these tensors. Raises `CheckpointError` that says what it seems to be."""
    named = [name.removeprefix("module.") for name in names]
    for kind, patterns in _OTHERS[:1]:
        if _all_there(named, patterns):
            raise CheckpointError(f"this seems to be {kind}; {_POSSIBLE}")
    for family, patterns in _OURS:
        if _all_there(named, patterns):
            return family
    for kind, patterns in _OTHERS:
        if _all_there(named, patterns):
            raise CheckpointError(f"this seems to be {kind}; {_POSSIBLE}")
    some = ", ".join(ascii(name)[1:-1][:80] for name in named[:10])
    more = f" and {len(named) - 10} more" if len(named) > 10 else ""
    raise CheckpointError(f"its tensors are of no family that is known here ({some or 'none'}{more}); {_POSSIBLE}")


_POSSIBLE = (
    "WaveNets of r9y9 (both generations, ESPnet's too), kan-bayashi (ESPnet's too) and nv-wavenet can be imported"
)


def _all_there(names: list[str], patterns: tuple[str, ...]) -> bool:
    return all(any(re.search(pattern, name) for name in names) for pattern in patterns)
