"""Run by `.ci/run` in an environment that holds what `pip install .` brings and nothing more: engine, loader, command
line and demo work there, and torch is absent. Exits with an AssertionError where one does not."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


def command(*args: object) -> bytes:
    """stdout of the installed script; its failure is ours."""
    script = Path(sys.executable).with_name("wavenet-fast")
    return subprocess.run([script, *map(str, args)], check=True, stdout=subprocess.PIPE).stdout


def main() -> None:
    import wavenet_fast
    from wavenet_fast.checkpoint import bundled_voices

    checkout = Path(__file__).parent.parent
    assert not Path(wavenet_fast.__file__).is_relative_to(checkout), "the checkout hides the installed package"
    for package in ("torch", "triton", "cuda", "matplotlib", "librosa"):
        assert importlib.util.find_spec(package) is None, f"{package} is installed; this is not a bare environment"

    (name, *_) = bundled_voices()
    with wavenet_fast.Vocoder.from_pretrained(name) as voc, tempfile.TemporaryDirectory() as room:
        assert voc.backend == "cpu", voc.backend
        told = json.loads(command("demo", "--out", f"{room}/demo", "--json"))
        assert told["backend"] == "cpu" and told["rtf"] > 0, told
        assert sorted(p.name for p in Path(room, "demo").iterdir()) == ["original.wav", "vocoded.wav"]

        command("mel", f"{room}/demo/original.wav", "-o", f"{room}/m.npz")
        command("vocode", f"{room}/m.npz", "-o", f"{room}/a.wav", "--seed", 5)
        command("resynth", f"{room}/demo/original.wav", "-o", f"{room}/b.wav", "--seed", 5)
        assert Path(room, "a.wav").read_bytes() == Path(room, "b.wav").read_bytes()
        mel = np.load(f"{room}/m.npz")["mel"]
        samples = np.frombuffer(Path(room, "a.wav").read_bytes()[44:], "<i2")
        assert np.array_equal(samples, np.rint(voc(mel, seed=5) * 32767))

        voc.save_pretrained(f"{room}/copy")
        with wavenet_fast.Vocoder.from_pretrained(f"{room}/copy") as copy:
            assert np.array_equal(copy(mel[:, :10], seed=5), voc(mel[:, :10], seed=5))
        assert json.loads(command("inspect", f"{room}/copy", "--json"))["sample_rate_hz"] == voc.sample_rate

    from wavenet_fast.emulated import Program

    seven = np.zeros(1, np.uint32)
    body = ".reg .b64 %a; ld.param.u64 %a, [k_0]; st.global.u32 [%a], 7; ret;"
    head = ".version 8.0\n.target sm_90\n.address_size 64\n"
    Program(f"{head}.visible .entry k(.param .u64 k_0) {{ {body} }}").launch("k", args=[seven])
    assert seven[0] == 7

    measured = json.loads(command("bench", "--case", "tiny", "--batch", 2, "--seconds", 0.2, "--json", "-"))
    assert "portable" in measured["gate"]["reference"] and measured["samples_per_s"] > 0, measured

    examined = json.loads(command("doctor", "--json"))
    for name in ("cuda", "triton"):
        for device in ("cuda", "emulated"):
            assert examined["backends"][name]["why_not_on"][device], examined["backends"]
    assert examined["backends"]["reference"]["why_not"] and examined["backends"]["cpu"]["available"]
    script = Path(sys.executable).with_name("wavenet-fast")
    refused = subprocess.run(
        [script, "train", "--data", ".", "--out", "v"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2 and "wavenet-fast[train]" in refused.stderr, refused
    assert not [m for m in sys.modules if m.partition(".")[0] == "torch"]
    print(f"without torch: all works; demo real-time factor {told['rtf']:.3f} on {told['isa']}, {told['dtype']}")


if __name__ == "__main__":
    main()
