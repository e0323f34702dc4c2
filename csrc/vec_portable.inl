// Vec interface in the compilers' own vector types, 16 bytes at a time: SSE2 on x86-64, NEON on arm64.
// Set WAVENET_LANES (a multiple of 4) and WAVENET_ACCUMULATORS before inclusion. kernels.inl says what the functions
// mean.

constexpr int kLanes = WAVENET_LANES;
constexpr int kAccumulators = WAVENET_ACCUMULATORS;
constexpr int kQuads = kLanes / 4;

typedef float f32x4 __attribute__((vector_size(16)));
typedef uint32_t u32x4 __attribute__((vector_size(16)));

struct Floats {
  f32x4 q[kQuads];
};
struct Words {
  u32x4 q[kQuads];
};

#define WAVENET_EACH(result, expression) \
  do {                                   \
    for (int i = 0; i < kQuads; ++i) {   \
      (result).q[i] = expression;        \
    }                                    \
  } while (0)

WAVENET_INLINE Floats splat(float x) {
  Floats r;
  WAVENET_EACH(r, (f32x4{x, x, x, x}));
  return r;
}
WAVENET_INLINE Floats load(const float* p) {
  Floats r;
  std::memcpy(&r, p, sizeof r);
  return r;
}
WAVENET_INLINE void store(float* p, Floats a) { std::memcpy(p, &a, sizeof a); }
WAVENET_INLINE Floats add(Floats a, Floats b) {
  WAVENET_EACH(a, a.q[i] + b.q[i]);
  return a;
}
WAVENET_INLINE Floats sub(Floats a, Floats b) {
  WAVENET_EACH(a, a.q[i] - b.q[i]);
  return a;
}
WAVENET_INLINE Floats mul(Floats a, Floats b) {
  WAVENET_EACH(a, a.q[i] * b.q[i]);
  return a;
}
WAVENET_INLINE Floats div(Floats a, Floats b) {
  WAVENET_EACH(a, a.q[i] / b.q[i]);
  return a;
}
// Two roundings where the CPU has no fused multiply-add: the C library's exact one would cost a call per element.
WAVENET_INLINE Floats fma(Floats a, Floats b, Floats c) {
#if defined(__FP_FAST_FMAF) || defined(__aarch64__)
  for (int i = 0; i < kQuads; ++i) {
    for (int j = 0; j < 4; ++j) c.q[i][j] = __builtin_fmaf(a.q[i][j], b.q[i][j], c.q[i][j]);
  }
#else
  WAVENET_EACH(c, a.q[i] * b.q[i] + c.q[i]);
#endif
  return c;
}
WAVENET_INLINE Words bits(Floats a) {
  Words r;
  WAVENET_EACH(r, reinterpret_cast<u32x4>(a.q[i]));
  return r;
}
WAVENET_INLINE Floats floats(Words a) {
  Floats r;
  WAVENET_EACH(r, reinterpret_cast<f32x4>(a.q[i]));
  return r;
}
WAVENET_INLINE Words splat_word(uint32_t x) {
  Words r;
  WAVENET_EACH(r, (u32x4{x, x, x, x}));
  return r;
}
WAVENET_INLINE Words load_words(const void* p) {
  Words r;
  std::memcpy(&r, p, sizeof r);
  return r;
}
WAVENET_INLINE Words add(Words a, Words b) {
  WAVENET_EACH(a, a.q[i] + b.q[i]);
  return a;
}
WAVENET_INLINE Words bit_and(Words a, Words b) {
  WAVENET_EACH(a, a.q[i] & b.q[i]);
  return a;
}
template <int n>
WAVENET_INLINE Words shift_left(Words a) {
  WAVENET_EACH(a, a.q[i] << n);
  return a;
}
template <int n>
WAVENET_INLINE Words shift_right(Words a) {
  WAVENET_EACH(a, a.q[i] >> n);
  return a;
}
WAVENET_INLINE Floats max(Floats a, Floats b) {
  Words r;
  for (int i = 0; i < kQuads; ++i) {
    const u32x4 greater = reinterpret_cast<u32x4>(a.q[i] > b.q[i]);
    r.q[i] = (reinterpret_cast<u32x4>(a.q[i]) & greater) | (reinterpret_cast<u32x4>(b.q[i]) & ~greater);
  }
  return floats(r);
}
WAVENET_INLINE Floats min(Floats a, Floats b) {
  Words r;
  for (int i = 0; i < kQuads; ++i) {
    const u32x4 less = reinterpret_cast<u32x4>(a.q[i] < b.q[i]);
    r.q[i] = (reinterpret_cast<u32x4>(a.q[i]) & less) | (reinterpret_cast<u32x4>(b.q[i]) & ~less);
  }
  return floats(r);
}
WAVENET_INLINE void store_low_halves(uint16_t* p, Words a) {
  for (int i = 0; i < kQuads; ++i) {
    for (int j = 0; j < 4; ++j) p[4 * i + j] = static_cast<uint16_t>(a.q[i][j]);
  }
}
// acc + Σ over the two halves of each word, low half first, as two multiply-adds.
WAVENET_INLINE Floats dot_pair(Floats acc, Words w, Words x) {
  const Words high = splat_word(0xFFFF0000u);
  acc = fma(floats(shift_left<16>(w)), floats(shift_left<16>(x)), acc);
  return fma(floats(bit_and(w, high)), floats(bit_and(x, high)), acc);
}

#undef WAVENET_EACH
