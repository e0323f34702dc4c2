"""benchmarks/gpu_counts_cuda.py counts what a sample costs, and no waiting."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the benchmarks need PyTorch")

from gpu_counts_cuda import CUDA_FAMILIES, LOOKS, counted
from ptx_counts import bytes_of, family, instructions_of, waits

from wavenet_fast.backends import gpu

PTX = """.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 p)
{
.reg .pred %p<3>; .reg .b32 %r<5>; .reg .b64 %rd<5>;
ld.param.u64 %rd1, [p];
samples:
mov.u32 %r1, 0;
poll:
ld.relaxed.gpu.global.v2.b64 {%rd2, %rd3}, [%rd1];
setp.eq.s64 %p1, %rd2, 0;
@%p1 bra poll;
add.s32 %r1, %r1, 1;
@%p1 bra poll;
st.relaxed.cluster.v2.b64 [%rd1], {%rd2, %rd3};
redux.sync.add.s32 %r2, %r1, -1;
bar.sync 1, 64;
setp.lt.s32 %p2, %r1, 9;
@%p2 bra samples;
ret;
}
"""


def test_a_wait_is_the_innermost_loop_around_a_look() -> None:
    found = {PTX.splitlines()[int(line) - 1].split()[0] for line in waits(PTX, "k", LOOKS)}
    assert found == {"poll:", "ld.relaxed.gpu.global.v2.b64", "setp.eq.s64", "@%p1", "add.s32"}
    assert waits(PTX, "k", ("ld.acquire",)) == set()


def test_what_goes_between_blocks_has_a_family_and_a_size() -> None:
    lines = {i.opcode: i for i in instructions_of(PTX, "k").values()}
    words = lines["st.relaxed.cluster.v2.b64"]
    assert family(words, CUDA_FAMILIES) == "words to other blocks" and bytes_of(words) == {"generic stores": 16}
    assert bytes_of(lines["ld.relaxed.gpu.global.v2.b64"]) == {"global loads": 16}
    assert family(lines["bar.sync"], CUDA_FAMILIES) == "barriers, flags and waits"
    assert family(lines["redux.sync.add.s32"], CUDA_FAMILIES) == "exchange in a warp"


@pytest.mark.skipif(gpu.why_not_emulated_cuda_kernels() is not None, reason=str(gpu.why_not_emulated_cuda_kernels()))
def test_a_sample_of_a_small_model_is_counted() -> None:
    row = counted("tiny", "bf16", "resident", 1)
    assert row is not None
    found = row["sample_of_a_tile"]
    assert found["roles"].keys() == {"chain", "residual", "skip"} and row["plan"]["blocks"] == 1
    # 6 layers of R 16, G 32, S 32, two taps; a head of 32 by 256: panels of 16 rows times steps of 16 inputs.
    assert found["tensor_products"] == 6 * (2 * 2 + 2) + 5 * 1 + 2 * 2 + 16 * 2
    assert found["words"] == (32 + 16) * 8  # sums of skips to the head, and the next x: here in the same block
