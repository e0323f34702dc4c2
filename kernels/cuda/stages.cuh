// What a sample needs besides products: the streams of a tile, what they hear, their rings, and the input.
#pragma once

#include "call.cuh"
#include "products.cuh"

// --- streams ------------------------------------------------------------------------------------------------------

// One place of a tile, 32 bytes. Without a stream `index` is −1 and `count` 0.
struct Stream {
  long long position;
  u64 seed;
  int index, count, first_q, last_column;
};

DEVICE Stream stream_at(const Call& call, int place) {
  Stream s = {0, 0, call.places[place], 0, 0, 0};
  if (s.index >= 0) {
    s.position = call.positions[s.index];
    s.seed = call.seeds[s.index];
    s.count = call.counts[s.index];
    s.first_q = call.first_q[s.index];
    s.last_column = call.last_column[s.index];
  }
  return s;
}

// Row i of a (B, stride, width) output of this stream.
DEVICE size_t output_row(const Call& call, const Stream& s, int i) {
  return static_cast<size_t>(s.index) * call.stride + i;
}

// --- conditioning -------------------------------------------------------------------------------------------------

// What one stream hears of one sample: two columns, and the weight of the right one. Null for a stream that has ended.
struct Hearing {
  const float2* left;
  const float2* right;
  float weight;
};

// UPSAMPLING 0: hold, column ⌊q/HOP⌋. 1: linear, position q/HOP − frame_centre, whose fraction and whose shift by 0 or
// −1 column are tables over q mod HOP. 2: columns are at sample rate already.
DEVICE Hearing column_of_sample(const Call& call, const Stream& s, int i) {
  if (i >= s.count) return {nullptr, nullptr, 0.0f};
  const int q = max(s.first_q + i, 0);
  int left = shape::UPSAMPLING == 2 ? q : q / shape::HOP;
  float weight = 0.0f;
  if (shape::UPSAMPLING == 1) {
    const int within = q - left * shape::HOP;
    weight = call.fraction[within];
    left += call.shift[within];
  }
  const int right = min(max(left + 1, 0), s.last_column);
  left = min(max(left, 0), s.last_column);
  const float2* columns = reinterpret_cast<const float2*>(call.projected);
  const size_t first = static_cast<size_t>(s.index) * call.n_columns;
  constexpr size_t kWidth = shape::LAYERS * shape::HALF;
  return {columns + (first + left) * kWidth, columns + (first + right) * kWidth, weight};
}

// Of a gate of a layer, counted through all layers: what tanh and σ are given.
DEVICE float2 hear(const Hearing& h, int gate) {
  if (h.left == nullptr) return {0.0f, 0.0f};
  float2 a = h.left[gate];
  if (shape::UPSAMPLING == 1) {
    const float2 b = h.right[gate];
    a.x = fused(h.weight, b.x - a.x, a.x);
    a.y = fused(h.weight, b.y - a.y, a.y);
  }
  return a;
}

// What the dilated convolution of panel m of a layer is added to: conditioning and bias.
DEVICE Sums heard_panel(const Call& call, const Stream* streams, const Hearing* hearing, int i, int layer, int m) {
  const int j = m * 8 + row_in_panel(), gate = layer * shape::HALF + j;
  const float2 bias = reinterpret_cast<const float2*>(call.b_dilated)[gate];
  Sums z;
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int n = e * 8 + pair_in_eight() + c;
      const float2 heard = hear(hearing[n], gate);
      if (plan::TRACE && i < streams[n].count) {
        const size_t row = output_row(call, streams[n], i) * shape::LAYERS * shape::HALF;
        reinterpret_cast<float2*>(call.conditioning_trace)[row + gate] = heard;
      }
      z.v[e][c] = heard.x + bias.x;
      z.v[e][c + 2] = heard.y + bias.y;
    }
  }
  return z;
}

// --- rings --------------------------------------------------------------------------------------------------------

constexpr int kWordOperands = sizeof(uint4) / sizeof(Operand);
constexpr int kRingRow = shape::R + (kInt ? kWordOperands : 0);  // int8: with its unit
constexpr int kRowWords = kRingRow / kWordOperands;

// A layer's ring: one row of `Call::layers`, in shared memory.
struct Ring {
  int dilation, first, slots;
};

DEVICE void load_rings(const Call& call, Ring* to, int first_layer, int layers, int thread, int threads) {
  for (int o = thread; o < layers; o += threads) {
    const int* const from = call.layers + (first_layer + o) * 3;
    to[o] = {from[0], from[1], from[2]};
  }
}

// A layer's input `back` samples ago, of one stream.
DEVICE Operand* ring_row(const Call& call, const Stream& s, const Ring& ring, int i, int back) {
  const int slot = static_cast<int>(s.position + i - back) & (ring.slots - 1);
  return call.rings + (static_cast<size_t>(s.index) * shape::SLOTS + ring.first + slot) * kRingRow;
}

// Copies what a layer's K − 1 older taps meet to shared memory, oldest tap first, by the threads `thread` of `threads`.
DEVICE void fetch_past(const Call& call, const Stream* streams, int i, const Ring& ring, u8* past, int thread,
                       int threads) {
  constexpr int kWords = plan::N * kRowWords;
#pragma unroll 1
  for (int word = thread; word < (shape::K - 1) * kWords; word += threads) {
    const int tap = word / kWords, n = word % kWords / kRowWords, w = word % kRowWords;
    const bool active = i < streams[n].count;
    const Operand* from = call.rings;
    if (active) from = ring_row(call, streams[n], ring, i, (shape::K - 1 - tap) * ring.dilation) + w * kWordOperands;
    Rows<shape::R> rows(past + tap * Rows<shape::R>::kBytes);
    copy_async(rows.row(n) + w * kWordOperands, from, active);
  }
}

// Writes a layer's newest input to the rings.
DEVICE void remember(const Call& call, const Stream* streams, int i, const Ring& ring, const Rows<shape::R>& x,
                     int thread, int threads) {
  for (int word = thread; word < plan::N * kRowWords; word += threads) {
    const int n = word / kRowWords, w = word % kRowWords;
    if (i >= streams[n].count) continue;
    uint4* to = reinterpret_cast<uint4*>(ring_row(call, streams[n], ring, i, 0));
    to[w] = reinterpret_cast<const uint4*>(x.row(n))[w];
  }
}

// --- gate ---------------------------------------------------------------------------------------------------------

// tanh · σ of a panel's sums: eight gates of each stream, or of the first of a lane's two.
template <class To>
DEVICE void store_gates(const Call& call, const Stream* streams, int i, int layer, int m, const Sums& z, const To& g) {
  const int j = m * 8 + row_in_panel();
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int c = 0; c < To::kStreams; ++c) {
      const int n = e * 8 + pair_in_eight() + c;
      const float gated = gate(z.v[e][c], z.v[e][c + 2]);
      if (plan::TRACE && i < streams[n].count) {
        call.gate_trace[(output_row(call, streams[n], i) * shape::LAYERS + layer) * shape::HALF + j] = gated;
      }
      g.put(n, j, gated);
    }
  }
}

// --- residual and skip --------------------------------------------------------------------------------------------

// What a unit of the rows of panel m is worth in each matrix: int8 only.
DEVICE const float* dilated_units(const Call& call, int layer, int m, int tap) {
  return call.dilated_units + ((layer * (shape::HALF / 8) + m) * shape::K + tap) * 16;
}
DEVICE const float* residual_units(const Call& call, int layer, int m) {
  return call.residual_units + layer * shape::R + m * 16;
}
DEVICE const float* skip_units(const Call& call, int layer, int m) {
  return call.skip_units + layer * shape::S + m * 16;
}

// A vector's biases, for a lane's two rows of panel m.
struct Biases {
  float low, high;

  DEVICE Biases(const float* bias, int m)
      : low(bias[m * 16 + row_in_panel()]), high(bias[m * 16 + row_in_panel() + 8]) {}
  DEVICE Sums sums() const {
    Sums sums;
    sums.fill(low, high);
    return sums;
  }
};

// x + bias, onto which the product with the gates is summed.
DEVICE void add_bias(Sums& x, const Biases& bias) {
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int n = 0; n < 4; ++n) x.v[e][n] += n < 2 ? bias.low : bias.high;
  }
}

// And behind the product: (x + bias + product) · residual_scale.
DEVICE void scale_x(const Call& call, Sums& x) {
  if (!shape::SCALED) return;
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int n = 0; n < 4; ++n) x.v[e][n] *= call.residual_scale;
  }
}

DEVICE void trace_x(const Call& call, const Stream* streams, int i, int layer, int m, Sums& x) {
  for_each(x, [&](int row, int n, float& value) {
    if (i < streams[n].count) {
      call.x_trace[(output_row(call, streams[n], i) * shape::LAYERS + layer) * shape::R + m * 16 + row] = value;
    }
  });
}

// What skips begin with.
DEVICE Sums first_skip(const Call& call, int m) {
  if (!shape::RUNNING) return Biases(call.b_skip, m).sums();
  Sums zero;
  zero.fill(0.0f, 0.0f);
  return zero;
}

// Behind a layer's product, where skips are scaled layer by layer.
DEVICE void end_skip(const Call& call, Sums& skip, int layer, int m) {
  if (!shape::RUNNING) return;
  const Sums bias = Biases(call.b_skip + layer * shape::S, m).sums();
  const float scale = layer > 0 ? call.skip_scale : 1.0f;
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int n = 0; n < 4; ++n) skip.v[e][n] = (skip.v[e][n] + bias.v[e][n]) * scale;
  }
}

// The sum of all skips becomes what the head is given.
DEVICE void store_skip(const Call& call, const Stream* streams, int i, int m, Sums& skip, const Target<shape::S>& to) {
  for_each(skip, [&](int row, int n, float& value) {
    const float scaled = shape::RUNNING ? value : value * call.skip_scale;
    const int s = m * 16 + row;
    if (plan::TRACE && i < streams[n].count) {
      call.skip_trace[output_row(call, streams[n], i) * shape::S + s] = scaled;
    }
    to.put(n, s, relu(scaled));
  });
}

// --- embed --------------------------------------------------------------------------------------------------------

// Where input t lies in a stream's ring of them.
DEVICE int input_slot(long long t) { return static_cast<int>(t) & (shape::IN_DEPTH - 1); }

// One tap on top of a channel of x; `table`: INPUT_ROWS × R. Class −1 is no input: there was none yet.
DEVICE float embed_tap(float x, const float* table, float value, int r) {
  if (!shape::ONE_HOT) return x + value * table[r];
  const int row = static_cast<int>(value);
  return row >= 0 ? x + table[static_cast<size_t>(row) * shape::R + r] : x;
}

// One channel of x at time t, of all inputs of a stream but the newest, which lie in a ring of IN_DEPTH: known before
// the newest is drawn.
DEVICE float embed_older(const Call& call, const float* inputs, long long t, int r) {
  float x = call.b_input[r];
#pragma unroll
  for (int k = 0; k + 1 < shape::IN_TAPS; ++k) {
    x = embed_tap(x, call.w_input + k * shape::INPUT_ROWS * shape::R, inputs[input_slot(t - (shape::IN_TAPS - k))], r);
  }
  return x;
}

// And with the newest, whose table may lie nearer.
DEVICE float embed_newest(float older, const float* table, float newest, int r) {
  const float x = embed_tap(older, table, newest, r);
  return shape::TANH ? tangent(x) : x;
}

DEVICE const float* newest_table(const Call& call) {
  return call.w_input + (shape::IN_TAPS - 1) * shape::INPUT_ROWS * shape::R;
}
