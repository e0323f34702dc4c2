"""benchmarks/nv_wavenet_speed.py against a program that answers as nv-wavenet's does, refuses, fails and hangs."""

from __future__ import annotations

import sys
from pathlib import Path

import nv_wavenet_peer as peer_module
import pytest
from nv_wavenet_peer import Binary, Peer, build_all
from nv_wavenet_speed import SHAPES, NotRun, alike, compare, theirs

CONFIG = SHAPES["nv-medium"]
PROGRAM = f"""#!{sys.executable}
import sys, time
assert sys.argv[1:] == ["20", "512"]
for line in sys.stdin:
    implementation, streams, per_block, samples = map(int, line.split())
    print("70 blocks, 2 blocks per SM")
    if streams == 7:
        sys.exit("program: file.cuh:1: bool launch(): Assertion `occ>0' failed.")
    if streams == 9:
        time.sleep(1e6)
    if implementation == 2 and streams // per_block > 1:
        print("GPUassert: too many blocks in cooperative launch file.cuh 2", file=sys.stderr, flush=True)
        print('{{"error": "nv-wavenet refused the launch"}}', flush=True)
        continue
    milliseconds = 10 * implementation + abs(per_block - 2)
    classes = "0a" * samples if streams == 5 else "0a0b" * (samples // 2)
    different = 1 if streams == 5 else 2
    print('{{"milliseconds": %d, "host_hidden": true, "different": %d, "lowest": 10, "highest": 11, "classes": "%s"}}'
          % (milliseconds, different, classes), flush=True)
"""
NVCC = f"""#!{sys.executable}
import sys
from pathlib import Path
if "--version" in sys.argv:
    sys.exit(print("Cuda compilation tools, release 13.0"))
with open(Path(__file__).with_name("compiled"), "a") as log:
    log.write(" ".join(sys.argv) + chr(10))
if "-DNVW_BITS=16" in sys.argv and Path(__file__).with_name("no-fp16").exists():
    sys.exit("nv_wavenet.cuh(1): error: no such thing")
out = Path(sys.argv[sys.argv.index("-o") + 1])
out.write_text(Path(__file__).with_name("program").read_text())
out.chmod(0o755)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout without contents, a compiler and a program."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "nv_wavenet.cuh").write_text("// nothing\n")
    for name, text in (("nvcc", NVCC), ("program", PROGRAM)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.fixture
def peer(folder: Path):
    made = Peer(folder / "program", CONFIG)
    yield made
    made.close()


WANTED = [Binary.of(CONFIG, bits, "sm_90") for bits in (32, 16)]


def test_what_is_compiled_is_kept_until_its_sources_change(folder: Path):
    def build(source: Path | None) -> int:
        build_all(WANTED, folder / "build", source, str(folder / "nvcc"), 1)
        return len((folder / "compiled").read_text().splitlines())

    assert build(folder / "source") == 2
    assert build(folder / "source") == build(None) == 2
    (folder / "source" / "nv_wavenet.cuh").write_text("// something\n")
    assert build(None) == 2
    assert build(folder / "source") == 4
    line = (folder / "compiled").read_text().splitlines()[0]
    for part in ("-arch=sm_90", "-DNVW_R=64", "-DNVW_S=128", "-DNVW_A=256", "-DNVW_BITS=32", "nv_wavenet_speed.cu"):
        assert part in line


def test_what_cannot_be_compiled_is_told_in_a_sentence(folder: Path):
    with pytest.raises(SystemExit, match=r"lacks nv-wavenet-64-128-256-fp32-sm_90, .*give --source"):
        build_all(WANTED, folder / "build", None, "nvcc")
    with pytest.raises(SystemExit, match=r"holds no nv_wavenet.cuh"):
        build_all(WANTED, folder / "build", folder, "nvcc")
    with pytest.raises(SystemExit, match=r"does not run .*give --nvcc"):
        build_all(WANTED, folder / "build", folder / "source", str(folder / "none"))
    (folder / "no-fp16").touch()
    with pytest.raises(SystemExit, match=r"fp16-sm_90 does not compile: .*error: no such thing"):
        build_all(WANTED, folder / "build", folder / "source", str(folder / "nvcc"), 1)


def test_the_best_number_of_streams_a_block_is_reported(peer: Peer):
    entry = theirs(peer, 32, "single block", CONFIG, 4, 100, {})
    assert entry.row["streams_per_block"] == 2
    assert entry.rate() == 4 * 100 / 10e-3
    assert theirs(peer, 32, "dual block", CONFIG, 4, 100, {}).row["streams_per_block"] == 4  # refused with fewer


def test_a_program_that_refuses_fails_or_hangs_is_told(peer: Peer, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(NotRun, match=r"refused the launch .GPUassert: too many blocks"):
        theirs(peer, 32, "dual block", CONFIG, 11, 100, {})
    with pytest.raises(NotRun, match=r"exit code 1 .*Assertion"):
        theirs(peer, 32, "persistent", CONFIG, 7, 100, {})
    monkeypatch.setattr(peer_module, "PATIENCE", 0.2)
    with pytest.raises(NotRun, match=r"no answer within 0\.2 s"):
        theirs(peer, 32, "persistent", CONFIG, 9, 100, {})
    monkeypatch.undo()
    with pytest.raises(NotRun, match="not asked again"):
        theirs(peer, 32, "persistent", CONFIG, 1, 100, {})
    assert theirs(peer, 32, "single block", CONFIG, 1, 100, {}).rate() > 0


def test_classes_that_are_all_equal_are_no_speed(peer: Peer):
    with pytest.raises(NotRun, match="1 different classes"):
        theirs(peer, 32, "persistent", CONFIG, 5, 100, {})


def test_classes_are_held_against_the_first_implementation_of_as_many_bits(peer: Peer):
    first = {32: bytes([10, 11, 10, 10]), 16: b""}
    assert theirs(peer, 32, "persistent", CONFIG, 1, 100, first).row["as_single_block_for"] == 3
    assert alike(b"abc", b"abc") == 3
    assert alike(b"", b"abc") == 0


def test_conditioning_never_outgrows_an_int(peer: Peer):
    entry = theirs(peer, 32, "single block", CONFIG, 4096, 4096, {})
    assert entry.row["samples"] * 4096 * 20 * 128 <= 1 << 30
    assert entry.row["samples"] == 102


def test_ours_are_held_against_the_fastest_in_as_many_bits():
    speeds = {("nv-wavenet a", "fp16"): 2.0, ("nv-wavenet b", "fp16"): 4.0, ("nv-wavenet a", "fp32"): 1.0}
    speeds |= {("nv-wavenet c", "fp16"): 1.5}
    speeds |= {("wavenet_fast cuda", "bf16"): 8.0, ("wavenet_fast cuda", "fp32"): 3.0}
    rows = [{"system": s, "dtype": d, "samples_per_second": v} for (s, d), v in speeds.items()]
    rows[1]["error"] = "it ended in a later round"
    compare(rows)
    assert (rows[4]["against"], rows[4]["ratio"]) == ("nv-wavenet a fp16", 4.0)
    assert (rows[5]["against"], rows[5]["ratio"]) == ("nv-wavenet a fp32", 3.0)
    assert "ratio" not in rows[0]
