// A model made ready for the engine: sizes (by the README's letters), packed weights in one aligned block.
//
// Everything here is immutable once built and holds no per-stream state, so one Model serves any number of threads.
// Sizes are checked again although Python has checked them: no array handed in can make the engine read out of bounds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "memory.h"

namespace wavenet {

// Format of the matrices that every sample passes, and of the activations that meet them: see formats.inl.
enum class Number { fp32, bf16, fp16, int8 };
constexpr int kNumbers = 4;
// Conditioning is projected in bf16 where the operands of the layers are short.
constexpr Number projection_of(Number number) {
  return number == Number::bf16 || number == Number::int8 ? Number::bf16 : Number::fp32;
}
enum class Activation { none, relu, leaky_relu, tanh };
enum class HeadKind { categorical, logistic, gaussian };
enum class Upsampling { hold, linear, stages };
enum class NodeKind { frame_conv, transposed, repeat };

// Vectors of floats that stages hand on are padded to 16 channels on every instruction set.
constexpr int64_t kChannelPad = 16;
// Vectors of operands, ring slots among them, are padded to so many bytes: one row of a tile.
constexpr int64_t kOperandPad = 64;
// Floats of a cache line.
constexpr int64_t kLineFloats = 16;
// Zeroed floats on both sides of every conditioning column: a picture kernel of up to 63 bands may look past the edge.
constexpr int64_t kGuard = 32;
constexpr int kMaxAccumulators = 8;
constexpr int64_t kUnbounded = std::numeric_limits<int64_t>::max() / 4;

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline int64_t floor_div(int64_t a, int64_t b) { return a / b - ((a % b != 0) && ((a < 0) != (b < 0))); }
// a·b; throws std::length_error where the product does not fit 64 bits or exceeds what an address can reach.
int64_t checked_mul(int64_t a, int64_t b);

// How the matrices of one number format are packed (see packing.py): blocks of up to `accumulators` vectors of `lanes`
// rows, inputs in runs of `run`, of which `pack` neighbours share a 32-bit word.
struct Layout {
  int64_t lanes, accumulators, run, pack;
};

// rows × (segments · k), packed as [block][segment][run of k][vector of the block][k within the run][lane][k within the
// word]; k is padded to whole runs.
struct Matrix {
  const void* data = nullptr;
  int64_t vectors = 0, segments = 0, k = 0;
  // int8 only: what one unit of a row's weights is worth, and −128 times the sum of a row's weights; (segments, rows).
  const float* scale = nullptr;
  const int32_t* offset = nullptr;
};

// Indices first … last − 1.
struct Range {
  int64_t first, last;
  int64_t size() const { return last - first; }
};

// One layer of the conditioning network: at frame rate (frame_conv) or from one rate to `scale` times that rate.
struct Node {
  NodeKind kind;
  int64_t in, out;  // channels
  int64_t taps, scale = 1, crop = 0, freq_taps = 1;
  bool image = false, replicate = false;
  Activation activation = Activation::none;
  float slope = 0;
  Matrix weight;                  // where not image
  const float* kernel = nullptr;  // image: (freq_taps, taps)
  const float* bias = nullptr;    // rows, or one value for a picture

  // Inputs that these outputs depend on, before clipping to what exists.
  Range inputs_of(Range outputs) const;
  int64_t stride_in() const { return round_up(in, kChannelPad) + 2 * kGuard; }
  int64_t stride_out() const { return round_up(out, kChannelPad) + 2 * kGuard; }
};

struct Model {
  // Letters.
  int64_t L, K, R, G, S, H, A, M, C, P, hop;
  int64_t in_channels, in_taps;
  std::vector<int64_t> dilations;
  Number number = Number::fp32;
  Layout layout{};                          // of the matrices in `number`
  Layout plain{};                           // of those that stay fp32: the conditioning network's and the speakers'
  Number projection_number = Number::fp32;  // of what the layers hear of the conditioning
  Layout projection_layout{};

  float residual_scale, skip_scale;
  bool running_skip, one_hot, input_tanh;
  bool steady_past;  // before sample 0 every layer has heard for ever what it hears then
  float start;

  HeadKind head;
  int64_t components = 1;
  float log_scale_min;          // −∞ where there is no floor
  std::vector<float> sound;     // categorical: class → linear sample
  std::vector<float> feedback;  // categorical: class → what a scalar input is fed
  bool companded;               // a mixture works on µ-law companded values
  double mu;
  float preemphasis, gain;

  bool standardise;
  Upsampling upsampling;
  int64_t offset;
  double frame_centre;
  // Linear, by position within the hop: the weight of the right frame, and as bf16 that of the left frame and of the
  // right one side by side; one entry more for a frame that is heard alone.
  std::vector<float> fraction;
  std::vector<uint32_t> fraction_pair;
  std::vector<int32_t> shift;  // linear: 0 or −1, frame to the left of that position
  std::vector<Node> nodes;
  int64_t n_frame_nodes = 0;  // the first nodes, which run at frame rate
  int64_t lookahead_frames, context_frames;

  // Sizes in elements. pad: rows padded to lanes.
  // G/2; padded to lanes; z: vectors of the tanh half and of the sigmoid half by turns.
  int64_t half, half_pad, gate_pad;
  int64_t x_stride;  // floats of x and of a row of the input table
  int64_t r_stride;  // operands of a ring slot
  int64_t ring_slots;
  std::vector<int64_t> ring_first, ring_depth;  // slots of each layer
  int64_t projected;                            // L · gate_pad: one projected conditioning column
  int64_t projected_stride;  // floats from one to the next: whole pages apart they would crowd into few cache sets
  int64_t column_stride;     // operands of a conditioning column in bf16

  // Weights.
  const float *mel_mean = nullptr, *mel_scale = nullptr;
  Matrix project;  // (L · gate_pad) × C
  const float* project_bias;
  Matrix speaker;  // (L · gate_pad) × P
  const float* speaker_bias = nullptr;
  const float *input, *input_bias;  // (in_taps, in_channels, x_stride), (x_stride)
  std::vector<Matrix> dilated, residual;
  const float *dilated_bias, *residual_bias, *skip_bias;  // one row per layer
  std::vector<float> skip_bias_sum;                       // over the layers, pad(S)
  Matrix skip, hidden, out;
  const float *hidden_bias, *out_bias;

  int64_t pad(int64_t rows) const { return round_up(rows, layout.lanes); }
  int64_t operand_bytes() const { return number == Number::bf16 ? 2 : number == Number::int8 ? 1 : 4; }
  // Whether the layers hear their conditioning as pairs of bf16, that of a column and that of the next.
  bool hears_pairs() const { return upsampling == Upsampling::linear && projection_number == Number::bf16; }
  static int64_t weight_bytes(Number number) { return number == Number::fp32 ? 4 : number == Number::int8 ? 1 : 2; }
  // Operands of a vector of n channels.
  int64_t operands(int64_t n) const { return round_up(n * operand_bytes(), kOperandPad) / operand_bytes(); }
  // What the sampler needs for a draw: a weight for every class, in sixteens, and a sum for each sixteen.
  int64_t sampler_floats() const { return round_up(A, 16) / 16 * 17; }
  // Bytes of the matrices that every sample passes.
  int64_t streamed_bytes() const;

  Model() = default;
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  // A packed array by name, as the caller holds it.
  struct Array {
    const void* data;
    int64_t elements;
    int64_t bytes;  // of an element: 4 float32, 2 uint16, 1 int8
  };
  using Find = std::function<Array(const std::string&)>;

  // Derives sizes from the letters and nodes above, which must be set.
  void derive();
  // Copies the packed arrays; throws std::invalid_argument where one has another size or type than the sizes demand.
  void load(const Find& find);

 private:
  Memory block_;
  int64_t used_ = 0, capacity_ = 0;
  void visit(const Find& find, bool copy);
  const void* take(const Find& find, bool copy, const std::string& name, int64_t elements, int64_t bytes);
  Matrix take_matrix(const Find& find, bool copy, const std::string& name, int64_t rows, int64_t segments, int64_t k,
                     Number format, const Layout& layout);
  Matrix take_plain(const Find& find, bool copy, const std::string& name, int64_t rows, int64_t segments, int64_t k);
  Matrix take_streamed(const Find& find, bool copy, const std::string& name, int64_t rows, int64_t segments, int64_t k);
  const int32_t* take_offsets(const Matrix& m, bool copy);
  void derive_conditioning();
  void derive_tables();
};

}  // namespace wavenet
