// One call: the streams of a batch shared out over threads, each stream wholly on one thread.
#pragma once

#include <functional>
#include <vector>

#include "stream.h"

namespace wavenet {

// Samples that a stream has in all once `frames` frames are there: those whose conditioning is known.
int64_t ready_samples(const Model& model, int64_t frames, bool ended);

// Makes the samples of every stream on up to `threads` threads and returns whether all were made. The calling thread
// only watches: it calls `watch` every few tens of milliseconds, which may throw or return false to stop the call.
// (What takes one thread a few milliseconds is done on the calling thread, unwatched.) Rethrows what a worker threw.
// After a stop the streams' state is in between and must be put back by the caller.
bool run(const Model& model, const Kernels& kernels, std::vector<Stream>& streams, int threads, Control& control,
         const std::function<bool()>& watch);

}  // namespace wavenet
