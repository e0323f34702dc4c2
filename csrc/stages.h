// One stage of a sample by itself, for benchmarks: made of the same products, gates and draws as the sample loop, every
// layer in turn, so that weights come from the cache that they come from there. What the loop gains by doing one stage
// while another waits does not show here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "stream.h"

namespace wavenet {

// Activations of n streams, made up; what the stages read and write. Row b of each array belongs to stream b.
struct StageRoom {
  // Throws std::invalid_argument unless 1 ≤ streams ≤ kMaxWidth.
  StageRoom(const Model& model, const Kernels& kernels, int streams);

  // The stage of `times` samples. Throws std::invalid_argument for a stage that there is not.
  void run(const std::string& stage, int64_t times);
  // What stream b has, for tests: x, z, gate, residual, skip, hidden, logits (rows of the last layer, padded) or draw.
  std::vector<float> row(const std::string& name, int b) const;

  const Model& model;
  const Kernels& kernels;
  const int n;
  // (n, x_stride) (n, gate_pad) (n, half_pad) (n, pad(R)) (n, pad(S)) (n, pad(H)) (n, pad(A)) (n)
  float *x, *z, *gate, *residual, *skip, *hidden, *logits, *draw;
  float* weights;                                             // sampler_floats(): the sampler's
  void *taps, *gates, *skips, *hiddens;                       // operands: (n, K, r_stride) (n, L, …) (n, …) (n, …)
  float *tap_scale, *gate_scale, *skip_scale, *hidden_scale;  // (n, K) (n, L) (n) (n)
  int64_t position = 0;                                       // of the next draw

 private:
  Arena arena_;
};

}  // namespace wavenet
