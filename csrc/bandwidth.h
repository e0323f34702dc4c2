// What a benchmark holds the engine against: the speed at which threads can read, and an empty loop of a given length.
#pragma once

#include <cstdint>

#include "memory.h"
#include "stream.h"

namespace wavenet {

// A block of memory laid out like a model's weights, which threads read over and over, each its own part.
class ReadProbe {
 public:
  // Throws std::invalid_argument unless 1 ≤ bytes ≤ 2⁴⁰ and 1 ≤ threads ≤ kMaxThreads, std::bad_alloc without memory.
  ReadProbe(int64_t bytes, int threads);

  struct Reading {
    double seconds;  // from the moment when all threads start to the end of the last
    uint64_t sum;    // of what was read
  };
  // All threads together read the block `times` times over, after each has read its own part once.
  Reading run(ReadLoop read, int64_t times) const;

 private:
  Memory block_;
  int64_t bytes_;
  int threads_;
};

constexpr int kMaxThreads = 1024;

// Counts to `count` in a register, about one a cycle, on each of `threads` threads.
void spin(int64_t count, int threads);

}  // namespace wavenet
