// Products of a panel of weights, 16 rows, with the operands of a tile of N streams.
//
// Same order everywhere. A sum begins with what is given, and takes its inputs step by step in their order; `by turns`
// even steps go onto the sum and odd ones onto zero, and the two are added at the end: two short chains instead of one
// long. Where the weights come from, which warp works, and how many streams there are changes no bit.
#pragma once

#include "numbers.cuh"

// --- sums ---------------------------------------------------------------------------------------------------------

// 16 rows × N streams, spread over a warp as a tensor core leaves them. Of lane 4g + t, v[e] holds, for streams 8e …
// 8e + 7: (row g, stream 2t), (row g, 2t + 1), (row g + 8, 2t), (row g + 8, 2t + 1).
struct Sums {
  float v[kEights][4];

  DEVICE void fill(float low, float high) {
#pragma unroll
    for (int e = 0; e < kEights; ++e) {
      v[e][0] = v[e][1] = low;
      v[e][2] = v[e][3] = high;
    }
  }
};

DEVICE int row_in_panel() { return lane_index() / 4; }        // g
DEVICE int pair_in_eight() { return lane_index() % 4 * 2; }   // 2t

// Calls visit(row of the panel, stream of the tile, the lane's number) for each number of the lane.
template <class Visit>
DEVICE void for_each(Sums& sums, Visit visit) {
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      visit(row_in_panel() + i / 2 * 8, e * 8 + pair_in_eight() + i % 2, sums.v[e][i]);
    }
  }
}

// --- operands -----------------------------------------------------------------------------------------------------

// Operands of N streams in shared memory, CHANNELS of each in a row; rows are 16 bytes longer than their content, so
// that the same words of eight rows lie in different banks.
template <int CHANNELS>
struct Rows {
  static constexpr int kRowBytes = CHANNELS * sizeof(Operand) + 16;
  static constexpr int kBytes = plan::N * kRowBytes;

  u8* begin;

  DEVICE explicit Rows(void* p) : begin(static_cast<u8*>(p)) {}
  DEVICE Operand* row(int n) const { return reinterpret_cast<Operand*>(begin + n * kRowBytes); }
  DEVICE Operand& at(int n, int channel) const { return row(n)[channel]; }
};

// --- where weights come from --------------------------------------------------------------------------------------

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
  const uint4 (&fragments)[COUNT];
  int at = 0;

  DEVICE uint4 next() { return fragments[at++]; }
};

// A warp's tape in global memory, read round and round: DEPTH − 1 fragments are on their way while one is used. A
// lane's copies are its own words, so that only fp32, where lanes read each other's, needs the warp to meet.
template <int DEPTH>
struct FromTape {
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
      float(&d)[4] = sums.v[e];
      d[0] = fused(low.w, left.w, fused(low.z, left.z, fused(low.y, left.y, fused(low.x, left.x, d[0]))));
      d[1] = fused(low.w, right.w, fused(low.z, right.z, fused(low.y, right.y, fused(low.x, right.x, d[1]))));
      d[2] = fused(high.w, left.w, fused(high.z, left.z, fused(high.y, left.y, fused(high.x, left.x, d[2]))));
      d[3] = fused(high.w, right.w, fused(high.z, right.z, fused(high.y, right.y, fused(high.x, right.x, d[3]))));
    }
  }
}

// Two steps, the second of which may be missing: onto `even` and onto `odd`, which may be the same sums.
template <bool BOTH, class Format, class Weights, int CHANNELS>
DEVICE void multiply_pair(Sums& even, Sums& odd, Weights& weights, const Rows<CHANNELS>& x, int step) {
  if constexpr (!kTensorCores) {
    multiply_fp32(even, weights.next(), x, step);
    if (BOTH) multiply_fp32(odd, weights.next(), x, step + 1);
  } else {
    u32 b[kEights][BOTH ? 4 : 2];
#pragma unroll
    for (int e = 0; e < kEights; ++e) load_matrices(b[e], matrix_address(x, e, step));
    const uint4 first = weights.next();
#pragma unroll
    for (int e = 0; e < kEights; ++e) Format::multiply(even.v[e], first, b[e][0], b[e][1]);
    if constexpr (BOTH) {
      const uint4 second = weights.next();
#pragma unroll
      for (int e = 0; e < kEights; ++e) Format::multiply(odd.v[e], second, b[e][2], b[e][3]);
    }
  }
}

template <class Weights, int CHANNELS>
DEVICE void multiply(Sums& even, Sums& odd, Weights& weights, const Rows<CHANNELS>& x) {
  constexpr int kSteps = steps_of(CHANNELS);
  constexpr int kUnroll = kSteps > 16 ? 4 : 8;
#pragma unroll kUnroll
  for (int step = 0; step + 1 < kSteps; step += 2) multiply_pair<true, Numbers>(even, odd, weights, x, step);
  if constexpr (kSteps % 2) multiply_pair<false, Numbers>(even, odd, weights, x, kSteps - 1);
}

}  // namespace detail

// sums += weights · x, one step after the other.
template <class Weights, int CHANNELS>
DEVICE void add_product(Sums& sums, Weights& weights, const Rows<CHANNELS>& x) {
  detail::multiply(sums, sums, weights, x);
}

// The same by turns.
template <class Weights, int CHANNELS>
DEVICE void add_product_by_turns(Sums& sums, Weights& weights, const Rows<CHANNELS>& x) {
  Sums odd;
  odd.fill(0.0f, 0.0f);
  detail::multiply(sums, odd, weights, x);
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums.v[e][i] += odd.v[e][i];
  }
}
