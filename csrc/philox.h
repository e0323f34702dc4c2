// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011) and Triton's map from words to uniforms; as in rng.py.
#pragma once

#include <cstdint>

namespace wavenet {

struct Uniforms {
  float u[4];
};

// Key (seed low, seed high), counter (t low, t high, 0, 0).
inline Uniforms uniforms(uint64_t seed, uint64_t t) {
  uint32_t c0 = static_cast<uint32_t>(t), c1 = static_cast<uint32_t>(t >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t even = uint64_t{0xD2511F53u} * c0, odd = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(odd >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(odd);
    c2 = static_cast<uint32_t>(even >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(even);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const uint32_t words[4] = {c0, c1, c2, c3};
  Uniforms result;
  for (int w = 0; w < 4; ++w) {
    const uint32_t positive = words[w] >> 31 ? ~words[w] : words[w];  // as int32: x < 0 becomes −x − 1
    result.u[w] = static_cast<float>(positive) * 4.6566127342e-10f;
  }
  return result;
}

}  // namespace wavenet
