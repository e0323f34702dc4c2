// Products of a panel of weights, 16 rows, with the operands of a tile of N streams.
//
// Same order everywhere. A sum begins with what is given, and takes its inputs step by step in their order; `by turns`
// step s goes onto sum s mod 4, of which all but the first begin at zero, and the four are added at the end: four short
// chains instead of one long. In fp32 input k goes onto sum k mod 8, all of which begin at zero, and what is given is
// added to ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)). Where the weights come from, which warp works, and how many
// streams there are changes no bit.
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

// Of a lane's two streams of an eight, those whose place may be taken.
constexpr int kOfLane = plan::USED == 1 ? 1 : 2;

// Calls visit(row of the panel, stream of the tile, the lane's number) for each number of the lane.
template <class SomeSums, class Visit>
DEVICE void for_each(SomeSums& sums, Visit visit) {
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i % 2 >= kOfLane) continue;
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
  static constexpr int kStride = CHANNELS + 4, kStreams = kOfLane;

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
// Each has next(), the next fragment, kHeld, whether they are in registers, and kAgain, whether a copy gives the same
// ones once more. Of those that are not, pairs(steps) pairs of steps of a product are loaded ahead.

// A lane's share of a fragment is 16 bytes, which no other lane reads.
using Fragment = uint4;
constexpr int kFragmentWords = kFragmentBytes / sizeof(Fragment);
DEVICE Fragment share_of(const uint4* fragment) { return fragment[lane_index()]; }

DEVICE constexpr int pairs_ahead(int steps) { return plan::AHEAD > 1 && steps > 16 ? plan::AHEAD / 2 : plan::AHEAD; }

// Fragments that lie one behind the other, in shared or global memory.
struct FromMemory {
  static constexpr bool kHeld = false, kAgain = true;
  static DEVICE constexpr int pairs(int steps) { return pairs_ahead(steps); }
  const uint4* next_fragment;

  DEVICE Fragment next() {
    const Fragment fragment = share_of(next_fragment);
    next_fragment += kFragmentWords;
    return fragment;
  }
};

// Fragments that a warp holds in its registers.
template <int COUNT>
struct FromRegisters {
  static constexpr bool kHeld = true, kAgain = true;
  const uint4 (&fragments)[COUNT];
  int at = 0;

  DEVICE Fragment next() { return fragments[at++]; }
};

// The first of a panel in registers, the rest in memory.
template <int COUNT>
struct FromBoth {
  static constexpr bool kHeld = true, kAgain = true;
  const uint4 (&fragments)[COUNT];
  const uint4* rest;
  int at = 0;

  DEVICE Fragment next() {
    if (at < COUNT) return fragments[at++];
    const Fragment fragment = share_of(rest);
    rest += kFragmentWords;
    return fragment;
  }
};

// The first COUNT of a panel nearby, the rest far away. UNROLLED: all of them are, and no step asks where it lies.
template <int COUNT, bool UNROLLED>
struct FromTwo {
  static constexpr bool kHeld = UNROLLED, kAgain = true;
  static DEVICE constexpr int pairs(int) { return plan::N > 8 ? 1 : 2; }  // wide tiles need registers for other things
  const uint4* near;
  const uint4* far;
  int at = 0;

  DEVICE Fragment next() {
    const int step = at++;
    return share_of(step < COUNT ? near + step * kFragmentWords : far + (step - COUNT) * kFragmentWords);
  }
};

// A warp's tape in global memory, read round and round: DEPTH − 1 fragments are on their way while one is used. A lane
// copies its own words, so the warp need not meet.
template <int DEPTH>
struct FromTape {
  static constexpr bool kHeld = false, kAgain = false;
  static DEVICE constexpr int pairs(int steps) { return pairs_ahead(steps); }
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
    fetch((slot + DEPTH - 1) & (DEPTH - 1));
    const Fragment fragment = share_of(ring + slot * kFragmentWords);
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

// Two steps, the second of which may be missing: onto `first_sums` and onto `second_sums`, which may be the same.
template <bool BOTH, class Format, class Total, class Weights, int CHANNELS>
DEVICE void multiply_pair(Total& first_sums, Total& second_sums, Weights& weights, const Rows<CHANNELS>& x, int step) {
  u32 b[kEights][BOTH ? 4 : 2];
#pragma unroll
  for (int e = 0; e < kEights; ++e) load_matrices(b[e], matrix_address(x, e, step));
  const Fragment first = weights.next();
#pragma unroll
  for (int e = 0; e < kEights; ++e) Format::multiply(first_sums.v[e], first, b[e][0], b[e][1]);
  if constexpr (BOTH) {
    const Fragment second = weights.next();
#pragma unroll
    for (int e = 0; e < kEights; ++e) Format::multiply(second_sums.v[e], second, b[e][2], b[e][3]);
  }
}

// How many sums a product is dealt out to, by the number of its steps.
DEVICE constexpr int turns(int steps) { return steps >= 4 ? 4 : steps >= 2 ? 2 : 1; }

// How many rounds of `group` steps are loaded ahead. Weights in registers have no index, so all of their steps are
// unrolled.
template <class Weights>
DEVICE constexpr int unrolled(int steps, int group) {
  if constexpr (Weights::kHeld) {
    return ceil_div(steps, group);
  } else {
    return ceil_div(2 * Weights::pairs(steps), group);
  }
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

// fp32: streams of an eight whose products are made. In other places of a tile no stream is.
constexpr int kUsedEights = ceil_div(plan::USED, 8), kUsed = plan::USED < 8 ? plan::USED : 8;
static_assert((kUsed & (kUsed - 1)) == 0 && (kUsed == 8 ? plan::USED % 8 == 0 : true), "see `layout.used`");

// Sums of PAIRS pairs of streams, each (row g, first), (g, second), (row g + 8, first), (g + 8, second), to which every
// lane of a row has a part: a lane keeps every other pair, and gives its parts of the others to the lane `distance`
// away, which keeps those. Of a single pair both keep all.
template <int PAIRS>
DEVICE void exchange(float (*parts)[4], int distance) {
  const bool second = lane_index() & distance;
#pragma unroll
  for (int pair = 0; pair < (PAIRS + 1) / 2; ++pair) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i % 2 >= kOfLane) continue;
      if constexpr (PAIRS == 1) {
        parts[0][i] += across(parts[0][i], distance);
      } else {
        const float left = parts[2 * pair][i], right = parts[2 * pair + 1][i];
        parts[pair][i] = (second ? right : left) + across(second ? left : right, distance);
      }
    }
  }
}

// fp32, EIGHTS eights of streams from one on. A lane multiplies two inputs of each step, and adds up even and odd ones
// apart: already of one stream that makes four chains, as many as a multiply-add has clock cycles, and of eight their
// 32 parts of sums leave registers for weights. Then four lanes have the parts of a row's sums, and bring them together
// so that each has those of its own streams. Lanes without one of USED streams get another's: what their places hold is
// never read.
template <int EIGHTS, class Weights, int CHANNELS>
DEVICE void add_eights(Sums& sums, int first_eight, Weights& weights, const Rows<CHANNELS>& x) {
  constexpr int kSteps = steps_of(CHANNELS), kStreams = EIGHTS * kUsed, kPairs = (kUsed + 1) / 2;
  constexpr int kUnroll = unrolled<Weights>(kSteps, 1);
  float even[kStreams][2] = {}, odd[kStreams][2] = {};  // of rows g and g + 8
#pragma unroll kUnroll
  for (int step = 0; step < kSteps; ++step) {
    const Fragment a = weights.next();
#pragma unroll
    for (int n = 0; n < kStreams; ++n) {
      const int input = step * kStepInputs + pair_in_eight();
      const float2 b = *reinterpret_cast<const float2*>(x.row(first_eight * 8 + n) + input);
      even[n][0] = fused(float_of(a.x), b.x, even[n][0]);
      odd[n][0] = fused(float_of(a.y), b.y, odd[n][0]);
      even[n][1] = fused(float_of(a.z), b.x, even[n][1]);
      odd[n][1] = fused(float_of(a.w), b.y, odd[n][1]);
    }
  }
#pragma unroll
  for (int e = 0; e < EIGHTS; ++e) {
    float parts[kPairs][4];
#pragma unroll
    for (int n = 0; n < kUsed; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        parts[n / 2][n % 2 + half * 2] = even[e * 8 + n][half] + odd[e * 8 + n][half];
      }
    }
    exchange<kPairs>(parts, 1);
    exchange<(kPairs + 1) / 2>(parts, 2);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i % 2 < kOfLane) sums.v[first_eight + e][i] += parts[0][i];
    }
  }
}

// Eight streams at a time, so that the parts of a wide tile's sums need no more registers; weights that come by once
// are multiplied with all.
template <class Weights, int CHANNELS>
DEVICE void add_fp32(Sums& sums, Weights& weights, const Rows<CHANNELS>& x) {
  if constexpr (Weights::kAgain) {
#pragma unroll
    for (int e = 0; e + 1 < kUsedEights; ++e) {
      Weights again = weights;
      add_eights<1>(sums, e, again, x);
    }
    add_eights<1>(sums, kUsedEights - 1, weights, x);
  } else {
    add_eights<kUsedEights>(sums, 0, weights, x);
  }
}

template <int TURNS, class Weights, int CHANNELS>
DEVICE void add_product_in(Sums& sums, Weights& weights, const Rows<CHANNELS>& x, const float* units) {
  if constexpr (kInt) {
    add_int8<TURNS>(sums, weights, x, units);
  } else if constexpr (!kTensorCores) {
    add_fp32(sums, weights, x);
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

// The same by turns; in fp32 no other.
template <class Weights, int CHANNELS>
DEVICE void add_product_by_turns(Sums& sums, Weights& weights, const Rows<CHANNELS>& x, const float* units) {
  detail::add_product_in<detail::turns(steps_of(CHANNELS))>(sums, weights, x, units);
}
