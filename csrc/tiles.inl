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

// NV vectors of rows of one block, whose sums are in tiles of PAIR: one segment is added to them.
template <class F, int NV, int PAIR>
static WAVENET_INLINE void add_segment(const Matrix& m, const Block<F>& block, int64_t vector, int64_t segment,
                                       const Operands<F>& x) {
  using Operand = typename F::Operand;
  constexpr int64_t kRun = kTileRow / static_cast<int64_t>(sizeof(Operand));
  const int64_t runs = m.k / kRun, step = block.width * kTileBytes;
  const char* w = reinterpret_cast<const char*>(block.weights) + (vector - block.first) * kTileBytes;
  const char* operands = reinterpret_cast<const char*>(x.x + segment * x.segment);
  const int64_t x_stride = x.stride * static_cast<int64_t>(sizeof(Operand));
  w += segment * runs * step;
  PAIR ? add_segment1<F, NV>(w, step, operands, x_stride, runs)
       : add_segment0<F, NV>(w, step, operands, x_stride, runs);
}

template <int NV, int PAIR>
static WAVENET_INLINE void multiply_tiles(const Matrix& m, const Block<Bf16>& block, int64_t vector, Range segments,
                                          const Operands<Bf16>& x, Sums out) {
  const int64_t row = vector * kLanes;
  const float* from = out.from(0, row);
  const int64_t from_stride = out.start ? 0 : out.stride * 4;
  PAIR ? load_sums1<NV>(from, from_stride) : load_sums0<NV>(from, from_stride);
  for (int64_t s = segments.first; s < segments.last; ++s) add_segment<Bf16, NV, PAIR>(m, block, vector, s, x);
  PAIR ? store_sums1<NV>(out.out + row, out.stride * 4) : store_sums0<NV>(out.out + row, out.stride * 4);
}

// In int8 the sums of each segment of a few rows are numbers of their own, which are scaled and added while the tiles
// are busy with the next: what a tile has stored cannot be read at once.
class SegmentSums {
 public:
  SegmentSums(const Matrix& m, Range segments, const Operands<Int8>& x, int64_t n, Sums out)
      : m_(m), x_(x), n_(n), out_(out), first_(segments.first) {}
  ~SegmentSums() {
    if (made_) scale(made_ - 1);
  }

  template <int NV>
  void make(const Block<Int8>& block, int64_t vector, int64_t segment) {
    made_ % 2 ? make<NV, 1>(block, vector, segment) : make<NV, 0>(block, vector, segment);
    rows_[made_ % 2] = {vector * kLanes, segment, NV};
    if (made_) scale(made_ - 1);
    ++made_;
  }

 private:
  struct Rows {
    int64_t row, segment;
    int vectors;
  };
  const Matrix& m_;
  const Operands<Int8>& x_;
  const int64_t n_;
  const Sums out_;
  const int64_t first_;  // segment
  int64_t made_ = 0;
  Rows rows_[2];
  alignas(64) int32_t sums_[2][kMaxWidth * kTileVectors * 16];

  template <int NV, int PAIR>
  WAVENET_INLINE void make(const Block<Int8>& block, int64_t vector, int64_t segment) {
    PAIR ? zero_sums1<NV>() : zero_sums0<NV>();
    add_segment<Int8, NV, PAIR>(m_, block, vector, segment, x_);
    PAIR ? store_sums1<NV>(sums_[1], NV * 64) : store_sums0<NV>(sums_[0], NV * 64);
  }

  void scale(int64_t which) {
    rows_[which % 2].vectors == 2 ? scale<2>(rows_[which % 2], sums_[which % 2])
                                  : scale<1>(rows_[which % 2], sums_[which % 2]);
  }
  template <int NV>
  WAVENET_INLINE void scale(const Rows rows, const int32_t* sums) {
    const bool start = out_.start && rows.segment == first_;
    const float* from = out_.from(0, rows.row, start);
    const int64_t from_stride = start ? 0 : out_.stride;
    const float* scales = m_.scale + rows.segment * m_.vectors * kLanes + rows.row;
    Floats scale[NV];
    for (int v = 0; v < NV; ++v) scale[v] = load(scales + v * kLanes);
    float* to = out_.out + rows.row;
    for (int64_t b = 0; b < n_; ++b, to += out_.stride, from += from_stride, sums += NV * 16) {
      const Floats unit = splat(x_.scale[b * x_.scale_stride + rows.segment * x_.scale_segment]);
      for (int v = 0; v < NV; ++v) {
        const Floats before = load(from + v * kLanes);
        store(to + v * kLanes, scaled_sum(load_words(sums + v * 16), scale[v], unit, before));
      }
    }
  }
};

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
      const float* before = out.from(0, row + v * kLanes, s == segments.first);
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

static void multiply_by_tiles(const Matrix& m, const Layout& layout, Range vectors, Range segments,
                              const Operands<Int8>& x, int64_t n, Sums out) {
  if (n == 1) return multiply_by_quads(m, layout, vectors, segments, x, out);
  SegmentSums sums(m, segments, x, n, out);
  for_blocks<Int8>(m, layout, vectors, [&](const Block<Int8>& block, Range part) {
    for (int64_t s = segments.first; s < segments.last; ++s) {
      part.size() == 2 ? sums.make<2>(block, part.first, s) : sums.make<1>(block, part.first, s);
    }
  });
}

static void multiply_by_tiles(const Matrix& m, const Layout& layout, Range vectors, Range segments,
                              const Operands<Bf16>& x, int64_t, Sums out) {
  bool odd = false;
  for_blocks<Bf16>(m, layout, vectors, [&](const Block<Bf16>& block, Range part) {
    if (part.size() == 1) {
      multiply_tiles<1, 0>(m, block, part.first, segments, x, out);
    } else if (odd) {
      multiply_tiles<2, 1>(m, block, part.first, segments, x, out);
    } else {
      multiply_tiles<2, 0>(m, block, part.first, segments, x, out);
    }
    odd = !odd;
  });
}
