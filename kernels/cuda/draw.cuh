// From logits to a draw, and from a draw to sound: one warp per stream.
#pragma once

#include "stages.cuh"

// Classes of one lane, neighbours.
DEVICE constexpr int lane_classes(int classes) { return ceil_div(classes, kWarp); }

// Sum of x over this lane and those below.
DEVICE float warp_prefix(float x) {
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const float below = from_below(x, distance);
    if (lane_index() >= distance) x += below;
  }
  return x;
}

// Classes of a lane whose sums stay in its registers between the two times that they are needed.
constexpr int kMostHeld = 32;

// Number of classes below the last whose prefix sum of e^((l − highest)/temperature) is at most u · total. Each lane
// adds up its own classes in their order, and the lanes' sums are added in theirs. `sharpness` is log2(e)/temperature.
// What needs no order, the largest and the count, is dealt out to four by turns: chains of a fourth of the length.
template <int CLASSES>
DEVICE int choose(const float* logits, float u, float sharpness) {
  constexpr int kOwn = lane_classes(CLASSES), kHeld = kOwn <= kMostHeld ? kOwn : 1;
  constexpr int kUnroll = kHeld == kOwn ? kOwn : 4;
  constexpr bool kEven = CLASSES % kWarp == 0;  // all lanes have as many
  const int first = lane_index() * kOwn;
  const auto mine = [&](int k) { return kEven || first + k < CLASSES; };
  float largest[4] = {-kFloatMax, -kFloatMax, -kFloatMax, -kFloatMax};
#pragma unroll kUnroll
  for (int k = 0; k < kOwn; ++k) {
    if (mine(k)) largest[k % 4] = larger(largest[k % 4], logits[first + k]);
  }
  const float highest = warp_max(larger(larger(largest[0], largest[1]), larger(largest[2], largest[3])));
  const auto weight = [&](int k) { return mine(k) ? exp2_fast((logits[first + k] - highest) * sharpness) : 0.0f; };
  float held[kHeld], own = 0.0f;
#pragma unroll kUnroll
  for (int k = 0; k < kOwn; ++k) {
    own += weight(k);
    if (kHeld == kOwn) held[k % kHeld] = own;
  }
  const float upto = warp_prefix(own), bound = u * from_lane(upto, kWarp - 1);
  const float below = from_below(upto, 1), before = lane_index() ? below : 0.0f;
  int chosen[4] = {0, 0, 0, 0};
  float sum = 0.0f;
#pragma unroll kUnroll
  for (int k = 0; k < kOwn; ++k) {
    sum = kHeld == kOwn ? held[k % kHeld] : sum + weight(k);
    chosen[k % 4] += first + k < CLASSES - 1 && before + sum <= bound;
  }
  return sum_of_lanes((chosen[0] + chosen[1]) + (chosen[2] + chosen[3]));
}

// A mixture's draw in −1 … 1. Outputs are laid out [component logits | means | log scales], without the first where
// there is one component.
DEVICE float draw_value(const Call& call, const float* outputs, float u0, float u1) {
  constexpr int kFirst = shape::COMPONENTS == 1 ? 0 : shape::COMPONENTS;
  int chosen = 0;
  if (shape::COMPONENTS > 1) chosen = choose<shape::COMPONENTS>(outputs, u0, call.sharpness);
  const float mean = outputs[kFirst + chosen];
  const float log_scale = larger(outputs[kFirst + shape::COMPONENTS + chosen], call.log_scale_min);
  // The largest float instead of infinity: infinity times a quantile of exactly 0 would be NaN.
  const float scale = smaller(exponential(log_scale) * call.temperature, kFloatMax);
  const float v = clamp(u1, 1e-5f, 1.0f - 1e-5f);
  const float quantile = shape::HEAD == 2 ? normal_quantile(v) : logarithm(v) - logarithm(1.0f - v);
  return clipped(mean + scale * quantile);
}

// A class as its number, or a value.
DEVICE float draw(const Call& call, const float* outputs, Words words) {
  const float u0 = uniform(words.zero);
  if (shape::HEAD == 0) return static_cast<float>(choose<shape::CLASSES>(outputs, u0, call.sharpness));
  return draw_value(call, outputs, u0, uniform(words.one));
}

// What a class or a value sounds like on top of the filter's memory, before the gain.
DEVICE float sound_of(const Call& call, float value, float memory, bool is_class) {
  float y = value;
  if (is_class) {
    y = call.sound[static_cast<int>(value)];
  } else if (shape::COMPANDED) {
    y = expand(value, call.mu);
  }
  return fused(memory, call.preemphasis, y);
}

// What one stream remembers of its own sound.
struct Memory {
  float* inputs;  // (IN_DEPTH): x[t] at slot t mod IN_DEPTH
  float* filter;
};

// What the next samples hear of a draw.
DEVICE float heard_of(const Call& call, const Stream& s, int i, float drawn) {
  if (plan::FORCED) return call.forced[output_row(call, s, i)];
  return shape::HEAD == 0 && !shape::ONE_HOT ? call.feedback[static_cast<int>(drawn)] : drawn;
}

// A draw becomes sound. By one lane.
DEVICE void speak(const Call& call, const Stream& s, const Memory& memory, int i, float drawn, float heard) {
  const size_t row = output_row(call, s, i);
  float emphasised = sound_of(call, drawn, *memory.filter, shape::HEAD == 0);
  call.audio[row] = clipped(emphasised / call.gain);
  call.draws[row] = drawn;
  if (plan::FORCED) emphasised = sound_of(call, heard, *memory.filter, shape::ONE_HOT);
  *memory.filter = emphasised;
}
