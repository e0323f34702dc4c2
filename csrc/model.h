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

namespace wavenet {

enum class Number { fp32, bf16 };  // format of the weights and of the activations that meet them
enum class Activation { none, relu, leaky_relu, tanh };
enum class HeadKind { categorical, logistic, gaussian };
enum class Upsampling { hold, linear, stages };
enum class NodeKind { frame_conv, transposed, repeat };

// Ring slots and tables are padded to 16 channels on every instruction set, so that a saved state fits all of them.
constexpr int64_t kChannelPad = 16;
// Zeroed floats on both sides of every conditioning column: a picture kernel of up to 63 bands may look past the edge.
constexpr int64_t kGuard = 32;
constexpr int kMaxAccumulators = 8;
constexpr int64_t kUnbounded = std::numeric_limits<int64_t>::max() / 4;

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline int64_t floor_div(int64_t a, int64_t b) { return a / b - ((a % b != 0) && ((a < 0) != (b < 0))); }
// a·b; throws std::length_error where the product does not fit 64 bits or exceeds what an address can reach.
int64_t checked_mul(int64_t a, int64_t b);

// How rows are grouped: blocks of up to `accumulators` vectors of `lanes` rows (see packing.py).
struct Layout {
  int64_t lanes, accumulators;
};

// rows × (segments · k), packed as [block][segment][k][vector of the block][lane]; in bf16 k is even and
// two neighbours in k share a 32-bit word, the lower one in the low half.
struct Matrix {
  const void* data = nullptr;
  int64_t vectors = 0, segments = 0, k = 0;
  int64_t rows(const Layout& layout) const { return vectors * layout.lanes; }
};

// Indices first … last − 1.
struct Range {
  int64_t first, last;
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
  Layout layout{};

  float residual_scale, skip_scale;
  bool running_skip, one_hot, input_tanh;
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
  std::vector<float> fraction;  // linear: weight of the right frame by position within the hop
  std::vector<int32_t> shift;   // linear: 0 or −1, frame to the left of that position
  std::vector<Node> nodes;
  int64_t n_frame_nodes = 0;  // the first nodes, which run at frame rate
  int64_t lookahead_frames, context_frames;

  // Sizes in elements. pad: rows padded to lanes.
  int64_t half, half_pad, gate_pad;  // G/2; padded; z = [tanh half | sigmoid half], both padded
  int64_t r_stride;                  // channels of a ring slot
  int64_t ring_elements;             // per stream
  std::vector<int64_t> ring_offset, ring_depth;
  int64_t projected;  // L · gate_pad: one projected conditioning column

  // Weights.
  const float *mel_mean = nullptr, *mel_scale = nullptr;
  Matrix project;  // (L · gate_pad) × C
  const float* project_bias;
  Matrix speaker;  // (L · gate_pad) × P
  const float* speaker_bias = nullptr;
  const float *input, *input_bias;  // (in_taps, in_channels, r_stride), (r_stride)
  std::vector<Matrix> dilated, residual;
  const float *dilated_bias, *residual_bias, *skip_bias;  // one row per layer
  Matrix skip, hidden, out;
  const float *hidden_bias, *out_bias;

  int64_t pad(int64_t rows) const { return round_up(rows, layout.lanes); }
  int64_t element_bytes() const { return number == Number::fp32 ? 4 : 2; }

  Model() = default;
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  // A packed array by name, as the caller holds it.
  struct Array {
    const void* data;
    int64_t elements;
    bool is_float;  // float32, else uint16 (bf16)
  };
  using Find = std::function<Array(const std::string&)>;

  // Derives sizes from the letters and nodes above, which must be set.
  void derive();
  // Copies the packed arrays; throws std::invalid_argument where one has another size or type than the sizes demand.
  void load(const Find& find);

 private:
  char* block_ = nullptr;
  int64_t used_ = 0, capacity_ = 0;
  void visit(const Find& find, bool copy);
  const void* take(const Find& find, bool copy, const std::string& name, int64_t elements, bool is_float);
  Matrix take_matrix(const Find& find, bool copy, const std::string& name, int64_t rows, int64_t segments, int64_t k,
                     bool fp32);
  void derive_conditioning();
  void derive_tables();
};

}  // namespace wavenet
