"""What a GPU backend must pass before `auto` takes it. No GPU is needed: the CPU engine stands in, right and wrong."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import warnings
from pathlib import Path

import pytest
import stand_in
from click.testing import CliRunner

from wavenet_fast import Vocoder
from wavenet_fast.backends import BACKENDS, agreement, gpu, prepare, selftest
from wavenet_fast.backends.agreement import DisagreementError, check_agreement
from wavenet_fast.cases import CASES, random_weights
from wavenet_fast.cli import cli
from wavenet_fast.config import GaussianHead, LogisticHead, ScalarInput, Speakers
from wavenet_fast.errors import BackendError, BackendWarning

TINY = CASES["tiny"]
H100 = gpu.Gpu("NVIDIA H100", (9, 0), 80 << 30, 132)
DRIVER = gpu.Driver((13, 0), "580.95", (H100,))


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """One with an H100 and all that belongs to it, and no verdict yet. Returns its cache folder."""
    monkeypatch.setattr(gpu, "look", lambda: DRIVER)
    monkeypatch.setattr(gpu, "torch_build", lambda: ("2.13.0+cu130", "13.0"))
    monkeypatch.setattr(gpu, "_installed", lambda package: True)
    monkeypatch.setattr(gpu, "nvrtc_version", lambda: (13, 0))
    monkeypatch.setenv("WAVENET_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(selftest, "_remembered", {})
    monkeypatch.setattr("wavenet_fast.backends._warned", set())
    return tmp_path / "cache" / "selftest"


@pytest.fixture
def kernels(monkeypatch):
    """Puts kernels of one way, those of `triton` of another where it is given, in the place of the GPU's, here and in
    the self-test's process; counts processes."""
    started = []

    def put(way, triton=None):
        ways = {"cuda": way, "triton": triton or way}
        for name, of in ways.items():
            monkeypatch.setitem(BACKENDS, name, stand_in.stand_in(name, of))

        def command():
            started.append(way)
            return [sys.executable, str(Path(stand_in.__file__)), *ways.values()]

        monkeypatch.setattr(selftest, "command", command)
        return started

    return put


def tried(way, dtype="fp32"):
    kind = type("StandIn", (stand_in.StandIn,), {"way": way})
    weights = random_weights(TINY)
    check_agreement(kind(TINY, weights, dtype, "cuda"), weights)


def ask(config=TINY, dtype="fp32", device="cuda", again=False):
    return selftest.verdict(config, "cuda", device, dtype, again)


# --- what is compared -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_an_engine_that_is_right_passes_in_every_number_format(dtype):
    tried("right", dtype)


@pytest.mark.parametrize(
    "changes",
    [
        {"input": ScalarInput(kernel_size=2), "head": LogisticHead(3)},
        {"input": ScalarInput(), "head": GaussianHead(1), "speakers": Speakers(channels=3, count=4)},
    ],
)
def test_continuous_heads_and_speakers_are_compared_too(changes, make_config, make_weights):
    config = make_config(**changes)
    weights = random_weights(config)
    for way in ("right", "wrong draws"):
        engine = type("StandIn", (stand_in.StandIn,), {"way": way})(config, weights, "fp32", "cuda")
        if way == "right":
            check_agreement(engine, weights)
        else:
            with pytest.raises(DisagreementError, match=r"draws are not what their logits give"):
                check_agreement(engine, weights)


@pytest.mark.parametrize(
    "way, said",
    [
        ("wrong network", r"logits are .* standard deviations off those of the cpu backend"),
        ("NaN", r"logits are nan standard deviations off"),
        ("wrong draws", r"draws are classes that their logits do not give"),
        ("wrong sound", r"sound is .* off that of its own draws"),
        ("forgets", r"pieces with the state saved between them"),
        ("notices its batch", r"says something else alone"),
    ],
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_whatever_is_wrong_is_found(way, said, dtype):
    with pytest.raises(DisagreementError, match=said):
        tried(way, dtype)


def test_more_samples_are_made_than_any_layer_remembers():
    for name, config in CASES.items():
        count = agreement.sample_count(config)
        assert (config.kernel_size - 1) * max(config.dilations) < count <= agreement.MAX_SAMPLES, name


# --- the process ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["right", "chatters"])
def test_a_pass_is_found_once_and_remembered_on_disk(kernels, monkeypatch, machine, way):
    started = kernels(way)
    first = ask()
    assert (first.passed, first.reason) == (True, "") and started == [way]
    assert ask() == first and started == [way]
    monkeypatch.setattr(selftest, "_remembered", {})  # as in another process
    assert ask() == first and started == [way]
    assert selftest.stored() == [first] and selftest.counts_here(first)
    assert [p.suffix for p in machine.iterdir()] == [".json"]


@pytest.mark.parametrize(
    "way, said",
    [
        ("wrong network", r"^its logits are .* off"),
        ("does not fit", r"^the model needs 999 GiB of GPU memory"),
        ("raises", r"^RuntimeError: no kernel image is available$"),
        ("exits", r"^its process ended with exit code 3 and without an answer \(step: make the model ready\)$"),
        ("crashes", r"^its process died of SIGSEGV \(step: make the model ready\): a last word$"),
    ],
)
def test_a_failure_says_why_and_is_remembered_until_it_is_asked_again(kernels, monkeypatch, way, said):
    started = kernels(way)
    told = ask()
    assert not told.passed
    assert re.search(said, told.reason), told.reason
    monkeypatch.setattr(selftest, "_remembered", {})
    assert ask() == told and len(started) == 1
    kernels("right")
    assert not ask().passed and ask(again=True).passed and ask().passed


def test_a_process_that_hangs_is_ended(kernels, monkeypatch):
    started = kernels("hangs")
    monkeypatch.setattr(selftest, "TIME_LIMIT", 3.0)
    children = []
    popen = selftest.subprocess.Popen
    monkeypatch.setattr(selftest.subprocess, "Popen", lambda *a, **k: children.append(popen(*a, **k)) or children[-1])
    told = ask()
    assert not told.passed and told.reason.startswith("it did not end within 3 s (step: ")
    assert children[0].poll() == -9
    assert ask() == told and len(started) == 1


def test_where_no_process_can_be_started_nothing_is_remembered(monkeypatch, machine):
    monkeypatch.setattr(selftest, "command", lambda: ["/no/such/python"])
    with pytest.raises(BackendError, match="no process can be started"):
        ask()
    assert not machine.exists()


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"3", b'{"passed": true}', b"\xff\xfe", b'{"passed": 1, "reason": "", "key": {}}', b"[" * 99999],
)
def test_a_file_that_is_damaged_or_of_another_key_does_not_count(kernels, monkeypatch, machine, damage):
    started = kernels("right")
    ask()
    (path,) = machine.iterdir()
    told = json.loads(path.read_text())
    foreign = json.dumps({**told, "passed": False, "key": {**told["key"], "gpu": "another"}}).encode()
    for content in (damage, foreign):
        path.write_bytes(content)
        monkeypatch.setattr(selftest, "_remembered", {})
        assert ask().passed
        assert json.loads(path.read_text()) == told
    assert len(started) == 3


def test_without_a_folder_to_write_the_verdict_holds_for_this_process(kernels, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    started = kernels("right")
    for place in (str(tmp_path / "file"), None):
        monkeypatch.setattr(selftest, "_remembered", {})
        monkeypatch.setattr(selftest, "cache_directory", lambda place=place: place and Path(place, "under"))
        assert ask().passed and ask().passed
        assert selftest.stored() == []
    assert len(started) == 2


def test_another_driver_gpu_kernel_package_shape_or_format_is_another_key(monkeypatch):
    monkeypatch.setattr(selftest.importlib.metadata, "version", lambda package: "1")

    def key(config=TINY, dtype="fp32", backend="cuda"):
        return tuple(selftest.key_of(config, backend, "cuda", dtype).items())

    keys = {key(), key(dtype="bf16"), key(CASES["odd"]), key(backend="triton")}
    with monkeypatch.context() as m:
        m.setattr(gpu, "look", lambda: dataclasses.replace(DRIVER, release="590.1"))
        keys.add(key())
    for change in ({"name": "NVIDIA H200"}, {"capability": (10, 0)}):
        with monkeypatch.context() as m:
            m.setattr(gpu, "look", lambda c=change: dataclasses.replace(DRIVER, gpus=(dataclasses.replace(H100, **c),)))
            keys.add(key())
    packages = {"cuda": ("torch", "cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc"), "triton": ("torch", "triton")}
    for backend, package in ((backend, package) for backend, needed in packages.items() for package in needed):
        with monkeypatch.context() as m:
            m.setattr(selftest.importlib.metadata, "version", lambda p, new=package: "9" if p == new else "1")
            keys.add(key(backend=backend))
    with monkeypatch.context() as m:
        m.setattr(selftest, "sources_hash", lambda: "0123456789abcdef")
        keys.add(key())
    assert len(keys) == 14
    assert key() in keys


def test_the_hash_follows_every_source_of_the_kernels(monkeypatch, tmp_path):
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(selftest.importlib.util, "find_spec", lambda name: spec)
    (tmp_path / "triton").mkdir()
    hashes = [selftest.sources_hash()]
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.py", ""), ("c.cuh", ""), ("c.cuh", "1")):
        (tmp_path / "triton" / name).write_text(text)
        hashes.append(selftest.sources_hash())
    assert len(set(hashes)) == 6
    (tmp_path / "triton" / "notes.txt").write_text("not a kernel")
    assert selftest.sources_hash() == hashes[-1]


# --- what auto makes of it --------------------------------------------------------------------------------------


def test_auto_takes_a_gpu_that_passes(kernels):
    kernels("right")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = prepare(TINY, random_weights(TINY))
    assert (made.engine.name, made.engine.dtype, made.device, made.notes) == ("cuda", "bf16", "cuda", ())


def test_auto_takes_the_next_kernels_where_the_first_fail(kernels):
    started = kernels("wrong network", triton="right")
    with pytest.warns(BackendWarning, match=r"'cuda' is passed over on device 'cuda'"):
        made = prepare(TINY, random_weights(TINY))
    assert made.engine.name == "triton" and len(started) == 2
    (note,) = made.notes
    assert note.startswith("cuda: its self-test for this shape in bf16 failed, ")


@pytest.mark.parametrize("way, said", [("wrong network", "standard deviations off"), ("does not fit", "999 GiB")])
def test_auto_passes_over_a_gpu_that_fails_and_says_so_once(kernels, make_checkpoint, way, said):
    kernels(way)
    checkpoint = make_checkpoint(TINY)
    over = rf"is passed over on device 'cuda': .*{said}"
    with pytest.warns(BackendWarning, match=f"'cuda' {over}"), pytest.warns(BackendWarning, match=f"'triton' {over}"):
        voice = Vocoder(checkpoint)
    assert voice.backend == "cpu" and voice.device == "cpu"
    notes = voice.backend_notes
    for name, note in zip(("cuda", "triton"), notes, strict=True):
        assert note.startswith(f"{name}: its self-test for this shape in bf16 failed, ") and "doctor --selftest" in note
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Vocoder(checkpoint).backend_notes == notes


def test_auto_passes_over_a_gpu_on_which_only_this_model_does_not_fit(kernels, monkeypatch):
    kernels("does not fit")
    monkeypatch.setattr(selftest, "verdict", lambda *_: selftest.Verdict(True, "", {}))
    with pytest.warns(BackendWarning, match="999 GiB"):
        made = prepare(TINY, random_weights(TINY))
    assert made.engine.name == "cpu" and all("999 GiB" in note for note in made.notes) and len(made.notes) == 2


def test_a_gpu_asked_for_by_device_alone_must_pass_too(kernels):
    kernels("wrong network")
    with (
        pytest.warns(BackendWarning),
        pytest.raises(
            BackendError, match=r"cuda: its self-test.*triton: its self-test.*cpu: it does not run on 'cuda'"
        ),
    ):
        prepare(TINY, random_weights(TINY), device="cuda")


def test_naming_the_backend_runs_no_self_test(kernels):
    started = kernels("wrong network")
    for name in ("cuda", "triton"):
        assert prepare(TINY, random_weights(TINY), name).engine.name == name
    kernels("does not fit")
    for name in ("cuda", "triton"):
        with pytest.raises(BackendError, match="999 GiB"):
            prepare(TINY, random_weights(TINY), name)
    assert started == []


def test_a_number_format_is_not_asked_of_a_gpu_backend_that_lacks_it(kernels, monkeypatch):
    started = kernels("right")
    for name in ("cuda", "triton"):
        monkeypatch.setitem(BACKENDS, name, dataclasses.replace(BACKENDS[name], dtypes=("fp32",)))
    made = prepare(TINY, random_weights(TINY), dtype="int8")
    assert made.engine.name == "cpu" and started == []
    assert made.notes == tuple(f"{name}: it has no number format 'int8'" for name in ("cuda", "triton"))


# --- doctor -----------------------------------------------------------------------------------------------------


def test_doctor_shows_the_gpu_and_the_verdicts(kernels, monkeypatch):
    run = CliRunner().invoke
    told = run(cli, ["doctor"]).stdout
    for part in (
        "NVIDIA H100, compute capability 9.0, 80 GiB",
        "driver 580.95, for CUDA up to 13.0",
        "bf16 by default",
    ):
        assert part in told, told
    assert "self-tests" not in told
    started = kernels("right")
    told = run(cli, ["doctor", "--selftest", "--dtype", "fp32"]).stdout
    for name in ("cuda", "triton"):
        tested = f"{name} fp32, 12 layers, R 64, G 128, S 128, on NVIDIA H100, driver 580.95, for CUDA up to 13.0: "
        assert f"{tested}passed\n" in told
    kernels("raises")
    told = run(cli, ["doctor", "--selftest", "--dtype", "fp32"]).stdout
    assert told.count(": failed, RuntimeError: no kernel image is available\n") == 2 and len(started) == 4
    monkeypatch.setattr(gpu, "look", lambda: dataclasses.replace(DRIVER, release="590.1"))
    for test in json.loads(run(cli, ["doctor", "--json"]).stdout)["selftests"]:
        assert not test["passed"] and not test["counts"] and test["driver"].startswith("580.95")
    assert run(cli, ["doctor"]).stdout.count("no longer counts") == 2
    refused = run(cli, ["doctor", "--selftest", "--dtype", "fp64"])
    assert refused.exit_code == 2 and "'fp64'" in refused.stderr and len(started) == 4


def test_a_self_test_in_a_format_is_run_by_the_backends_that_have_it(kernels, monkeypatch):
    started = kernels("right")
    monkeypatch.setitem(BACKENDS, "triton", dataclasses.replace(BACKENDS["triton"], dtypes=("fp32",)))
    told = CliRunner().invoke(cli, ["doctor", "--selftest", "--dtype", "fp16"]).stdout
    assert "cuda fp16, 12 layers" in told and "triton fp16" not in told and len(started) == 1


def test_doctor_shows_the_plan_of_the_cuda_kernels(monkeypatch):
    told = json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).stdout)["cuda_plans"]
    assert told["problem"] is None and told["voice"] == "nsh-ru"
    (planned,) = told["gpus"]
    assert planned["plan"]["device"] == "NVIDIA H100" and planned["plan"]["variant"] == "resident"
    text = CliRunner().invoke(cli, ["doctor"]).stdout
    for line in planned["text"].splitlines():
        assert line.strip() in text
    old = dataclasses.replace(H100, name="Tesla T4", capability=(7, 5))
    monkeypatch.setattr(gpu, "look", lambda: dataclasses.replace(DRIVER, gpus=(old,)))
    text = CliRunner().invoke(cli, ["doctor"]).stdout
    assert "  cuda:0          none: Tesla T4 is sm_75; the kernels need sm_80" in text
    monkeypatch.setattr(gpu, "look", lambda: "no driver is loaded")
    assert "CUDA plans        none: no GPU is found to plan for" in CliRunner().invoke(cli, ["doctor"]).stdout
