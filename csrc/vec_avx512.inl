// Vec interface on AVX-512: 16 lanes. WAVENET_DPBF16 says whether the CPU multiplies bf16 pairs itself.
// kernels.inl says what the functions mean.

constexpr int kLanes = 16;
constexpr int kAccumulators = 8;

struct Floats {
  __m512 v;
};
struct Words {
  __m512i v;
};

WAVENET_INLINE Floats splat(float x) { return {_mm512_set1_ps(x)}; }
WAVENET_INLINE Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
WAVENET_INLINE void store(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }
WAVENET_INLINE Floats add(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
WAVENET_INLINE Floats sub(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
WAVENET_INLINE Floats mul(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
WAVENET_INLINE Floats div(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
WAVENET_INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// The masked forms with a full mask: the plain intrinsics of g++ 12 start from an undefined register and warn.
WAVENET_INLINE Floats max(Floats a, Floats b) { return {_mm512_maskz_max_ps(0xFFFF, a.v, b.v)}; }
WAVENET_INLINE Floats min(Floats a, Floats b) { return {_mm512_maskz_min_ps(0xFFFF, a.v, b.v)}; }
WAVENET_INLINE Words bits(Floats a) { return {_mm512_castps_si512(a.v)}; }
WAVENET_INLINE Floats floats(Words a) { return {_mm512_castsi512_ps(a.v)}; }
WAVENET_INLINE Words splat_word(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
WAVENET_INLINE Words load_words(const void* p) { return {_mm512_loadu_si512(p)}; }
WAVENET_INLINE Words add(Words a, Words b) { return {_mm512_add_epi32(a.v, b.v)}; }
WAVENET_INLINE Words bit_and(Words a, Words b) { return {_mm512_and_si512(a.v, b.v)}; }
template <int n>
WAVENET_INLINE Words shift_left(Words a) {
  return {_mm512_maskz_slli_epi32(0xFFFF, a.v, n)};
}
template <int n>
WAVENET_INLINE Words shift_right(Words a) {
  return {_mm512_maskz_srli_epi32(0xFFFF, a.v, n)};
}
WAVENET_INLINE void store_low_halves(uint16_t* p, Words a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(0xFFFF, a.v));
}
WAVENET_INLINE Floats dot_pair(Floats acc, Words w, Words x) {
#if WAVENET_DPBF16
  return {_mm512_dpbf16_ps(acc.v, (__m512bh)w.v, (__m512bh)x.v)};
#else
  const Words high = splat_word(0xFFFF0000u);
  acc = fma(floats(shift_left<16>(w)), floats(shift_left<16>(x)), acc);
  return fma(floats(bit_and(w, high)), floats(bit_and(x, high)), acc);
#endif
}
