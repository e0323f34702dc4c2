// Matrix-vector products of several streams. One step of inputs (one number, a pair, or four) is broadcast against
// vectors of rows, sequentially in k: the order in which an output is summed depends on nothing else, neither on how
// many rows or streams are worked on together.

// The operands of n streams: segment s of stream b at x + b·stride + s·segment. In int8 a unit of it is worth
// scale[b·scale_stride + s·scale_segment].
template <class F>
struct Operands {
  const typename F::Operand* x;
  int64_t stride;
  const float* scale;
  int64_t scale_stride = 1;
  // One vector for all segments, unless these say otherwise.
  int64_t segment = 0, scale_segment = 0;
};

// The sums of n streams: row r of stream b at out + b·stride + r. They begin at start[r] for every stream, a bias, or
// without one at what stands there.
struct Sums {
  float* out;
  int64_t stride;
  const float* start = nullptr;
  // Where the sums of a stream begin, from a row on; those of its later segments stand in `out`.
  WAVENET_INLINE const float* from(int64_t b, int64_t row, bool first = true) const {
    return start && first ? start + row : out + b * stride + row;
  }
};

// sum[b][v] += Σ_k w[k][v] · x[b][k] for NV vectors of rows and NB streams. `step` is how far apart in memory the
// weights of two steps are.
template <class F, int NV, int NB>
static WAVENET_INLINE void accumulate(typename F::Sum (&sum)[NB][NV], const typename F::Weight* w, int64_t step,
                                      const typename F::Operand* x, int64_t x_stride, int64_t k) {
  for (int64_t i = 0; i < k; i += F::kPack) {
    if constexpr (NB == 1) {
      const auto operand = F::spread(x + i);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) sum[0][v] = F::step(sum[0][v], F::fetch(w + v * F::kPack * kLanes), operand);
    } else {
      decltype(F::fetch(w)) weights[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) weights[v] = F::fetch(w + v * F::kPack * kLanes);
#pragma GCC unroll 8
      for (int b = 0; b < NB; ++b) {
        const auto operand = F::spread(x + b * x_stride + i);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) sum[b][v] = F::step(sum[b][v], weights[v], operand);
      }
    }
    w += step;
  }
}

// Vectors `first` … `first` + `width` − 1 of a matrix, packed together; `step` as in `accumulate`.
template <class F>
struct Block {
  const typename F::Weight* weights;
  int64_t first, width, step;
};

template <class F, int NV, int NB>
static void multiply_block(const Matrix& m, const Block<F>& block, int64_t vector, Range segments, const Operands<F>& x,
                           Sums out) {
  const auto* w = block.weights + (vector - block.first) * F::kPack * kLanes;
  const int64_t row = vector * kLanes, segment_size = m.k * block.width * kLanes;
  float* first = out.out + row;
  if constexpr (F::kNumber != Number::int8) {
    Floats sum[NB][NV];
    for (int b = 0; b < NB; ++b) {
      const float* from = out.from(b, row);
      for (int v = 0; v < NV; ++v) sum[b][v] = load(from + v * kLanes);
    }
    for (int64_t s = segments.first; s < segments.last; ++s) {
      accumulate<F, NV, NB>(sum, w + s * segment_size, block.step, x.x + s * x.segment, x.stride, m.k);
    }
    for (int b = 0; b < NB; ++b) {
      for (int v = 0; v < NV; ++v) store(first + b * out.stride + v * kLanes, sum[b][v]);
    }
  } else {
    const int64_t rows = m.vectors * kLanes;
    for (int64_t s = segments.first; s < segments.last; ++s) {
      Words sum[NB][NV];
      for (int b = 0; b < NB; ++b) {
        for (int v = 0; v < NV; ++v)
          sum[b][v] = kUnsignedQuads ? load_words(m.offset + s * rows + row + v * kLanes) : splat_word(0);
      }
      accumulate<F, NV, NB>(sum, w + s * segment_size, block.step, x.x + s * x.segment, x.stride, m.k);
      for (int b = 0; b < NB; ++b) {
        const Floats unit = splat(x.scale[b * x.scale_stride + s * x.scale_segment]);
        for (int v = 0; v < NV; ++v) {
          float* at = first + b * out.stride + v * kLanes;
          const float* before = out.from(b, row + v * kLanes, s == segments.first);
          store(at, scaled_sum(sum[b][v], load(m.scale + s * rows + row + v * kLanes), unit, load(before)));
        }
      }
    }
  }
}

// Vectors [vector, last) of a block, NV at a time and fewer where fewer are left.
template <class F, int NV, int NB>
static WAVENET_INLINE void multiply_vectors(const Matrix& m, const Block<F>& block, int64_t vector, int64_t last,
                                            Range segments, const Operands<F>& x, Sums out) {
  for (; last - vector >= NV; vector += NV) multiply_block<F, NV, NB>(m, block, vector, segments, x, out);
  if constexpr (NV > 1) {
    if (vector < last) multiply_vectors<F, (NV > 4 ? NV - 1 : NV / 2), NB>(m, block, vector, last, segments, x, out);
  }
}

// Streams [b, n), NB at a time and fewer where fewer are left.
template <class F, int NB>
static WAVENET_INLINE void multiply_streams(const Matrix& m, const Block<F>& block, Range vectors, Range segments,
                                            Operands<F> x, int64_t n, Sums out) {
  constexpr int kVectors = NB == 1 ? kAccumulators : kAccumulators / 2;
  for (; n >= NB; n -= NB) {
    multiply_vectors<F, kVectors, NB>(m, block, vectors.first, vectors.last, segments, x, out);
    x.x += NB * x.stride;
    x.scale += NB * x.scale_stride;
    out.out += NB * out.stride;
  }
  if constexpr (NB > 1) {
    if (n > 0) multiply_streams<F, NB / 2>(m, block, vectors, segments, x, n, out);
  }
}

// Calls job(block, vectors) for each block of the matrix that has some of `vectors`.
template <class F, class Job>
static WAVENET_INLINE void for_blocks(const Matrix& m, const Layout& layout, Range vectors, const Job& job) {
  if (vectors.size() == 0) return;
  // Copies, since everything behind a reference is read again after each store of a vector.
  const int64_t size = layout.accumulators, all = m.vectors, step = layout.run * kLanes;
  const int64_t vector_size = kLanes * m.segments * m.k;
  int64_t at = vectors.first - vectors.first % size;
  const auto* w = static_cast<const typename F::Weight*>(m.data) + at * vector_size;
  for (; at < vectors.last; at += size) {
    const int64_t width = all - at < size ? all - at : size;
    const Range part{at > vectors.first ? at : vectors.first, at + width < vectors.last ? at + width : vectors.last};
    job(Block<F>{w, at, width, width * step}, part);
    w += width * vector_size;
  }
}

// out[b] (+)= Σ_s W[s]·x[b][s] for n streams, the rows of `vectors` and the segments of `segments`.
template <class F>
static void multiply_by_vectors(const Matrix& m, const Layout& layout, Range vectors, Range segments,
                                const Operands<F>& x, int64_t n, Sums out) {
  for_blocks<F>(m, layout, vectors, [&](const Block<F>& block, Range part) {
    multiply_streams<F, kStreams>(m, block, part, segments, x, n, out);
  });
}
