// The head, the draw and the next input, by all warps of a block.
#pragma once

#include "draw.cuh"

constexpr int kWarps = plan::CHAIN + plan::RESIDUAL + plan::SKIP;
constexpr int kThreads = kWarps * kWarp;
constexpr int kChainThreads = plan::CHAIN * kWarp, kSkipThreads = plan::SKIP * kWarp;

// Barriers of a block, beside that of all its threads. Gates g and inputs x of layers have PLACES places, by turns:
//
//   chain     g(l) → [GatesReady l] → …               in `resident` the residual product and x(l + 1) are the work of
//             meet → residual → wait [SkipDone        warps of their own
//             l + 1 − PLACES] → x(l + 1) → meet → …
//   skip      wait [GatesReady l] → skip product of g(l), ring of x(l) → [SkipDone l]
//
// Chain warps only arrive at kGatesReady, and skip warps only at kSkipDone. x(l + 1) and g(l + 1) lie where those of
// PLACES layers before lay: so skip warps may be late by so many layers less one, and each of these has its barriers.
constexpr int kChainMeets = 1, kSkipMeets = 2, kResidualMeets = 2, kXReady = 3, kGatesToAdd = 4;
constexpr int kGatesReady = 5, kSkipDone = kGatesReady + plan::PLACES;
static_assert(kSkipDone + plan::PLACES <= 16, "a block has 16 barriers");

// --- sums in memory -----------------------------------------------------------------------------------------------

// Sums of panel m among those of a vector, as four words per lane, in which only this lane, of this warp or of the same
// warp of another block, reads and writes.
DEVICE float4& lane_sums(float4* begin, int m, int e) { return begin[(m * kEights + e) * kWarp + lane_index()]; }

DEVICE Sums load_sums(float4* begin, int m) {
  Sums sums;
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
    const float4 v = lane_sums(begin, m, e);
    sums.v[e][0] = v.x, sums.v[e][1] = v.y, sums.v[e][2] = v.z, sums.v[e][3] = v.w;
  }
  return sums;
}

DEVICE void store_sums(float4* begin, int m, const Sums& sums) {
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
    lane_sums(begin, m, e) = {sums.v[e][0], sums.v[e][1], sums.v[e][2], sums.v[e][3]};
  }
}

// --- head ---------------------------------------------------------------------------------------------------------

// Panels of the warp that has most of them.
constexpr int kOwnHidden = ceil_div(shape::H / 16, kWarps), kOwnOut = ceil_div(shape::A / 16, kWarps);

// Calls work(k, m) for the k-th panel m that is warp `warp`'s; side by side where `UNROLL`.
template <int OWN, bool UNROLL, class Work>
DEVICE void for_head_panels(int panels, int warp, Work work) {
#pragma unroll(UNROLL ? OWN : 1)
  for (int k = 0; k < OWN; ++k) {
    if (const int m = warp + k * kWarps; m < panels) work(k, m);
  }
}

// `weights(k, m)` gives where the fragments of a warp's k-th panel, m, come from.
template <bool UNROLL, class Weights>
DEVICE void hidden_layer(const Call& call, const float* biases, const Stream* streams, int i,
                         const Rows<shape::S>& skip, const Target<shape::H>& hidden, int warp, Weights weights) {
  for_head_panels<kOwnHidden, UNROLL>(shape::H / 16, warp, [&](int k, int m) {
    Sums sums = Biases(biases, m).sums();
    auto&& source = weights(k, m);
    add_product_by_turns(sums, source, skip, call.hidden_units + m * 16);
    for_each(sums, [&](int row, int n, float& value) {
      const int h = m * 16 + row;
      if (plan::TRACE && i < streams[n].count) {
        call.hidden_trace[output_row(call, streams[n], i) * shape::H + h] = value;
      }
      hidden.put(n, h, relu(value));
    });
  });
}

// Outputs of the head, a row of A for each stream: in shared memory, rows 4 longer than their content so that eight
// streams' numbers lie in different banks, or, where they are too many, in global memory.
struct Logits {
  static constexpr int kStride = shape::A + 4;
  float* begin;
  DEVICE float* row(int n) const { return begin + n * kStride; }
};

template <bool UNROLL, class Weights>
DEVICE void output_layer(const Call& call, const float* biases, const Rows<shape::H>& hidden, const Logits& logits,
                         int warp, Weights weights) {
  for_head_panels<kOwnOut, UNROLL>(shape::A / 16, warp, [&](int k, int m) {
    Sums sums = Biases(biases, m).sums();
    auto&& source = weights(k, m);
    add_product_by_turns(sums, source, hidden, call.out_units + m * 16);
    for_each(sums, [&](int row, int n, float& value) { logits.row(n)[m * 16 + row] = value; });
  });
}

// --- the next input -----------------------------------------------------------------------------------------------

// Where x of the first layer is written within a block: as operands and as sums.
struct Entrance {
  static constexpr bool kQuantises = kInt;
  Rows<shape::R> operands;
  float4* sums;

  DEVICE void put(int n, int r, float x, const OperandOf<kInt>& quantiser) const {
    operands.at(n, r) = quantiser.operand(x);
    const int m = r / 16, lane = r % 8 * 4 + n % 8 / 2, i = r % 16 / 8 * 2 + n % 2;
    reinterpret_cast<float*>(sums + (m * kEights + n / 8) * kWarp + lane)[i] = x;
  }
  DEVICE void end(int n, float largest) const {
    if (kInt && lane_index() == 0) operands.unit(n) = largest / 127.0f;
  }
};

// Streams of which one warp draws, and channels that a lane embeds.
constexpr int kDraws = ceil_div(plan::N, kWarps), kOwnChannels = ceil_div(shape::R, kWarp);
constexpr int kMostOlder = 8;
constexpr bool kOlderHeld = kDraws * kOwnChannels <= kMostOlder;

// Calls work(k, r) for a lane's k-th channel r.
template <class Work>
DEVICE void for_channels(Work work) {
#pragma unroll(kOlderHeld ? kOwnChannels : 1)
  for (int k = 0; k < kOwnChannels; ++k) {
    if (const int r = lane_index() + k * kWarp; r < shape::R) work(k, r);
  }
}

// What a stream hears of all its inputs but the newest: made before that is drawn, if the registers of a lane hold its
// channels, or else where it is needed.
struct Older {
  float held[kOlderHeld ? kOwnChannels : 1];

  DEVICE void begin(const Call& call, const float* inputs, long long t) {
    if (kOlderHeld) for_channels([&](int k, int r) { held[k] = embed_older(call, inputs, t, r); });
  }
  DEVICE float get(const Call& call, const float* inputs, long long t, int k, int r) const {
    return kOlderHeld ? held[k] : embed_older(call, inputs, t, r);
  }
};

// x of sample i of the stream in place n, from older inputs and the newest, whose table may lie nearer; by one warp.
template <class To>
DEVICE void embed_stream(const Call& call, const Stream& s, const Older& older, const float* inputs, const float* table,
                         float newest, int i, int n, const To& to) {
  const auto x = [&](int k, int r) {
    return embed_newest(older.get(call, inputs, s.position + i, k, r), table, newest, r);
  };
  float largest = 0.0f;
  if (To::kQuantises) {  // and once more below: not every R fits the registers of a warp
    for_channels([&](int k, int r) { largest = larger(largest, fabsf(x(k, r))); });
    largest = warp_max(largest);
  }
  const OperandOf<To::kQuantises> quantiser(largest);
  for_channels([&](int k, int r) {
    const float value = x(k, r);
    if (plan::TRACE && i < s.count) call.embed_trace[output_row(call, s, i) * shape::R + r] = value;
    to.put(n, r, value, quantiser);
  });
  to.end(n, largest);
}

// What the streams of a tile remember of their own sound, in shared memory.
struct Memories {
  float* inputs;   // (N, IN_DEPTH)
  float* filters;  // (N)
  DEVICE Memory of(int n) const { return {inputs + n * shape::IN_DEPTH, filters + n}; }
};

DEVICE void load_memories(const Call& call, const Stream* streams, const Memories& to, int thread, int threads) {
  for (int n = thread; n < plan::N; n += threads) {
    const int b = streams[n].index;
    to.filters[n] = b < 0 ? 0.0f : call.filters[b];
    for (int k = 0; k < shape::IN_DEPTH; ++k) {
      to.inputs[n * shape::IN_DEPTH + k] = b < 0 ? 0.0f : call.inputs[static_cast<size_t>(b) * shape::IN_DEPTH + k];
    }
  }
}

DEVICE void save_memories(const Call& call, const Stream* streams, const Memories& from, int thread, int threads) {
  for (int n = thread; n < plan::N; n += threads) {
    const int b = streams[n].index;
    if (b < 0) continue;
    call.filters[b] = from.filters[n];
    for (int k = 0; k < shape::IN_DEPTH; ++k) {
      call.inputs[static_cast<size_t>(b) * shape::IN_DEPTH + k] = from.inputs[n * shape::IN_DEPTH + k];
    }
  }
}

// Calls work(k, n) for the k-th stream, in place n, of which warp `warp` draws.
template <class Work>
DEVICE void for_draws(int warp, Work work) {
#pragma unroll
  for (int k = 0; k < kDraws; ++k) {
    if (const int n = warp + k * kWarps; n < plan::N) work(k, n);
  }
}

// What a draw needs and logits do not change, made before those arrive: the random numbers of a warp's streams, and
// what sample i + 1 hears of older inputs.
struct Dice {
  Words words[kDraws];
  Older older[kDraws];

  DEVICE Dice(const Call& call, const Stream* streams, const Memories& memories, int i, int warp) {
    for_draws(warp, [&](int k, int n) {
      const Stream& s = streams[n];
      words[k] = philox(s.seed, static_cast<u64>(s.position + i));
      older[k].begin(call, memories.of(n).inputs, s.position + i + 1);
    });
  }
};

// The first x of a launch, of the stream in place n; by one warp.
template <class To>
DEVICE void embed_first(const Call& call, const Stream& s, const Memory& memory, int n, const To& to) {
  Older older;
  older.begin(call, memory.inputs, s.position);
  const float newest = memory.inputs[input_slot(s.position - 1)];
  embed_stream(call, s, older, memory.inputs, newest_table(call), newest, 0, n, to);
}

// Draws, embeds for sample i + 1, then sounds: nobody waits for sound.
template <class To>
DEVICE void draw_and_embed(const Call& call, const Stream* streams, int i, const Dice& dice, const Logits& logits,
                           const Memories& memories, const float* table, const To& to, bool more, int warp) {
  for_draws(warp, [&](int k, int n) {
    const Stream& s = streams[n];
    const Memory memory = memories.of(n);
    const float* outputs = logits.row(n);
    const bool speaks = i < s.count;
    float& newest = memory.inputs[input_slot(s.position + i)];
    const float drawn = speaks ? draw(call, outputs, dice.words[k]) : 0.0f;
    const float heard = speaks ? heard_of(call, s, i, drawn) : newest;
    if (more) embed_stream(call, s, dice.older[k], memory.inputs, table, heard, i + 1, n, to);
    if (!speaks) return;
    if (lane_index() == 0) {
      newest = heard;  // in the place of one that no lane has just heard: older ones lie in others
      speak(call, s, memory, i, drawn, heard);
    }
    if (plan::LOGITS) {
      float* row = call.logits + output_row(call, s, i) * call.logits_width;
      for (int c = lane_index(); c < call.logits_width; c += kWarp) row[c] = outputs[c];
    }
  });
}
