// Vec interface on NEON: 8 lanes in two registers of four. kernels.inl says what the functions mean.
//
// Blocks of 8 vectors keep 16 sums in registers: as many as four multipliers of four cycles' latency need, and it leaves
// 16 of the 32 registers to the weights, the input and constants.

constexpr int kLanes = 8;
constexpr int kAccumulators = 8;

struct Floats {
  float32x4_t a, b;  // lanes 0 … 3, 4 … 7
};
struct Words {
  uint32x4_t a, b;
};

WAVENET_INLINE Floats splat(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
WAVENET_INLINE Floats load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
WAVENET_INLINE void store(float* p, Floats x) {
  vst1q_f32(p, x.a);
  vst1q_f32(p + 4, x.b);
}
WAVENET_INLINE Floats add(Floats x, Floats y) { return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b)}; }
WAVENET_INLINE Floats sub(Floats x, Floats y) { return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b)}; }
WAVENET_INLINE Floats mul(Floats x, Floats y) { return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b)}; }
WAVENET_INLINE Floats div(Floats x, Floats y) { return {vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b)}; }
WAVENET_INLINE Floats fma(Floats x, Floats y, Floats z) {
  return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b)};
}
// Compared and selected: NEON's own maximum and minimum pass every NaN on.
WAVENET_INLINE Floats max(Floats x, Floats y) {
  return {vbslq_f32(vcgtq_f32(x.a, y.a), x.a, y.a), vbslq_f32(vcgtq_f32(x.b, y.b), x.b, y.b)};
}
WAVENET_INLINE Floats min(Floats x, Floats y) {
  return {vbslq_f32(vcltq_f32(x.a, y.a), x.a, y.a), vbslq_f32(vcltq_f32(x.b, y.b), x.b, y.b)};
}
WAVENET_INLINE Words bits(Floats x) { return {vreinterpretq_u32_f32(x.a), vreinterpretq_u32_f32(x.b)}; }
WAVENET_INLINE Floats floats(Words x) { return {vreinterpretq_f32_u32(x.a), vreinterpretq_f32_u32(x.b)}; }
WAVENET_INLINE Words splat_word(uint32_t x) { return {vdupq_n_u32(x), vdupq_n_u32(x)}; }
WAVENET_INLINE Words load_words(const void* p) {
  // As bytes, because what lies there may be of any type and alignment.
  const uint8_t* bytes = static_cast<const uint8_t*>(p);
  return {vreinterpretq_u32_u8(vld1q_u8(bytes)), vreinterpretq_u32_u8(vld1q_u8(bytes + 16))};
}
WAVENET_INLINE Words add(Words x, Words y) { return {vaddq_u32(x.a, y.a), vaddq_u32(x.b, y.b)}; }
WAVENET_INLINE Words bit_and(Words x, Words y) { return {vandq_u32(x.a, y.a), vandq_u32(x.b, y.b)}; }
template <int n>
WAVENET_INLINE Words shift_left(Words x) {
  return {vshlq_n_u32(x.a, n), vshlq_n_u32(x.b, n)};
}
template <int n>
WAVENET_INLINE Words shift_right(Words x) {
  return {vshrq_n_u32(x.a, n), vshrq_n_u32(x.b, n)};
}
WAVENET_INLINE void store_low_halves(uint16_t* p, Words x) {
  vst1q_u16(p, vuzp1q_u16(vreinterpretq_u16_u32(x.a), vreinterpretq_u16_u32(x.b)));
}
WAVENET_INLINE Floats dot_pair(Floats acc, Words w, Words x) {
  const Words high = splat_word(0xFFFF0000u);
  acc = fma(floats(shift_left<16>(w)), floats(shift_left<16>(x)), acc);
  return fma(floats(bit_and(w, high)), floats(bit_and(x, high)), acc);
}
