// Products by AMX tiles: one row of operands per stream, one tile of weights for 16 rows of the matrix, one row of sums
// per stream. A tile of weights is read once for all streams of a team, and multiplied as fast for 16 as for one.
//
// Each sum is made run by run in k, in the order of the hardware within a run (Intel SDM, TDPBF16PS: even and odd
// neighbours apart, then added): that order knows nothing of how many rows a tile has.
//
// Tiles by number: sums 0 … 3, operands 4, weights 5 … 7. They are written as assembly because compilers know tiles
// only by number and have no say in them.

#define WAVENET_TILE_LOAD(tile, from, stride) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"(static_cast<int64_t>(stride)) : "memory")
#define WAVENET_TILE_STORE(tile, to, stride) \
  __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"(static_cast<int64_t>(stride)) : "memory")
#define WAVENET_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : :)
#define WAVENET_TILE_DOT(F, sum, weights)                                      \
  do {                                                                         \
    if constexpr (F::kNumber == Number::bf16) {                                \
      __asm__ volatile("tdpbf16ps %%tmm" #weights ", %%tmm4, %%tmm" #sum : :); \
    } else {                                                                   \
      __asm__ volatile("tdpbssd %%tmm" #weights ", %%tmm4, %%tmm" #sum : :);   \
    }                                                                          \
  } while (0)

constexpr int64_t kTileBytes = 1024, kTileRow = 64;

// The shapes of the tiles, set while products are made.
class Tiles {
 public:
  Tiles() = default;
  ~Tiles() {
    if (streams_) __asm__ volatile("tilerelease" : :);
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  void serve(int streams) {
    if (streams == streams_) return;
    streams_ = streams;
    alignas(64) uint8_t config[64] = {};  // Intel SDM vol. 1, 18.2: palette, then bytes per row, then rows
    config[0] = 1;
    for (int tile = 0; tile < 8; ++tile) {
      config[16 + 2 * tile] = kTileRow;
      config[48 + tile] = static_cast<uint8_t>(tile < 5 ? streams : 16);
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
  }

 private:
  int streams_ = 0;
};

// Sums of NV vectors in tiles 0 and 1, or 2 and 3: pairs take turns, so that one is stored while the next is made.
#define WAVENET_TILE_SUMS(PAIR, first, second)                                                               \
  template <class F, int NV>                                                                                 \
  static WAVENET_INLINE void add_segment##PAIR(const char* w, int64_t step, const char* x, int64_t x_stride, \
                                               int64_t runs) {                                               \
    for (int64_t r = 0; r < runs; ++r) {                                                                     \
      WAVENET_TILE_LOAD(4, x + r * kTileRow, x_stride);                                                      \
      WAVENET_TILE_LOAD(6, w, kTileRow);                                                                     \
      WAVENET_TILE_DOT(F, first, 6);                                                                         \
      if constexpr (NV > 1) {                                                                                \
        WAVENET_TILE_LOAD(7, w + kTileBytes, kTileRow);                                                      \
        WAVENET_TILE_DOT(F, second, 7);                                                                      \
      }                                                                                                      \
      w += step;                                                                                             \
    }                                                                                                        \
  }                                                                                                          \
  template <int NV>                                                                                          \
  static WAVENET_INLINE void load_sums##PAIR(const float* from, int64_t stride) {                            \
    WAVENET_TILE_LOAD(first, from, stride);                                                                  \
    if constexpr (NV > 1) WAVENET_TILE_LOAD(second, from + 16, stride);                                      \
  }                                                                                                          \
  template <int NV>                                                                                          \
  static WAVENET_INLINE void zero_sums##PAIR() {                                                             \
    WAVENET_TILE_ZERO(first);                                                                                \
    if constexpr (NV > 1) WAVENET_TILE_ZERO(second);                                                         \
  }                                                                                                          \
  template <int NV, class T>                                                                                 \
  static WAVENET_INLINE void store_sums##PAIR(T* to, int64_t stride) {                                       \
    WAVENET_TILE_STORE(first, to, stride);                                                                   \
    if constexpr (NV > 1) WAVENET_TILE_STORE(second, to + 16, stride);                                       \
  }

WAVENET_TILE_SUMS(0, 0, 1)
WAVENET_TILE_SUMS(1, 2, 3)

// NV vectors of rows of one block.
template <class F, int NV, int PAIR>
static WAVENET_INLINE void multiply_tiles(const Matrix& m, const Block<F>& block, int64_t vector, Range segments,
                                          const Operands<F>& x, int64_t n, Sums out) {
  using Operand = typename F::Operand;
  constexpr int64_t kRun = kTileRow / static_cast<int64_t>(sizeof(Operand));
  const int64_t runs = m.k / kRun, step = block.width * kTileBytes, row = vector * kLanes;
  const char* w = reinterpret_cast<const char*>(block.weights) + (vector - block.first) * kTileBytes;
  const int64_t x_stride = x.stride * static_cast<int64_t>(sizeof(Operand));
  float* first = out.out + row;
  const auto add = [&](int64_t s) __attribute__((always_inline)) {
    const char* operands = reinterpret_cast<const char*>(x.x + s * x.segment);
    PAIR ? add_segment1<F, NV>(w + s * runs * step, step, operands, x_stride, runs)
         : add_segment0<F, NV>(w + s * runs * step, step, operands, x_stride, runs);
  };
  if constexpr (F::kNumber == Number::bf16) {
    const float* from = out.start ? out.start + row : first;
    const int64_t from_stride = out.start ? 0 : out.stride * 4;
    PAIR ? load_sums1<NV>(from, from_stride) : load_sums0<NV>(from, from_stride);
    for (int64_t s = segments.first; s < segments.last; ++s) add(s);
    PAIR ? store_sums1<NV>(first, out.stride * 4) : store_sums0<NV>(first, out.stride * 4);
  } else {
    alignas(64) int32_t sums[kMaxWidth * NV * 16];
    const int64_t rows = m.vectors * kLanes;
    for (int64_t s = segments.first; s < segments.last; ++s) {
      PAIR ? zero_sums1<NV>() : zero_sums0<NV>();
      add(s);
      PAIR ? store_sums1<NV>(sums, NV * 64) : store_sums0<NV>(sums, NV * 64);
      for (int64_t b = 0; b < n; ++b) {
        const Floats unit = splat(x.scale[b * x.scale_stride + s * x.scale_segment]);
        for (int v = 0; v < NV; ++v) {
          float* at = first + b * out.stride + v * kLanes;
          const Floats scale = load(m.scale + s * rows + row + v * kLanes);
          const float* before = out.start && s == segments.first ? out.start + row + v * kLanes : at;
          store(at, scaled_sum(load_words(sums + (b * NV + v) * 16), scale, unit, load(before)));
        }
      }
    }
  }
}

// One stream in int8 by vectors: a product and its scaling from registers are faster than a tile with one row and the
// way through memory, and the sums, being exact, are the same. Even and odd words of a run have sums of their own.
template <int NV>
static WAVENET_INLINE void multiply_quads(const Matrix& m, const Block<Int8>& block, int64_t vector, Range segments,
                                          const Operands<Int8>& x, Sums out) {
  const int64_t runs = m.k / kTileRow, step = block.width * kTileBytes, row = vector * kLanes,
                rows = m.vectors * kLanes;
  for (int64_t s = segments.first; s < segments.last; ++s) {
    const int8_t* w = block.weights + (vector - block.first) * kTileBytes + s * runs * step;
    const int8_t* operands = x.x + s * x.segment;
    Words sum[2][NV];
    for (int v = 0; v < NV; ++v) {
      sum[0][v] = kUnsignedQuads ? load_words(m.offset + s * rows + row + v * kLanes) : splat_word(0);
      sum[1][v] = splat_word(0);
    }
    for (int64_t r = 0; r < runs; ++r, w += step, operands += kTileRow) {
#pragma GCC unroll 16
      for (int word = 0; word < 16; ++word) {
        const Quads operand = Int8::spread(operands + 4 * word);
        for (int v = 0; v < NV; ++v) {
          Words& to = sum[word % 2][v];
          to = dot_quad(to, load_words(w + v * kTileBytes + word * kTileRow), operand);
        }
      }
    }
    const Floats unit = splat(x.scale[s * x.scale_segment]);
    for (int v = 0; v < NV; ++v) {
      float* at = out.out + row + v * kLanes;
      const float* before = out.start && s == segments.first ? out.start + row + v * kLanes : at;
      const Floats scale = load(m.scale + s * rows + row + v * kLanes);
      store(at, scaled_sum(add(sum[0][v], sum[1][v]), scale, unit, load(before)));
    }
  }
}

static void multiply_by_quads(const Matrix& m, const Layout& layout, Range vectors, Range segments,
                              const Operands<Int8>& x, Sums out) {
  for_blocks<Int8>(m, layout, vectors, [&](const Block<Int8>& block, Range part) {
    if (part.size() == 2) {
      multiply_quads<2>(m, block, part.first, segments, x, out);
    } else {
      multiply_quads<1>(m, block, part.first, segments, x, out);
    }
  });
}

template <class F>
static void multiply_by_tiles(const Matrix& m, const Layout& layout, Range vectors, Range segments,
                              const Operands<F>& x, int64_t n, Sums out) {
  if constexpr (F::kNumber == Number::int8) {
    if (n == 1) return multiply_by_quads(m, layout, vectors, segments, x, out);
  }
  bool odd = false;
  for_blocks<F>(m, layout, vectors, [&](const Block<F>& block, Range part) {
    if (part.size() == 1) {
      multiply_tiles<F, 1, 0>(m, block, part.first, segments, x, n, out);
    } else if (odd) {
      multiply_tiles<F, 2, 1>(m, block, part.first, segments, x, n, out);
    } else {
      multiply_tiles<F, 2, 0>(m, block, part.first, segments, x, n, out);
    }
    odd = !odd;
  });
}
