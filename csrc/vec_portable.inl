// Vec interface in the compilers' own vector types, 16 bytes at a time: SSE2 on x86-64, NEON on arm64.
// Set WAVENET_LANES (a multiple of 4) and WAVENET_ACCUMULATORS before inclusion. kernels.inl says what the functions
// mean.

constexpr int kLanes = WAVENET_LANES;
constexpr int kAccumulators = WAVENET_ACCUMULATORS;
constexpr int kStreams = 2;
constexpr int kQuarters = kLanes / 4;
constexpr bool kUnsignedQuads = false;

typedef float f32x4 __attribute__((vector_size(16)));
typedef uint32_t u32x4 __attribute__((vector_size(16)));

struct Floats {
  f32x4 q[kQuarters];
};
struct Words {
  u32x4 q[kQuarters];
};

#define WAVENET_EACH(result, expression)  \
  do {                                    \
    for (int i = 0; i < kQuarters; ++i) { \
      (result).q[i] = expression;         \
    }                                     \
  } while (0)

static WAVENET_INLINE Floats splat(float x) {
  Floats r;
  WAVENET_EACH(r, (f32x4{x, x, x, x}));
  return r;
}
static WAVENET_INLINE Floats load(const float* p) {
  Floats r;
  std::memcpy(&r, p, sizeof r);
  return r;
}
static WAVENET_INLINE void store(float* p, Floats a) { std::memcpy(p, &a, sizeof a); }
static WAVENET_INLINE Floats add(Floats a, Floats b) {
  WAVENET_EACH(a, a.q[i] + b.q[i]);
  return a;
}
static WAVENET_INLINE Floats sub(Floats a, Floats b) {
  WAVENET_EACH(a, a.q[i] - b.q[i]);
  return a;
}
static WAVENET_INLINE Floats mul(Floats a, Floats b) {
  WAVENET_EACH(a, a.q[i] * b.q[i]);
  return a;
}
static WAVENET_INLINE Floats div(Floats a, Floats b) {
  WAVENET_EACH(a, a.q[i] / b.q[i]);
  return a;
}
// Two roundings where the CPU has no fused multiply-add: the C library's exact one would cost a call per element.
static WAVENET_INLINE Floats fma(Floats a, Floats b, Floats c) {
#if defined(__FP_FAST_FMAF) || defined(__aarch64__)
  for (int i = 0; i < kQuarters; ++i) {
    for (int j = 0; j < 4; ++j) c.q[i][j] = __builtin_fmaf(a.q[i][j], b.q[i][j], c.q[i][j]);
  }
#else
  WAVENET_EACH(c, a.q[i] * b.q[i] + c.q[i]);
#endif
  return c;
}
static WAVENET_INLINE Words bits(Floats a) {
  Words r;
  WAVENET_EACH(r, reinterpret_cast<u32x4>(a.q[i]));
  return r;
}
static WAVENET_INLINE Floats floats(Words a) {
  Floats r;
  WAVENET_EACH(r, reinterpret_cast<f32x4>(a.q[i]));
  return r;
}
static WAVENET_INLINE Words splat_word(uint32_t x) {
  Words r;
  WAVENET_EACH(r, (u32x4{x, x, x, x}));
  return r;
}
static WAVENET_INLINE Words load_words(const void* p) {
  Words r;
  std::memcpy(&r, p, sizeof r);
  return r;
}
static WAVENET_INLINE Words add(Words a, Words b) {
  WAVENET_EACH(a, a.q[i] + b.q[i]);
  return a;
}
static WAVENET_INLINE Words bit_and(Words a, Words b) {
  WAVENET_EACH(a, a.q[i] & b.q[i]);
  return a;
}
template <int n>
static WAVENET_INLINE Words shift_left(Words a) {
  WAVENET_EACH(a, a.q[i] << n);
  return a;
}
template <int n>
static WAVENET_INLINE Words shift_right(Words a) {
  WAVENET_EACH(a, a.q[i] >> n);
  return a;
}
static WAVENET_INLINE Floats max(Floats a, Floats b) {
  Words r;
  for (int i = 0; i < kQuarters; ++i) {
    const u32x4 greater = reinterpret_cast<u32x4>(a.q[i] > b.q[i]);
    r.q[i] = (reinterpret_cast<u32x4>(a.q[i]) & greater) | (reinterpret_cast<u32x4>(b.q[i]) & ~greater);
  }
  return floats(r);
}
static WAVENET_INLINE Floats min(Floats a, Floats b) {
  Words r;
  for (int i = 0; i < kQuarters; ++i) {
    const u32x4 less = reinterpret_cast<u32x4>(a.q[i] < b.q[i]);
    r.q[i] = (reinterpret_cast<u32x4>(a.q[i]) & less) | (reinterpret_cast<u32x4>(b.q[i]) & ~less);
  }
  return floats(r);
}
static WAVENET_INLINE void store_low_halves(uint16_t* p, Words a) {
  for (int i = 0; i < kQuarters; ++i) {
    for (int j = 0; j < 4; ++j) p[4 * i + j] = static_cast<uint16_t>(a.q[i][j]);
  }
}
// acc + Σ over the two halves of each word, low half first, as two multiply-adds.
static WAVENET_INLINE Floats dot_pair(Floats acc, Words w, Words x) {
  const Words high = splat_word(0xFFFF0000u);
  acc = fma(floats(shift_left<16>(w)), floats(shift_left<16>(x)), acc);
  return fma(floats(bit_and(w, high)), floats(bit_and(x, high)), acc);
}

static WAVENET_INLINE Floats quotient(Floats a, Floats b) { return div(a, b); }
static WAVENET_INLINE float highest(Floats a) {
  float lanes[kLanes];
  std::memcpy(lanes, &a, sizeof lanes);
  for (int n = kLanes / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) lanes[i] = lanes[i] > lanes[i + n] ? lanes[i] : lanes[i + n];
  }
  return lanes[0];
}
static WAVENET_INLINE float sum(Floats a) {
  float lanes[kLanes];
  std::memcpy(lanes, &a, sizeof lanes);
  for (int n = kLanes / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) lanes[i] += lanes[i + n];
  }
  return lanes[0];
}
static WAVENET_INLINE Floats convert(Words a) {
  Floats r;
  for (int i = 0; i < kQuarters; ++i) {
    for (int j = 0; j < 4; ++j) r.q[i][j] = static_cast<float>(static_cast<int32_t>(a.q[i][j]));
  }
  return r;
}
// Exponents 1 … 30 are moved to where fp32 has them; numbers below are made by a subtraction, which is exact.
static WAVENET_INLINE Floats load_halves(const uint16_t* p) {
  Words half;
  for (int i = 0; i < kLanes; ++i) half.q[i / 4][i % 4] = p[i];
  const Words size = shift_left<13>(bit_and(half, splat_word(0x7FFF)));
  Words normal = add(size, splat_word(112u << 23));
  const Words small = bits(sub(floats(add(size, splat_word(113u << 23))), splat(6.103515625e-5f)));
  for (int i = 0; i < kQuarters; ++i) {
    const u32x4 below = reinterpret_cast<u32x4>(size.q[i] < (1u << 23));
    normal.q[i] = (small.q[i] & below) | (normal.q[i] & ~below);
  }
  const Words sign = shift_left<16>(bit_and(half, splat_word(0x8000)));
  WAVENET_EACH(normal, normal.q[i] | sign.q[i]);
  return floats(normal);
}
static WAVENET_INLINE void store_low_bytes(int8_t* p, Words a) {
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(a.q[i / 4][i % 4]);
}
struct Quads {
  int32_t x[4];
};
static WAVENET_INLINE Quads splat_quad(uint32_t four) {
  Quads r;
  for (int j = 0; j < 4; ++j) r.x[j] = static_cast<int8_t>(four >> 8 * j);
  return r;
}
static WAVENET_INLINE Words dot_quad(Words acc, Words w, Quads x) {
  int8_t bytes[4 * kLanes];
  std::memcpy(bytes, &w, sizeof bytes);
  for (int i = 0; i < kLanes; ++i) {
    int32_t sum = 0;
    for (int j = 0; j < 4; ++j) sum += bytes[4 * i + j] * x.x[j];
    acc.q[i / 4][i % 4] += static_cast<uint32_t>(sum);
  }
  return acc;
}

#undef WAVENET_EACH
