// Number formats: what a weight is, what an activation becomes before it meets one (an operand), and one step of their
// product. Sums are fp32, in int8 int32 and exact.
//
//   Fp32  weights and operands float
//   Fp16  weights half, widened before they are multiplied; operands float
//   Bf16  both bfloat16, two neighbours in k in a word
//   Int8  both int8, four neighbours in k in a word; each row of weights and each vector of operands has a scale
//
// spread(x)           the operands of one step, the same in all lanes
// step(sum, w, x)     sum + the products of one vector of weights at w

struct Fp32 {
  using Weight = float;
  using Operand = float;
  using Sum = Floats;
  static constexpr Number kNumber = Number::fp32;
  static constexpr int kPack = 1;
  static WAVENET_INLINE Floats fetch(const float* w) { return load(w); }
  static WAVENET_INLINE Floats spread(const float* x) { return splat(*x); }
  static WAVENET_INLINE Floats step(Floats sum, Floats w, Floats x) { return fma(w, x, sum); }
};

struct Fp16 {
  using Weight = uint16_t;
  using Operand = float;
  using Sum = Floats;
  static constexpr Number kNumber = Number::fp16;
  static constexpr int kPack = 1;
  static WAVENET_INLINE Floats fetch(const uint16_t* w) { return load_halves(w); }
  static WAVENET_INLINE Floats spread(const float* x) { return splat(*x); }
  static WAVENET_INLINE Floats step(Floats sum, Floats w, Floats x) { return fma(w, x, sum); }
};

struct Bf16 {
  using Weight = uint16_t;
  using Operand = uint16_t;
  using Sum = Floats;
  static constexpr Number kNumber = Number::bf16;
  static constexpr int kPack = 2;
  static WAVENET_INLINE Words fetch(const uint16_t* w) { return load_words(w); }
  static WAVENET_INLINE Words spread(const uint16_t* x) {
    uint32_t pair;
    __builtin_memcpy(&pair, x, sizeof pair);
    return splat_word(pair);
  }
  static WAVENET_INLINE Floats step(Floats sum, Words w, Words x) { return dot_pair(sum, w, x); }
};

struct Int8 {
  using Weight = int8_t;
  using Operand = int8_t;
  using Sum = Words;
  static constexpr Number kNumber = Number::int8;
  static constexpr int kPack = 4;
  static WAVENET_INLINE Words fetch(const int8_t* w) { return load_words(w); }
  static WAVENET_INLINE Quads spread(const int8_t* x) {
    uint32_t quad;
    __builtin_memcpy(&quad, x, sizeof quad);
    return splat_quad(quad);
  }
  static WAVENET_INLINE Words step(Words sum, Words w, Quads x) { return dot_quad(sum, w, x); }
};

// bf16: rounded to nearest, ties to even.
static WAVENET_INLINE void store_operand(float* p, Floats a) { store(p, a); }
static WAVENET_INLINE void store_operand(uint16_t* p, Floats a) { store_bf16(p, a); }
static WAVENET_INLINE void store_operand(int8_t*, Floats) {}  // never called: int8 rounds whole vectors, see below

// Channels c … c + kLanes − 1 of n; those beyond become zero, so that what stands there never meets a weight.
template <class Operand>
static WAVENET_INLINE void store_part(Operand* operands, int64_t c, int64_t n, Floats a) {
  if (c + kLanes <= n) {
    store_operand(operands + c, a);
  } else {
    store_operand(operands + c, first(n - c, a));
  }
}

// `read(i)` (n numbers) → operands; those of the last vector beyond n become zero, so that what stands there never
// meets a weight.
template <class Operand, class Read>
static WAVENET_INLINE void to_operands(const Read& read, int64_t n, Operand* operands, float*) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_operand(operands + i, read(i));
  if (i < n) store_operand(operands + i, first(n - i, read(i)));
}

// int8: x ≈ q · scale with scale = max|x| / 127 and q = x · (127 / max|x|) to the nearest integer, ties to even.
template <class Read>
static WAVENET_INLINE void to_operands(const Read& read, int64_t n, int8_t* operands, float* scale) {
  Floats top = splat(0.f);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) top = max(magnitude(read(i)), top);
  if (i < n) top = max(magnitude(first(n - i, read(i))), top);
  const float largest = highest(top);
  const bool any = largest > kSmallest;
  *scale = any ? largest / 127.f : 0.f;
  const Floats factor = splat(any ? 127.f / largest : 0.f);
  i = 0;
  for (; i + kLanes <= n; i += kLanes) store_low_bytes(operands + i, nearest(mul(read(i), factor)));
  if (i < n) store_low_bytes(operands + i, nearest(mul(first(n - i, read(i)), factor)));
}
