// Vec interface on NEON: 8 lanes in two registers of four. WAVENET_SDOT says whether the CPU multiplies int8 quads
// itself. kernels.inl says what the functions mean.
//
// Blocks of 8 vectors keep 16 sums in registers: as many as four multipliers of four cycles' latency need, and it
// leaves 16 of the 32 registers to the weights, the operands and constants. Two streams keep 16 sums as well, and their
// weights.

constexpr int kLanes = 8;
constexpr int kAccumulators = 8;
constexpr int kStreams = 2;
constexpr bool kUnsignedQuads = false;

struct Floats {
  float32x4_t a, b;  // lanes 0 … 3, 4 … 7
};
struct Words {
  uint32x4_t a, b;
};

static WAVENET_INLINE Floats splat(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
static WAVENET_INLINE Floats load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
static WAVENET_INLINE void store(float* p, Floats x) {
  vst1q_f32(p, x.a);
  vst1q_f32(p + 4, x.b);
}
static WAVENET_INLINE Floats add(Floats x, Floats y) { return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b)}; }
static WAVENET_INLINE Floats sub(Floats x, Floats y) { return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b)}; }
static WAVENET_INLINE Floats mul(Floats x, Floats y) { return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b)}; }
static WAVENET_INLINE Floats div(Floats x, Floats y) { return {vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b)}; }
static WAVENET_INLINE Floats fma(Floats x, Floats y, Floats z) {
  return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b)};
}
// Compared and selected: NEON's own maximum and minimum pass every NaN on.
static WAVENET_INLINE Floats max(Floats x, Floats y) {
  return {vbslq_f32(vcgtq_f32(x.a, y.a), x.a, y.a), vbslq_f32(vcgtq_f32(x.b, y.b), x.b, y.b)};
}
static WAVENET_INLINE Floats min(Floats x, Floats y) {
  return {vbslq_f32(vcltq_f32(x.a, y.a), x.a, y.a), vbslq_f32(vcltq_f32(x.b, y.b), x.b, y.b)};
}
static WAVENET_INLINE Words bits(Floats x) { return {vreinterpretq_u32_f32(x.a), vreinterpretq_u32_f32(x.b)}; }
static WAVENET_INLINE Floats floats(Words x) { return {vreinterpretq_f32_u32(x.a), vreinterpretq_f32_u32(x.b)}; }
static WAVENET_INLINE Words splat_word(uint32_t x) { return {vdupq_n_u32(x), vdupq_n_u32(x)}; }
static WAVENET_INLINE Words load_words(const void* p) {
  // As bytes, because what lies there may be of any type and alignment.
  const uint8_t* bytes = static_cast<const uint8_t*>(p);
  return {vreinterpretq_u32_u8(vld1q_u8(bytes)), vreinterpretq_u32_u8(vld1q_u8(bytes + 16))};
}
static WAVENET_INLINE Words add(Words x, Words y) { return {vaddq_u32(x.a, y.a), vaddq_u32(x.b, y.b)}; }
static WAVENET_INLINE Words bit_and(Words x, Words y) { return {vandq_u32(x.a, y.a), vandq_u32(x.b, y.b)}; }
template <int n>
static WAVENET_INLINE Words shift_left(Words x) {
  return {vshlq_n_u32(x.a, n), vshlq_n_u32(x.b, n)};
}
template <int n>
static WAVENET_INLINE Words shift_right(Words x) {
  return {vshrq_n_u32(x.a, n), vshrq_n_u32(x.b, n)};
}
static WAVENET_INLINE Floats quotient(Floats x, Floats y) { return div(x, y); }
static WAVENET_INLINE float highest(Floats x) { return vmaxvq_f32(vmaxq_f32(x.a, x.b)); }
static WAVENET_INLINE float sum(Floats x) {
  const float32x4_t four = vaddq_f32(x.a, x.b);
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(vpadd_f32(two, two), 0);
}
static WAVENET_INLINE Floats convert(Words x) {
  return {vcvtq_f32_s32(vreinterpretq_s32_u32(x.a)), vcvtq_f32_s32(vreinterpretq_s32_u32(x.b))};
}
static WAVENET_INLINE Floats load_halves(const uint16_t* p) {
  const float16x8_t halves = vreinterpretq_f16_u16(vld1q_u16(p));
  return {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
}
static WAVENET_INLINE void store_low_halves(uint16_t* p, Words x) {
  vst1q_u16(p, vuzp1q_u16(vreinterpretq_u16_u32(x.a), vreinterpretq_u16_u32(x.b)));
}
static WAVENET_INLINE Floats dot_pair(Floats acc, Words w, Words x) {
  const Words high = splat_word(0xFFFF0000u);
  acc = fma(floats(shift_left<16>(w)), floats(shift_left<16>(x)), acc);
  return fma(floats(bit_and(w, high)), floats(bit_and(x, high)), acc);
}
static WAVENET_INLINE void store_low_bytes(int8_t* p, Words x) {
  const uint16x8_t halves = vuzp1q_u16(vreinterpretq_u16_u32(x.a), vreinterpretq_u16_u32(x.b));
  vst1_s8(p, vreinterpret_s8_u8(vmovn_u16(halves)));
}
struct Quads {
  int8x16_t x;
};
static WAVENET_INLINE Quads splat_quad(uint32_t four) { return {vreinterpretq_s8_u32(vdupq_n_u32(four))}; }
static WAVENET_INLINE uint32x4_t dot_bytes(uint32x4_t acc, int8x16_t w, int8x16_t x) {
#if WAVENET_SDOT
  // Not vdotq_s32, which clang 14 declares only where a whole file is compiled for it.
  __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(acc) : "w"(w), "w"(x));
  return acc;
#else
  // Two products of |w| ≤ 127 and |x| ≤ 127 fit 16 bits.
  const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
  return vreinterpretq_u32_s32(vpadalq_s16(vreinterpretq_s32_u32(acc), vpaddq_s16(low, high)));
#endif
}
static WAVENET_INLINE Words dot_quad(Words acc, Words w, Quads x) {
  return {dot_bytes(acc.a, vreinterpretq_s8_u32(w.a), x.x), dot_bytes(acc.b, vreinterpretq_s8_u32(w.b), x.x)};
}
