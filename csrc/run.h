// One call: streams and rows shared out over threads.
#pragma once

#include <functional>
#include <vector>

#include "stream.h"

namespace wavenet {

// How a call uses its threads: `teams` groups of `size` threads each. The threads of a team split the rows of every
// layer and make up to `width` streams side by side; the streams are shared out over the teams. The products of a
// layer's older taps are made for up to `ahead` samples at once.
struct Plan {
  int teams, size, width, ahead;
};

enum class Split { automatic, streams, rows };

// Bytes of one core's second cache.
int64_t second_cache();

// The plan for `streams` streams of a model with so many bytes of weights a sample, on up to `threads` threads. It
// follows from these numbers, the second cache and the cores of this process alone, and changes no sample. `ahead` is
// what the plan shall have, as far as that is possible; 0 leaves it to the plan.
Plan plan_call(int64_t weight_bytes, int64_t streams, int threads, Split split, int ahead);

// Samples that a stream has in all once `frames` frames are there: those whose conditioning is known.
int64_t ready_samples(const Model& model, int64_t frames, bool ended);

// Makes the samples of every stream and returns whether all were made. The calling thread only watches: it calls
// `watch` every few tens of milliseconds, which may throw or return false to stop the call. (What takes one thread a
// few milliseconds is done on the calling thread, unwatched.) Rethrows what a worker threw.
// After a stop the streams' state is in between and must be put back by the caller.
bool run(const Model& model, const Kernels& kernels, const std::vector<Stream>& streams, const Plan& plan,
         Control& control, const std::function<bool()>& watch);

}  // namespace wavenet
