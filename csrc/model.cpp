#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace wavenet {

int64_t checked_mul(int64_t a, int64_t b) {
  int64_t product;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product) || product > (int64_t{1} << 46)) {
    throw std::length_error("a size of this model does not fit in memory");
  }
  return product;
}

Range Node::inputs_of(Range outputs) const {
  const auto [begin, end] = outputs;
  if (kind == NodeKind::frame_conv) {  // y[f] = Σ_j w[j]·x[f + j − taps/2]
    return {begin - taps / 2, end + (taps - 1) / 2};
  }
  if (kind == NodeKind::transposed) {  // y[o] = Σ_n w[o + crop − scale·n]·x[n]
    return {floor_div(begin + crop - taps, scale) + 1, floor_div(end - 1 + crop, scale) + 1};
  }
  const int64_t reach = (taps - 1) / 2;  // y[o] = Σ_j w[j]·x[⌊(o + j − reach)/scale⌋]
  return {floor_div(begin - reach, scale), floor_div(end - 1 + reach, scale) + 1};
}

void Model::derive() {
  half = G / 2;
  half_pad = pad(half);
  gate_pad = 2 * half_pad;
  projected = checked_mul(L, gate_pad);
  projected_stride = projected + kLineFloats;
  column_stride = round_up(C, kOperandPad / 2);
  x_stride = round_up(R, kChannelPad);
  r_stride = operands(R);
  ring_first.clear();
  ring_depth.clear();
  ring_slots = 0;
  for (const int64_t d : dilations) {
    ring_first.push_back(ring_slots);
    ring_depth.push_back(checked_mul(K - 1, d));
    ring_slots += ring_depth.back();
    checked_mul(checked_mul(ring_slots, r_stride), 4);
  }
  derive_conditioning();
  derive_tables();
}

void Model::derive_conditioning() {
  n_frame_nodes =
      std::count_if(nodes.begin(), nodes.end(), [](const Node& n) { return n.kind == NodeKind::frame_conv; });
  int64_t width = M, rate = 1;
  for (size_t i = 0; i < nodes.size(); ++i) {
    const Node& n = nodes[i];
    const bool at_frame_rate = n.kind == NodeKind::frame_conv;
    if (n.in != width || at_frame_rate != (static_cast<int64_t>(i) < n_frame_nodes) || (n.image && n.in != n.out) ||
        n.freq_taps > 2 * kGuard - 1 || n.freq_taps % 2 == 0) {
      throw std::invalid_argument("the layers of the conditioning network do not fit together");
    }
    width = n.out;
    rate = checked_mul(rate, n.scale);
  }
  if (width != C || rate != (upsampling == Upsampling::stages ? hop : 1)) {
    throw std::invalid_argument("the conditioning network does not end at the width and rate that the layers read");
  }
  // Columns that the samples of frame 0 hear, then the frames that those depend on: context behind, look-ahead beyond.
  Range needed{floor_div(offset, hop), 1};
  if (upsampling == Upsampling::stages) needed = {offset, hop};
  if (upsampling == Upsampling::linear) {
    if (frame_centre > 0) needed.first -= 1;
    if ((hop - 1.0) / hop >= frame_centre) needed.last += 1;
  }
  for (size_t i = nodes.size(); i-- > 0;) needed = nodes[i].inputs_of(needed);
  context_frames = std::max<int64_t>(0, -needed.first);
  lookahead_frames = std::max<int64_t>(0, needed.last - 1);
}

// n/256 in bf16, n ≤ 256.
static uint32_t bf16_of_256ths(uint32_t n) {
  const float value = static_cast<float>(n) / 256.f;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits >> 16;
}

void Model::derive_tables() {
  fraction.assign(hop, 0.f);
  fraction_pair.assign(hop + 1, bf16_of_256ths(256));
  shift.assign(hop, 0);
  for (int64_t r = 0; r < hop && upsampling == Upsampling::linear; ++r) {
    const double within = static_cast<double>(r) / hop - frame_centre;
    shift[r] = within < 0 ? -1 : 0;
    fraction[r] = static_cast<float>(within - shift[r]);
    // In 256ths bf16 holds both weights exactly, and they add up to 1.
    const auto right = static_cast<uint32_t>(std::lround(256.0 * (within - shift[r])));
    fraction_pair[r] = bf16_of_256ths(right) << 16 | bf16_of_256ths(256 - right);
  }
}

// --- weights ---------------------------------------------------------------------------------------------------------

void Model::load(const Find& find) {
  visit(find, false);  // sizes, so that the block is allocated once and only for arrays that fit
  capacity_ = used_;
  block_ = zeros(capacity_);
  used_ = 0;
  visit(find, true);
}

const void* Model::take(const Find& find, bool copy, const std::string& name, int64_t elements, int64_t bytes) {
  const Array array = find(name);
  if (array.elements != elements || array.bytes != bytes) {
    throw std::invalid_argument("packed array " + name + " holds " + std::to_string(array.elements) + " elements of " +
                                std::to_string(array.bytes) + " bytes; " + std::to_string(elements) + " of " +
                                std::to_string(bytes) + " are needed");
  }
  const int64_t size = checked_mul(elements, bytes);
  char* to = copy ? block_.get() + used_ : nullptr;
  used_ += round_up(size, 64);
  checked_mul(used_, 1);
  if (copy) std::memcpy(to, array.data, static_cast<size_t>(size));
  return to;
}

Matrix Model::take_matrix(const Find& find, bool copy, const std::string& name, int64_t rows, int64_t segments,
                          int64_t k, Number format, const Layout& layout) {
  Matrix m;
  m.vectors = rows / layout.lanes;
  m.segments = segments;
  m.k = round_up(k, layout.run);
  m.data = take(find, copy, name, checked_mul(checked_mul(rows, segments), m.k), weight_bytes(format));
  return m;
}

// A matrix that stays fp32.
Matrix Model::take_plain(const Find& find, bool copy, const std::string& name, int64_t rows, int64_t segments,
                         int64_t k) {
  return take_matrix(find, copy, name, rows, segments, k, Number::fp32, plain);
}

// A matrix in the model's number format.
Matrix Model::take_streamed(const Find& find, bool copy, const std::string& name, int64_t rows, int64_t segments,
                            int64_t k) {
  Matrix m = take_matrix(find, copy, name, rows, segments, k, number, layout);
  if (number != Number::int8) return m;
  m.scale = static_cast<const float*>(take(find, copy, name + ".scale", checked_mul(rows, segments), 4));
  m.offset = take_offsets(m, copy);
  return m;
}

// −128 · Σ of each row's weights, by segment: where a set multiplies unsigned operands, they are 128 more than meant.
const int32_t* Model::take_offsets(const Matrix& m, bool copy) {
  const int64_t rows = m.vectors * layout.lanes, bytes = checked_mul(rows * m.segments, 4);
  auto* offset = copy ? reinterpret_cast<int32_t*>(block_.get() + used_) : nullptr;
  used_ += round_up(bytes, 64);
  if (!copy) return nullptr;
  std::memset(offset, 0, static_cast<size_t>(bytes));
  const auto* w = static_cast<const int8_t*>(m.data);
  for (int64_t first = 0; first < m.vectors; first += layout.accumulators) {
    const int64_t n = std::min(layout.accumulators, m.vectors - first);
    for (int64_t s = 0; s < m.segments; ++s) {
      for (int64_t run = 0; run < m.k; run += layout.run) {
        for (int64_t v = 0; v < n; ++v) {
          for (int64_t word = 0; word < layout.run / layout.pack; ++word) {
            for (int64_t lane = 0; lane < layout.lanes; ++lane) {
              for (int64_t i = 0; i < layout.pack; ++i) {
                offset[s * rows + (first + v) * layout.lanes + lane] -= 128 * *w++;
              }
            }
          }
        }
      }
    }
  }
  return offset;
}

int64_t Model::streamed_bytes() const {
  int64_t elements = 0;
  const auto add = [&](const Matrix& m) { elements += m.vectors * layout.lanes * m.segments * m.k; };
  for (const Matrix& m : dilated) add(m);
  for (const Matrix& m : residual) add(m);
  add(skip);
  add(hidden);
  add(out);
  return elements * weight_bytes(number);
}

void Model::visit(const Find& find, bool copy) {
  const auto floats = [&](const std::string& name, int64_t n) {
    return static_cast<const float*>(take(find, copy, name, n, 4));
  };
  if (standardise) {
    mel_mean = floats("mel.mean", M);
    mel_scale = floats("mel.scale", M);
  }
  for (size_t i = 0; i < nodes.size(); ++i) {
    Node& n = nodes[i];
    const std::string name = n.kind == NodeKind::frame_conv
                                 ? "conditioning.network." + std::to_string(i)
                                 : "conditioning.stages." + std::to_string(i - n_frame_nodes);
    if (n.image) {
      n.kernel = floats(name + ".weight", checked_mul(n.freq_taps, n.taps));
      n.bias = floats(name + ".bias", 1);
    } else {
      n.weight = take_plain(find, copy, name + ".weight", pad(n.out), n.taps, n.in);
      n.bias = floats(name + ".bias", pad(n.out));
    }
  }
  project = take_matrix(find, copy, "conditioning.weight", projected, 1, C, projection_number, projection_layout);
  project_bias = floats("conditioning.bias", projected);
  if (P) {
    speaker = take_plain(find, copy, "speaker.weight", projected, 1, P);
    speaker_bias = floats("speaker.bias", projected);
  }
  input = floats("input.weight", checked_mul(checked_mul(in_taps, in_channels), x_stride));
  input_bias = floats("input.bias", x_stride);
  dilated.clear();
  residual.clear();
  for (int64_t l = 0; l < L; ++l) {
    const std::string layer = "layers." + std::to_string(l);
    dilated.push_back(take_streamed(find, copy, layer + ".dilated.weight", gate_pad, K, R));
    if (l + 1 < L) residual.push_back(take_streamed(find, copy, layer + ".residual.weight", pad(R), 1, half));
  }
  dilated_bias = floats("dilated.bias", projected);
  residual_bias = floats("residual.bias", checked_mul(L - 1, pad(R)));
  skip = take_streamed(find, copy, "skip.weight", pad(S), L, half);
  skip_bias = floats("skip.bias", checked_mul(L, pad(S)));
  skip_bias_sum.assign(pad(S), 0.f);
  for (int64_t i = 0; copy && i < L * pad(S); ++i) skip_bias_sum[i % pad(S)] += skip_bias[i];
  hidden = take_streamed(find, copy, "head.hidden.weight", pad(H), 1, S);
  hidden_bias = floats("head.hidden.bias", pad(H));
  out = take_streamed(find, copy, "head.out.weight", pad(A), 1, H);
  out_bias = floats("head.out.bias", pad(A));
}

}  // namespace wavenet
