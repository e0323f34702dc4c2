// Waiting for another block, never for ever.
//
// A warp that has waited for more than `patience` clock cycles writes who waited for what to the abort word, unless
// something is there already, and gives up; warps that see the word give up too. Giving up does not change the way
// of a warp: it goes on with whatever lies in memory, does not wait any more, and all threads of a block leave the
// sample loop together at the end of a sample (`block_barrier_any`). So every barrier meets all its threads, no block
// ends while others may still reach into its shared memory, and what was computed after that is thrown away by the
// host. No address depends on what was waited for.
#pragma once

#include "device.cuh"

struct Watch {
  u64* abort;
  long long patience;
  bool given_up;
};

// The abort word: [63] set, [48 … 55] what was waited for (`Mail`), [24 … 47] tile, [0 … 23] block.
DEVICE u64 abort_word(int what, int tile) {
  return 1ull << 63 | static_cast<u64>(what) << 48 | static_cast<u64>(tile) << 24 | blockIdx.x;
}

constexpr int kPollsPerLook = 64;  // looks at the clock and at the abort word cost more than a poll

// Polls `ready`, which says the same to all lanes of the warp that calls this, at least once and until it is true.
template <class Ready>
DEVICE void wait_until(Ready ready, Watch& watch, int what, int tile) {
  long long begin = 0;  // of the wait, as the first look finds it
  for (int poll = 1; !ready() && !watch.given_up; ++poll) {
    if (poll % kPollsPerLook) continue;
    const long long now = clock_now();
    if (begin == 0) begin = now;
    const bool others = load_relaxed(watch.abort) != 0, late = now - begin > watch.patience;
    if (late && !others) claim(watch.abort, abort_word(what, tile));
    watch.given_up = in_any_lane(others || late);
  }
}
