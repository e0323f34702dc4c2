// The functions of the gate and of the draw, and the random numbers: all in fp32, each product and sum rounded by
// itself unless fused by name (NVRTC is told --fmad=false), so that no bit depends on how a kernel was cut.
#pragma once

#include "device.cuh"

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kFloatMax = 3.4028234663852886e38f;

DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }

// e^x, to about 2 units in the last place and x·2^-23.
DEVICE float exponential(float x) { return exp2_fast(x * kLog2E); }

DEVICE float logarithm(float x) { return log2_fast(x) * kLn2; }

// To −1 … 1; a NaN becomes −1.
DEVICE float clipped(float x) { return smaller(larger(x, -1.0f), 1.0f); }

DEVICE float relu(float x) { return larger(x, 0.0f); }

// tanh(a) = (1 − e^−2a) / (1 + e^−2a). Below −10 the numerator would become infinite, and tanh is −1 in fp32 there;
// above, e^−2a vanishes by itself. The bound also ends a NaN.
DEVICE float tangent(float a) {
  const float e = exp2_fast(larger(a, -10.0f) * (-2.0f * kLog2E));
  return (1.0f - e) * reciprocal_fast(1.0f + e);
}

// tanh(a)·σ(b) = (1 − e^−2a) / ((1 + e^−2a)(1 + e^−b)): one reciprocal, of 1 … 2^120.
DEVICE float gate(float a, float b) {
  const float ea = exp2_fast(larger(a, -10.0f) * (-2.0f * kLog2E));
  const float eb = exp2_fast(larger(b, -60.0f) * -kLog2E);
  return (1.0f - ea) * reciprocal_fast((1.0f + ea) * (1.0f + eb));
}

// Inverse of µ-law companding: sign(y)·((1 + µ)^|y| − 1)/µ.
DEVICE float expand(float y, float mu) {
  const float size = (exp2_fast(fabsf(y) * log2_fast(1.0f + mu)) - 1.0f) / mu;
  return y < 0.0f ? -size : size;
}

// Φ⁻¹(v) = √2 · erfinv(2v − 1) by Giles' polynomials ("Approximating the erfinv function", GPU Computing Gems, 2011),
// as in sampling.normal_quantile.
DEVICE float normal_quantile(float v) {
  const float w = -logarithm(4.0f * v * (1.0f - v));
  float p;
  if (w < 5.0f) {
    const float x = w - 2.5f;
    p = 2.81022636e-08f;
    p = p * x + 3.43273939e-07f;
    p = p * x - 3.5233877e-06f;
    p = p * x - 4.39150654e-06f;
    p = p * x + 0.00021858087f;
    p = p * x - 0.00125372503f;
    p = p * x - 0.00417768164f;
    p = p * x + 0.246640727f;
    p = p * x + 1.50140941f;
  } else {
    const float x = sqrtf(w) - 3.0f;
    p = -0.000200214257f;
    p = p * x + 0.000100950558f;
    p = p * x + 0.00134934322f;
    p = p * x - 0.00367342844f;
    p = p * x + 0.00573950773f;
    p = p * x - 0.0076224613f;
    p = p * x + 0.00943887047f;
    p = p * x + 1.00167406f;
    p = p * x + 2.83297682f;
  }
  return 1.4142135623730951f * p * (2.0f * v - 1.0f);
}

// --- random numbers -----------------------------------------------------------------------------------------------

struct Words {
  u32 zero, one;
};

// Words 0 and 1 of Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with key
// (seed low, high) and counter (t low, t high, 0, 0): `rng.philox`.
DEVICE Words philox(u64 seed, u64 t) {
  u32 key0 = static_cast<u32>(seed), key1 = static_cast<u32>(seed >> 32);
  u32 c0 = static_cast<u32>(t), c1 = static_cast<u32>(t >> 32), c2 = 0, c3 = 0;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const u32 high0 = __umulhi(c0, 0xD2511F53u), low0 = c0 * 0xD2511F53u;
    const u32 high2 = __umulhi(c2, 0xCD9E8D57u), low2 = c2 * 0xCD9E8D57u;
    c0 = high2 ^ c1 ^ key0;
    c1 = low2;
    c2 = high0 ^ c3 ^ key1;
    c3 = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {c0, c1};
}

// A word as a float in [0, 1): as a signed number, negative ones mapped to −x − 1, times a little less than 2^-31.
DEVICE float uniform(u32 word) {
  const int x = static_cast<int>(word);
  return static_cast<float>(x < 0 ? -x - 1 : x) * 4.6566127342e-10f;
}
