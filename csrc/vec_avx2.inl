// Vec interface on AVX2 + FMA: 8 lanes. kernels.inl says what the functions mean.

constexpr int kLanes = 8;
constexpr int kAccumulators = 8;

struct Floats {
  __m256 v;
};
struct Words {
  __m256i v;
};

WAVENET_INLINE Floats splat(float x) { return {_mm256_set1_ps(x)}; }
WAVENET_INLINE Floats load(const float* p) { return {_mm256_loadu_ps(p)}; }
WAVENET_INLINE void store(float* p, Floats a) { _mm256_storeu_ps(p, a.v); }
WAVENET_INLINE Floats add(Floats a, Floats b) { return {_mm256_add_ps(a.v, b.v)}; }
WAVENET_INLINE Floats sub(Floats a, Floats b) { return {_mm256_sub_ps(a.v, b.v)}; }
WAVENET_INLINE Floats mul(Floats a, Floats b) { return {_mm256_mul_ps(a.v, b.v)}; }
WAVENET_INLINE Floats div(Floats a, Floats b) { return {_mm256_div_ps(a.v, b.v)}; }
WAVENET_INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
WAVENET_INLINE Floats max(Floats a, Floats b) { return {_mm256_max_ps(a.v, b.v)}; }
WAVENET_INLINE Floats min(Floats a, Floats b) { return {_mm256_min_ps(a.v, b.v)}; }
WAVENET_INLINE Words bits(Floats a) { return {_mm256_castps_si256(a.v)}; }
WAVENET_INLINE Floats floats(Words a) { return {_mm256_castsi256_ps(a.v)}; }
WAVENET_INLINE Words splat_word(uint32_t x) { return {_mm256_set1_epi32(static_cast<int>(x))}; }
WAVENET_INLINE Words load_words(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
WAVENET_INLINE Words add(Words a, Words b) { return {_mm256_add_epi32(a.v, b.v)}; }
WAVENET_INLINE Words bit_and(Words a, Words b) { return {_mm256_and_si256(a.v, b.v)}; }
template <int n>
WAVENET_INLINE Words shift_left(Words a) {
  return {_mm256_slli_epi32(a.v, n)};
}
template <int n>
WAVENET_INLINE Words shift_right(Words a) {
  return {_mm256_srli_epi32(a.v, n)};
}
WAVENET_INLINE void store_low_halves(uint16_t* p, Words a) {
  // packus works within 128-bit halves; the permutation brings the two useful quarters together.
  const __m256i packed = _mm256_packus_epi32(a.v, a.v);
  const __m256i ordered = _mm256_permute4x64_epi64(packed, 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(ordered));
}
WAVENET_INLINE Floats dot_pair(Floats acc, Words w, Words x) {
  const Words high = splat_word(0xFFFF0000u);
  acc = fma(floats(shift_left<16>(w)), floats(shift_left<16>(x)), acc);
  return fma(floats(bit_and(w, high)), floats(bit_and(x, high)), acc);
}
