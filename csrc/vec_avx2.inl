// Vec interface on AVX2, FMA and F16C: 8 lanes. kernels.inl says what the functions mean.

constexpr int kLanes = 8;
constexpr int kAccumulators = 8;
constexpr int kStreams = 2;
constexpr bool kUnsignedQuads = false;

struct Floats {
  __m256 v;
};
struct Words {
  __m256i v;
};

static WAVENET_INLINE Floats splat(float x) { return {_mm256_set1_ps(x)}; }
static WAVENET_INLINE Floats load(const float* p) { return {_mm256_loadu_ps(p)}; }
static WAVENET_INLINE void store(float* p, Floats a) { _mm256_storeu_ps(p, a.v); }
static WAVENET_INLINE Floats add(Floats a, Floats b) { return {_mm256_add_ps(a.v, b.v)}; }
static WAVENET_INLINE Floats sub(Floats a, Floats b) { return {_mm256_sub_ps(a.v, b.v)}; }
static WAVENET_INLINE Floats mul(Floats a, Floats b) { return {_mm256_mul_ps(a.v, b.v)}; }
static WAVENET_INLINE Floats div(Floats a, Floats b) { return {_mm256_div_ps(a.v, b.v)}; }
static WAVENET_INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
static WAVENET_INLINE Floats max(Floats a, Floats b) { return {_mm256_max_ps(a.v, b.v)}; }
static WAVENET_INLINE Floats min(Floats a, Floats b) { return {_mm256_min_ps(a.v, b.v)}; }
static WAVENET_INLINE Words bits(Floats a) { return {_mm256_castps_si256(a.v)}; }
static WAVENET_INLINE Floats floats(Words a) { return {_mm256_castsi256_ps(a.v)}; }
static WAVENET_INLINE Words splat_word(uint32_t x) { return {_mm256_set1_epi32(static_cast<int>(x))}; }
static WAVENET_INLINE Words load_words(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
static WAVENET_INLINE Words add(Words a, Words b) { return {_mm256_add_epi32(a.v, b.v)}; }
static WAVENET_INLINE Words bit_and(Words a, Words b) { return {_mm256_and_si256(a.v, b.v)}; }
template <int n>
static WAVENET_INLINE Words shift_left(Words a) {
  return {_mm256_slli_epi32(a.v, n)};
}
template <int n>
static WAVENET_INLINE Words shift_right(Words a) {
  return {_mm256_srli_epi32(a.v, n)};
}
static WAVENET_INLINE void store_low_halves(uint16_t* p, Words a) {
  // packus works within 128-bit halves; the permutation brings the two useful quarters together.
  const __m256i packed = _mm256_packus_epi32(a.v, a.v);
  const __m256i ordered = _mm256_permute4x64_epi64(packed, 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(ordered));
}
static WAVENET_INLINE Floats dot_pair(Floats acc, Words w, Words x) {
  const Words high = splat_word(0xFFFF0000u);
  acc = fma(floats(shift_left<16>(w)), floats(shift_left<16>(x)), acc);
  return fma(floats(bit_and(w, high)), floats(bit_and(x, high)), acc);
}
static WAVENET_INLINE Floats quotient(Floats a, Floats b) { return div(a, b); }
static WAVENET_INLINE float highest(Floats a) {
  const __m128 half = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 quarter = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)));
}
static WAVENET_INLINE float sum(Floats a) {
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)));
}
static WAVENET_INLINE Floats convert(Words a) { return {_mm256_cvtepi32_ps(a.v)}; }
static WAVENET_INLINE Floats load_halves(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
static WAVENET_INLINE void store_low_bytes(int8_t* p, Words a) {
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a.v, a.v), _mm256_setzero_si256());
  const __m256i ordered = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 0, 0, 0, 0, 0, 0));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(ordered));
}
// vpmaddubsw multiplies unsigned by signed bytes and adds two products with saturation, which |x| ≤ 127 and |w| ≤ 127
// cannot reach: the signs of x go to w.
struct Quads {
  __m256i x, size;
};
static WAVENET_INLINE Quads splat_quad(uint32_t four) {
  const __m256i x = _mm256_set1_epi32(static_cast<int>(four));
  return {x, _mm256_abs_epi8(x)};
}
static WAVENET_INLINE Words dot_quad(Words acc, Words w, Quads x) {
  const __m256i pairs = _mm256_maddubs_epi16(x.size, _mm256_sign_epi8(w.v, x.x));
  return {_mm256_add_epi32(acc.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
}
