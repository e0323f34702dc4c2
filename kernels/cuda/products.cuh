// Products of a panel of weights, 16 rows, with the operands of a tile of N streams.
//
// Same order everywhere. A sum begins with what is given, and takes its inputs step by step in their order; `by turns`
// step s goes onto sum s mod 4, of which all but the first begin at zero, and the four are added at the end: four short
// chains instead of one long. Where the weights come from, which warp works, and how many streams there are changes no
// bit.
#pragma once

#include "numbers.cuh"

// --- sums ---------------------------------------------------------------------------------------------------------

// 16 rows × N streams, spread over a warp as a tensor core leaves them. Of lane 4g + t, v[e] holds, for streams 8e …
// 8e + 7: (row g, stream 2t), (row g, 2t + 1), (row g + 8, 2t), (row g + 8, 2t + 1).
template <class T>
struct Totals {
  T v[kEights][4];

  DEVICE void fill(T low, T high) {
#pragma unroll
    for (int e = 0; e < kEights; ++e) {
      v[e][0] = v[e][1] = low;
      v[e][2] = v[e][3] = high;
    }
  }
};

using Sums = Totals<float>;

DEVICE int row_in_panel() { return lane_index() / 4; }       // g
DEVICE int pair_in_eight() { return lane_index() % 4 * 2; }  // 2t

// Calls visit(row of the panel, stream of the tile, the lane's number) for each number of the lane.
template <class SomeSums, class Visit>
DEVICE void for_each(SomeSums& sums, Visit visit) {
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      visit(row_in_panel() + i / 2 * 8, e * 8 + pair_in_eight() + i % 2, sums.v[e][i]);
    }
  }
}

// Largest of all lanes' numbers, none of them NaN: as whole numbers that are ordered like them.
DEVICE float warp_max(float x) {
  const auto ordered = [](int bits) { return bits ^ (bits >> 31 & 0x7fffffff); };
  return float_of(ordered(largest_of_lanes(ordered(bits_of(x)))));
}

// --- operands -----------------------------------------------------------------------------------------------------

// A vector's numbers in int8, by its largest: 255 levels, as `reference.quantise_int8` has them.
struct Quantiser {
  float factor, unit;
  DEVICE explicit Quantiser(float largest)
      : factor(largest > 1e-30f ? 127.0f / largest : 0.0f), unit(largest / 127.0f) {}
  DEVICE s8 operand(float x) const { return static_cast<s8>(to_int(x * factor)); }
};

// One number of a vector with this largest value, as an operand.
template <bool INT>
struct OperandOf : Quantiser {
  using Quantiser::Quantiser;
};

template <>
struct OperandOf<false> {
  DEVICE explicit OperandOf(float) {}
  template <class Format = Numbers>
  DEVICE Operand operand(float x) const {
    return Format::operand(x);
  }
};

// Operands of N streams in shared memory, CHANNELS of each in a row; rows are 16 bytes longer than their content, so
// that the same words of eight rows lie in different banks. In int8 what one unit is worth stands there.
template <int CHANNELS>
struct Rows {
  static constexpr int kRowBytes = CHANNELS * sizeof(Operand) + 16;
  static constexpr int kBytes = plan::N * kRowBytes;

  u8* begin;

  DEVICE explicit Rows(void* p) : begin(static_cast<u8*>(p)) {}
  DEVICE Operand* row(int n) const { return reinterpret_cast<Operand*>(begin + n * kRowBytes); }
  DEVICE Operand& at(int n, int channel) const { return row(n)[channel]; }
  DEVICE float& unit(int n) const { return *reinterpret_cast<float*>(row(n) + CHANNELS); }
};

// How a vector that many warps compute becomes operands. In int8 it takes two steps, because its largest value must be
// known: all `put` their numbers, in fp32, then meet, and each warp makes operands of whole vectors (`finish`).
template <int CHANNELS>
struct Target {
  static constexpr int kStride = CHANNELS + 4;

  Rows<CHANNELS> rows;
  float* numbers;  // (N, CHANNELS + 4), int8 only

  template <class Format = Numbers>  // a template, so that only the branch taken is compiled
  DEVICE void put(int n, int channel, float value) const {
    if constexpr (kInt) {
      numbers[n * kStride + channel] = value;
    } else {
      rows.at(n, channel) = Format::operand(value);
    }
  }

  // By warp `warp` of `warps`.
  DEVICE void finish(int warp, int warps) const {
    if constexpr (kInt) {
      for (int n = warp; n < plan::N; n += warps) {
        const float* const row = numbers + n * kStride;
        float largest = 0.0f;
        for (int c = lane_index(); c < CHANNELS; c += kWarp) largest = larger(largest, fabsf(row[c]));
        const Quantiser q(warp_max(largest));
        for (int c = lane_index(); c < CHANNELS; c += kWarp) rows.at(n, c) = q.operand(row[c]);
        if (lane_index() == 0) rows.unit(n) = q.unit;
      }
    }
  }
};

// --- where weights come from --------------------------------------------------------------------------------------
//
// Each has next(), the next fragment, and kHeld: whether they are in registers.

// What a product receives for one step: in 16 bit a lane's own words, in fp32 the whole fragment, of which lanes read
// each other's part.
template <bool TENSOR_CORES>
struct FragmentOf {
  using type = uint4;
  static DEVICE uint4 read(const uint4* fragment) { return fragment[lane_index()]; }
};

template <>
struct FragmentOf<false> {
  using type = const float4*;
  static DEVICE const float4* read(const uint4* fragment) { return reinterpret_cast<const float4*>(fragment); }
};

using Fragments = FragmentOf<kTensorCores>;
using Fragment = Fragments::type;
constexpr int kFragmentWords = kFragmentBytes / sizeof(uint4);

// Fragments that lie one behind the other, in shared or global memory.
struct FromMemory {
  static constexpr bool kHeld = false;
  const uint4* next_fragment;

  DEVICE Fragment next() {
    const Fragment fragment = Fragments::read(next_fragment);
    next_fragment += kFragmentWords;
    return fragment;
  }
};

// Fragments that a warp holds in its registers.
template <int COUNT>
struct FromRegisters {
  static constexpr bool kHeld = true;
  const uint4 (&fragments)[COUNT];
  int at = 0;

  DEVICE uint4 next() { return fragments[at++]; }
};

// The first of a panel in registers, the rest in memory.
template <int COUNT>
struct FromBoth {
  static constexpr bool kHeld = true;
  const uint4 (&fragments)[COUNT];
  const uint4* rest;
  int at = 0;

  DEVICE uint4 next() {
    if (at < COUNT) return fragments[at++];
    const uint4 fragment = rest[lane_index()];
    rest += kFragmentWords;
    return fragment;
  }
};

// A warp's tape in global memory, read round and round: DEPTH − 1 fragments are on their way while one is used. A
// lane's copies are its own words, so that only fp32, where lanes read each other's, needs the warp to meet.
template <int DEPTH>
struct FromTape {
  static constexpr bool kHeld = false;
  static_assert((DEPTH & (DEPTH - 1)) == 0 && DEPTH >= 2, "slots are counted with a mask");

  const uint4* tape;
  uint4* ring;
  int length, ahead = 0, slot = 0;

  DEVICE FromTape(const uint4* tape, int length, uint4* ring) : tape(tape), ring(ring), length(length) {
    for (int i = 0; i < DEPTH - 1; ++i) fetch(i);
  }

  DEVICE void fetch(int to) {
    const int lane = lane_index();
    copy_async(ring + to * kFragmentWords + lane, tape + ahead * kFragmentWords + lane);
    commit_copies();
    ahead = ahead + 1 == length ? 0 : ahead + 1;
  }

  DEVICE Fragment next() {
    wait_copies<DEPTH - 2>();
    if (!kTensorCores) warp_barrier();  // all lanes' copies have landed, and all lanes have read the fragment before
    fetch((slot + DEPTH - 1) & (DEPTH - 1));
    const Fragment fragment = Fragments::read(ring + slot * kFragmentWords);
    slot = (slot + 1) & (DEPTH - 1);
    return fragment;
  }
};

// --- products -----------------------------------------------------------------------------------------------------

namespace detail {

template <int CHANNELS>
DEVICE u32 matrix_address(const Rows<CHANNELS>& x, int eight, int step) {
  const int lane = lane_index();
  return shared_address(x.begin) + (eight * 8 + lane % 8) * Rows<CHANNELS>::kRowBytes + step * kStepBytes +
         lane / 8 * 16;
}

// fp32: each lane adds to its four sums by itself, input by input.
template <int CHANNELS>
DEVICE void multiply_fp32(Sums& sums, const float4* a, const Rows<CHANNELS>& x, int step) {
#pragma unroll
  for (int quad = 0; quad < 2; ++quad) {
    const float4 low = a[quad * 16 + row_in_panel()], high = a[quad * 16 + row_in_panel() + 8];
#pragma unroll
    for (int e = 0; e < kEights; ++e) {
      const int n = e * 8 + pair_in_eight(), input = step * kStepInputs + quad * 4;
      const float4 left = *reinterpret_cast<const float4*>(x.row(n) + input);
      const float4 right = *reinterpret_cast<const float4*>(x.row(n + 1) + input);
      float (&d)[4] = sums.v[e];
      d[0] = fused(low.w, left.w, fused(low.z, left.z, fused(low.y, left.y, fused(low.x, left.x, d[0]))));
      d[1] = fused(low.w, right.w, fused(low.z, right.z, fused(low.y, right.y, fused(low.x, right.x, d[1]))));
      d[2] = fused(high.w, left.w, fused(high.z, left.z, fused(high.y, left.y, fused(high.x, left.x, d[2]))));
      d[3] = fused(high.w, right.w, fused(high.z, right.z, fused(high.y, right.y, fused(high.x, right.x, d[3]))));
    }
  }
}

// Two steps, the second of which may be missing: onto `first_sums` and onto `second_sums`, which may be the same.
template <bool BOTH, class Format, class Total, class Weights, int CHANNELS>
DEVICE void multiply_pair(Total& first_sums, Total& second_sums, Weights& weights, const Rows<CHANNELS>& x, int step) {
  if constexpr (!kTensorCores) {
    multiply_fp32(first_sums, weights.next(), x, step);
    if (BOTH) multiply_fp32(second_sums, weights.next(), x, step + 1);
  } else {
    u32 b[kEights][BOTH ? 4 : 2];
#pragma unroll
    for (int e = 0; e < kEights; ++e) load_matrices(b[e], matrix_address(x, e, step));
    const uint4 first = weights.next();
#pragma unroll
    for (int e = 0; e < kEights; ++e) Format::multiply(first_sums.v[e], first, b[e][0], b[e][1]);
    if constexpr (BOTH) {
      const uint4 second = weights.next();
#pragma unroll
      for (int e = 0; e < kEights; ++e) Format::multiply(second_sums.v[e], second, b[e][2], b[e][3]);
    }
  }
}

// How many sums a product is dealt out to, by the number of its steps.
DEVICE constexpr int turns(int steps) { return steps >= 4 ? 4 : steps >= 2 ? 2 : 1; }

// How many rounds of `group` steps are loaded ahead, of plan::AHEAD pairs of steps. Weights in registers have no index,
// so all of their steps are unrolled.
template <class Weights>
DEVICE constexpr int unrolled(int steps, int group) {
  if (Weights::kHeld) return ceil_div(steps, group);
  const int pairs = plan::AHEAD > 1 && steps > 16 ? plan::AHEAD / 2 : plan::AHEAD;
  return ceil_div(2 * pairs, group);
}

// Step s onto sums[s mod TURNS].
template <int TURNS, class Total, class Weights, int CHANNELS>
DEVICE void multiply(Total (&sums)[TURNS], Weights& weights, const Rows<CHANNELS>& x) {
  constexpr int kSteps = steps_of(CHANNELS), kGroup = TURNS == 1 ? 2 : TURNS, kRest = kSteps % kGroup;
  constexpr int kUnroll = unrolled<Weights>(kSteps, kGroup);
#pragma unroll kUnroll
  for (int step = 0; step + kGroup <= kSteps; step += kGroup) {
#pragma unroll
    for (int i = 0; i < kGroup; i += 2) {
      multiply_pair<true, Numbers>(sums[i % TURNS], sums[(i + 1) % TURNS], weights, x, step + i);
    }
  }
#pragma unroll
  for (int i = 0; i + 1 < kRest; i += 2) {
    multiply_pair<true, Numbers>(sums[i % TURNS], sums[(i + 1) % TURNS], weights, x, kSteps - kRest + i);
  }
  if constexpr (kRest % 2) {
    multiply_pair<false, Numbers>(sums[(kRest - 1) % TURNS], sums[0], weights, x, kSteps - 1);
  }
}

// All sums in the first: (0 + 1) + (2 + 3).
template <int TURNS, class Total>
DEVICE void gather(Total (&sums)[TURNS]) {
#pragma unroll
  for (int distance = 1; distance < TURNS; distance *= 2) {
#pragma unroll
    for (int t = 0; t + distance < TURNS; t += 2 * distance) {
#pragma unroll
      for (int e = 0; e < kEights; ++e) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[t].v[e][i] += sums[t + distance].v[e][i];
      }
    }
  }
}

// int8: whole numbers first, in which no order matters, then their worth.
template <int TURNS, class Weights, int CHANNELS>
DEVICE void add_int8(Sums& sums, Weights& weights, const Rows<CHANNELS>& x, const float* units) {
  const float low = units[row_in_panel()], high = units[row_in_panel() + 8];
  Totals<int> wholes[TURNS];
#pragma unroll
  for (int t = 0; t < TURNS; ++t) wholes[t].fill(0, 0);
  multiply(wholes, weights, x);
  gather(wholes);
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float unit = (i < 2 ? low : high) * x.unit(e * 8 + pair_in_eight() + i % 2);
      sums.v[e][i] = fused(static_cast<float>(wholes[0].v[e][i]), unit, sums.v[e][i]);
    }
  }
}

template <int TURNS, class Weights, int CHANNELS>
DEVICE void add_product_in(Sums& sums, Weights& weights, const Rows<CHANNELS>& x, const float* units) {
  if constexpr (kInt) {
    add_int8<TURNS>(sums, weights, x, units);
  } else {
    Sums parts[TURNS];
    parts[0] = sums;
#pragma unroll
    for (int t = 1; t < TURNS; ++t) parts[t].fill(0.0f, 0.0f);
    multiply(parts, weights, x);
    gather(parts);
    sums = parts[0];
  }
}

}  // namespace detail

// sums += weights · x, one step after the other. `units`: what one unit is worth in each of the panel's rows, int8
// only.
template <class Weights, int CHANNELS>
DEVICE void add_product(Sums& sums, Weights& weights, const Rows<CHANNELS>& x, const float* units) {
  detail::add_product_in<1>(sums, weights, x, units);
}

// The same by turns.
template <class Weights, int CHANNELS>
DEVICE void add_product_by_turns(Sums& sums, Weights& weights, const Rows<CHANNELS>& x, const float* units) {
  detail::add_product_in<detail::turns(steps_of(CHANNELS))>(sums, weights, x, units);
}
