// Elementary functions and conversions of vectors.

// ~0 in the first 16 words: loaded at 16 − n it keeps n lanes.
alignas(64) static const uint32_t kKeep[32] = {
    ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u,
};

// The first n lanes of a (0 ≤ n ≤ kLanes), zero in the others, whatever stood there.
static WAVENET_INLINE Floats first(int64_t n, Floats a) { return floats(bit_and(bits(a), load_words(kKeep + 16 - n))); }

// e^x for x ≤ 88; 0 below −87.7 and for NaN. Relative error below 1.5e-7.
// x = n·ln 2 + r with ln 2 split in two (Cody and Waite); e^r = 1 + r + r²·q(r), q fitted to e^r on |r| ≤ ln 2 / 2 with
// relative error 3.1e-9; 2^n is put together from its exponent bits.
static WAVENET_INLINE Floats exponential(Floats x) {
  constexpr float kShift = 12582912.f;  // 1.5·2^23: adding it rounds to an integer, found in the low bits
  x = min(max(x, splat(-88.02f)), splat(88.f));
  const Floats shifted = fma(x, splat(1.44269504f), splat(kShift));
  const Floats n = sub(shifted, splat(kShift));
  Floats r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  Floats q = splat(0.0013814540579915047f);
  q = fma(q, r, splat(0.00836874544620514f));
  q = fma(q, r, splat(0.04166838899254799f));
  q = fma(q, r, splat(0.1666652113199234f));
  q = fma(q, r, splat(0.4999999403953552f));
  const Floats e = add(fma(mul(r, r), q, r), splat(1.f));
  return mul(e, floats(shift_left<23>(add(bits(shifted), splat_word(127)))));
}

// 2^t for |t| < 126. Relative error below 2e-7: t = n + f, and 2^f = 1 + f·q(f), q fitted on |f| ≤ ½ with 9.1e-8.
static WAVENET_INLINE Floats power_of_two(Floats t) {
  const Floats shifted = add(t, splat(12582912.f)), f = sub(t, sub(shifted, splat(12582912.f)));
  Floats p = splat(0.0013264724984765053f);
  p = fma(p, f, splat(0.009671512991189957f));
  p = fma(p, f, splat(0.05550733581185341f));
  p = fma(p, f, splat(0.24022242426872253f));
  p = fma(p, f, splat(0.6931470036506653f));
  p = fma(p, f, splat(1.f));
  return floats(add(bits(p), shift_left<23>(bits(shifted))));
}

// tanh(a)·σ(b) = (1 − e^−2a) / ((1 + e^−2a)(1 + e^−b)), one division. Absolute error below 3e-7.
// The clamps lose nothing in fp32 (tanh 10 = 1 − 4e-9), keep the denominator finite, and stop a NaN here.
static WAVENET_INLINE Floats gate(Floats a, Floats b) {
  const Floats one = splat(1.f);
  a = min(max(a, splat(-10.f)), splat(10.f));
  b = min(max(b, splat(-60.f)), splat(60.f));
  const Floats ea = power_of_two(mul(a, splat(-2.88539008f))), eb = power_of_two(mul(b, splat(-1.44269504f)));
  return quotient(sub(one, ea), mul(add(one, ea), add(one, eb)));
}

// Absolute error below 3e-7.
static WAVENET_INLINE Floats tangent(Floats a) {
  const Floats one = splat(1.f);
  const Floats e = exponential(mul(min(max(a, splat(-10.f)), splat(10.f)), splat(-2.f)));
  return div(sub(one, e), add(one, e));
}

static WAVENET_INLINE Floats relu(Floats a) { return max(a, splat(0.f)); }

static WAVENET_INLINE Floats magnitude(Floats a) { return floats(bit_and(bits(a), splat_word(0x7FFFFFFF))); }

// The upper 16 bits of finite numbers are their bf16, rounded to nearest, ties to even; below them stands what is left.
static WAVENET_INLINE Words rounded_to_bf16(Floats a) {
  return add(bits(a), add(bit_and(shift_right<16>(bits(a)), splat_word(1)), splat_word(0x7FFF)));
}

#if !WAVENET_DPBF16
static WAVENET_INLINE void store_bf16(uint16_t* p, Floats a) {
  store_low_halves(p, shift_right<16>(rounded_to_bf16(a)));
}
#endif

// Words of two bf16.
static WAVENET_INLINE Words bf16_pair(Floats low, Floats high) {
  return add(shift_right<16>(rounded_to_bf16(low)), bit_and(rounded_to_bf16(high), splat_word(0xFFFF0000u)));
}

// |a| < 2^22 → the nearest integer, ties to even, as int32: adding 1.5·2^23 leaves it in the low bits.
static WAVENET_INLINE Words nearest(Floats a) {
  return add(bits(add(a, splat(12582912.f))), splat_word(0u - 0x4B400000u));
}

// acc + sum · scale · unit: an int8 product as a number.
static WAVENET_INLINE Floats scaled_sum(Words sum, Floats scale, Floats unit, Floats acc) {
  return fma(convert(sum), mul(scale, unit), acc);
}

// Below, a vector is nothing in int8.
constexpr float kSmallest = 1e-30f;

// Sixteen numbers, added in a tree: halves onto halves.
static WAVENET_INLINE float sum_of_16(const float* p) {
  if constexpr (kLanes == 16) {
    return sum(load(p));
  } else {
    return sum(add(load(p), load(p + 8)));
  }
}

static void gate_array(const float* a, const float* b, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) store(out + i, gate(load(a + i), load(b + i)));
}

static void exponential_array(const float* x, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) store(out + i, exponential(load(x + i)));
}
