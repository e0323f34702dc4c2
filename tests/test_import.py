"""`import wavenet_fast` is quick and light, and the names it offers are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from children import python

import wavenet_fast

HEAVY = {"torch", "soundfile", "soxr", "matplotlib", "click", "tqdm", "librosa", "scipy", "triton", "cuda"}


def test_import_loads_no_optional_package():
    loaded = set(json.loads(python("import json, sys, wavenet_fast; print(json.dumps(list(sys.modules)))")))
    assert "wavenet_fast" in loaded
    assert not loaded & HEAVY


def test_vocoder_loads_neither_torch_nor_audio_files():
    loaded = set(
        json.loads(python("import json, sys; from wavenet_fast import *; print(json.dumps(list(sys.modules)))"))
    )
    assert "wavenet_fast.vocoder" in loaded
    assert not loaded & HEAVY


def test_import_takes_less_than_three_tenths_of_a_second():
    code = "import time; t = time.perf_counter(); import wavenet_fast; print(time.perf_counter() - t)"
    assert min(float(python(code)) for _ in range(3)) < 0.3


def test_every_public_name_is_there():
    assert set(wavenet_fast._MODULE) | {"__version__"} == set(wavenet_fast.__all__)
    for name in wavenet_fast.__all__:
        assert getattr(wavenet_fast, name) is not None
        assert name in dir(wavenet_fast)


def test_unknown_names_are_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Vocder'"):
        wavenet_fast.Vocder  # noqa: B018


def test_version_is_that_of_the_project_file():
    project = Path(__file__).parent.parent / "pyproject.toml"
    assert re.search(r'^version = "(.+)"$', project.read_text(), re.MULTILINE)[1] == wavenet_fast.__version__
