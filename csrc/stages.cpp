#include "stages.h"

#include <stdexcept>

#include "denormals.h"

namespace wavenet {

StageRoom::StageRoom(const Model& m, const Kernels& kernels, int streams) : model(m), kernels(kernels), n(streams) {
  if (n < 1 || n > kMaxWidth) throw std::invalid_argument("give 1 … 16 streams");
  arena_.reserve(&x, n * m.x_stride);
  arena_.reserve(&z, n * m.gate_pad);
  arena_.reserve(&gate, n * m.half_pad);
  arena_.reserve(&residual, n * m.pad(m.R));
  arena_.reserve(&skip, n * m.pad(m.S));
  arena_.reserve(&hidden, n * m.pad(m.H));
  arena_.reserve(&logits, n * m.pad(m.A));
  arena_.reserve(&draw, n);
  arena_.reserve(&weights, m.sampler_floats());
  const auto operands = [&](void** where, float** scale, int64_t vectors, int64_t channels) {
    const int64_t bytes = m.operands(channels) * m.operand_bytes();
    arena_.reserve(reinterpret_cast<char**>(where), checked_mul(n * vectors, bytes));
    arena_.reserve(scale, n * vectors);
  };
  operands(&taps, &tap_scale, m.K, m.R);
  operands(&gates, &gate_scale, m.L, m.half);
  operands(&skips, &skip_scale, 1, m.S);
  operands(&hiddens, &hidden_scale, 1, m.H);
  arena_.allocate();
  // Numbers between −1 and 1 that differ from stream to stream and from channel to channel; what has no channel is
  // zero.
  uint32_t state = 1;
  const auto fill = [&](float* rows, int64_t stride, int64_t channels) {
    for (int b = 0; b < n; ++b) {
      for (int64_t c = 0; c < channels; ++c) {
        state = state * 1664525u + 1013904223u;  // the generator of Numerical Recipes
        rows[b * stride + c] = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
      }
    }
  };
  fill(x, m.x_stride, m.R);
  fill(z, m.gate_pad, m.gate_pad);
  fill(skip, m.pad(m.S), m.S);
  fill(logits, m.pad(m.A), m.A);
}

void StageRoom::run(const std::string& stage, int64_t times) {
  static const char* const names[] = {"dilated", "gate", "residual+skip", "head", "sample"};
  const FlushDenormals mode;
  for (int i = 0; i < 5; ++i) {
    if (stage == names[i]) return kernels.run_stage(model, *this, static_cast<Stage>(i), times);
  }
  throw std::invalid_argument("there is no stage " + stage);
}

std::vector<float> StageRoom::row(const std::string& name, int b) const {
  const Model& m = model;
  const struct {
    const char* name;
    const float* rows;
    int64_t size;
  } all[] = {
      {"x", x, m.x_stride},
      {"z", z, m.gate_pad},
      {"gate", gate, m.half_pad},
      {"skip", skip, m.pad(m.S)},
      {"residual", residual, m.pad(m.R)},
      {"hidden", hidden, m.pad(m.H)},
      {"logits", logits, m.pad(m.A)},
      {"draw", draw, 1},
  };
  if (b < 0 || b >= n) throw std::invalid_argument("there is no such stream");
  for (const auto& each : all) {
    if (name == each.name) return {each.rows + b * each.size, each.rows + (b + 1) * each.size};
  }
  throw std::invalid_argument("there is no row " + name);
}

}  // namespace wavenet
