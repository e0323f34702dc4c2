// Vec interface on AVX-512: 16 lanes. WAVENET_DPBF16 and WAVENET_VNNI say whether the CPU multiplies bf16 pairs and
// int8 quads itself. kernels.inl says what the functions mean.

constexpr int kLanes = 16;
constexpr int kAccumulators = 8;
constexpr int kStreams = 4;

struct Floats {
  __m512 v;
};
struct Words {
  __m512i v;
};

static WAVENET_INLINE Floats splat(float x) { return {_mm512_set1_ps(x)}; }
static WAVENET_INLINE Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
static WAVENET_INLINE void store(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }
static WAVENET_INLINE Floats add(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
static WAVENET_INLINE Floats sub(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
static WAVENET_INLINE Floats mul(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
static WAVENET_INLINE Floats div(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
static WAVENET_INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// The masked forms with a full mask: the plain intrinsics of g++ 12 start from an undefined register and warn.
static WAVENET_INLINE Floats max(Floats a, Floats b) { return {_mm512_maskz_max_ps(0xFFFF, a.v, b.v)}; }
static WAVENET_INLINE Floats min(Floats a, Floats b) { return {_mm512_maskz_min_ps(0xFFFF, a.v, b.v)}; }
static WAVENET_INLINE Words bits(Floats a) { return {_mm512_castps_si512(a.v)}; }
static WAVENET_INLINE Floats floats(Words a) { return {_mm512_castsi512_ps(a.v)}; }
static WAVENET_INLINE Words splat_word(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
static WAVENET_INLINE Words load_words(const void* p) { return {_mm512_loadu_si512(p)}; }
static WAVENET_INLINE Words add(Words a, Words b) { return {_mm512_add_epi32(a.v, b.v)}; }
static WAVENET_INLINE Words bit_and(Words a, Words b) { return {_mm512_and_si512(a.v, b.v)}; }
template <int n>
static WAVENET_INLINE Words shift_left(Words a) {
  return {_mm512_maskz_slli_epi32(0xFFFF, a.v, n)};
}
template <int n>
static WAVENET_INLINE Words shift_right(Words a) {
  return {_mm512_maskz_srli_epi32(0xFFFF, a.v, n)};
}
static WAVENET_INLINE void store_low_halves(uint16_t* p, Words a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(0xFFFF, a.v));
}
static WAVENET_INLINE Floats dot_pair(Floats acc, Words w, Words x) {
#if WAVENET_DPBF16
  return {_mm512_dpbf16_ps(acc.v, (__m512bh)w.v, (__m512bh)x.v)};
#else
  const Words high = splat_word(0xFFFF0000u);
  acc = fma(floats(shift_left<16>(w)), floats(shift_left<16>(x)), acc);
  return fma(floats(bit_and(w, high)), floats(bit_and(x, high)), acc);
#endif
}
static WAVENET_INLINE Floats quotient(Floats a, Floats b) {
  const __m512 about = _mm512_maskz_rcp14_ps(0xFFFF, b.v);  // one step of Newton's method squares its error of 2^-14
  const __m512 inverse = _mm512_mul_ps(about, _mm512_fnmadd_ps(b.v, about, _mm512_set1_ps(2.f)));
  return {_mm512_mul_ps(a.v, inverse)};
}
static WAVENET_INLINE float highest(Floats a) {
  __m512 v = a.v;
  v = _mm512_maskz_max_ps(0xFFFF, v, _mm512_maskz_shuffle_f32x4(0xFFFF, v, v, 0x4E));
  v = _mm512_maskz_max_ps(0xFFFF, v, _mm512_maskz_shuffle_f32x4(0xFFFF, v, v, 0xB1));
  v = _mm512_maskz_max_ps(0xFFFF, v, _mm512_maskz_permute_ps(0xFFFF, v, 0x4E));
  v = _mm512_maskz_max_ps(0xFFFF, v, _mm512_maskz_permute_ps(0xFFFF, v, 0xB1));
  return _mm512_cvtss_f32(v);
}
static WAVENET_INLINE float sum(Floats a) {
  __m512 v = a.v;
  v = _mm512_add_ps(v, _mm512_maskz_shuffle_f32x4(0xFFFF, v, v, 0x4E));
  v = _mm512_add_ps(v, _mm512_maskz_shuffle_f32x4(0xFFFF, v, v, 0xB1));
  v = _mm512_add_ps(v, _mm512_maskz_permute_ps(0xFFFF, v, 0x4E));
  v = _mm512_add_ps(v, _mm512_maskz_permute_ps(0xFFFF, v, 0xB1));
  return _mm512_cvtss_f32(v);
}
static WAVENET_INLINE Floats convert(Words a) { return {_mm512_maskz_cvtepi32_ps(0xFFFF, a.v)}; }
static WAVENET_INLINE Floats load_halves(const uint16_t* p) {
  return {_mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
static WAVENET_INLINE void store_low_bytes(int8_t* p, Words a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtepi32_epi8(0xFFFF, a.v));
}
#if WAVENET_DPBF16
static WAVENET_INLINE void store_bf16(uint16_t* p, Floats a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(a.v));
}
#endif
#if WAVENET_VNNI
// vpdpbusd takes one side unsigned: operands are moved up by 128.
constexpr bool kUnsignedQuads = true;
struct Quads {
  __m512i x;
};
static WAVENET_INLINE Quads splat_quad(uint32_t four) {
  return {_mm512_set1_epi32(static_cast<int>(four ^ 0x80808080u))};
}
static WAVENET_INLINE Words dot_quad(Words acc, Words w, Quads x) { return {_mm512_dpbusd_epi32(acc.v, x.x, w.v)}; }
#else
// vpmaddubsw multiplies unsigned by signed bytes and adds two products with saturation, which |x| ≤ 127 and |w| ≤ 127
// cannot reach: the signs of x go to w.
constexpr bool kUnsignedQuads = false;
struct Quads {
  __m512i size;
  __mmask64 negative;
};
static WAVENET_INLINE Quads splat_quad(uint32_t four) {
  const __m512i x = _mm512_set1_epi32(static_cast<int>(four));
  return {_mm512_abs_epi8(x), _mm512_movepi8_mask(x)};
}
static WAVENET_INLINE Words dot_quad(Words acc, Words w, Quads x) {
  const __m512i signed_w = _mm512_mask_sub_epi8(w.v, x.negative, _mm512_setzero_si512(), w.v);
  const __m512i pairs = _mm512_maddubs_epi16(x.size, signed_w);
  return {_mm512_add_epi32(acc.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
}
#endif
