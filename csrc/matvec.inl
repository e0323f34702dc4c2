// Matrix-vector products. One input (fp32) or a pair (bf16) is broadcast against a block of up to kAccumulators vectors
// of rows, sequentially in k: the order in which an output is summed depends on nothing else.

// acc[v] += Σ_k w[k][v]·x[k]
template <int NV>
WAVENET_INLINE void accumulate(Floats (&acc)[NV], const float* w, const float* x, int64_t k) {
  for (int64_t i = 0; i < k; ++i) {
    const Floats xi = splat(x[i]);
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[v] = fma(load(w + v * kLanes), xi, acc[v]);
    w += NV * kLanes;
  }
}

// The same in bf16; k even, two neighbours in one word, each product in fp32.
template <int NV>
WAVENET_INLINE void accumulate(Floats (&acc)[NV], const uint16_t* w, const uint16_t* x, int64_t k) {
  for (int64_t i = 0; i < k; i += 2) {
    uint32_t pair;
    __builtin_memcpy(&pair, x + i, sizeof pair);
    const Words xi = splat_word(pair);
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[v] = dot_pair(acc[v], load_words(w + v * 2 * kLanes), xi);
    w += NV * 2 * kLanes;
  }
}

// job.run<n>(…) for 1 ≤ n ≤ NV.
template <int NV, class T, class Job>
WAVENET_INLINE void run_block(int64_t n, const T* w, int64_t row, const Job& job) {
  if constexpr (NV == 1) {
    job.template run<1>(w, row);
  } else if (n == NV) {
    job.template run<NV>(w, row);
  } else {
    run_block<NV - 1>(n, w, row, job);
  }
}

// Calls job.run<vectors of the block>(weights of the block, its first row) for each block of the matrix.
template <class T, class Job>
static void for_blocks(const Matrix& m, const Job& job) {
  const T* w = static_cast<const T*>(m.data);
  for (int64_t v = 0; v < m.vectors; v += kAccumulators) {
    const int64_t row = v * kLanes, n = m.vectors - v < kAccumulators ? m.vectors - v : kAccumulators;
    run_block<kAccumulators>(n, w, row, job);
    w += n * kLanes * m.segments * m.k;
  }
}

// out = start + more + Σ_s W[s]·x[s]
template <class T>
struct Product {
  const T* const* x;  // one pointer per segment
  int64_t segments, k;
  const float *start, *more;
  float* out;

  template <int NV>
  void run(const T* w, int64_t row) const {
    Floats acc[NV];
    for (int v = 0; v < NV; ++v) acc[v] = add(load(start + row + v * kLanes), load(more + row + v * kLanes));
    for (int64_t s = 0; s < segments; ++s) accumulate(acc, w + s * k * NV * kLanes, x[s], k);
    for (int v = 0; v < NV; ++v) store(out + row + v * kLanes, acc[v]);
  }
};

// out = bias + W·x
template <class T>
struct Dense {
  const T* x;
  int64_t k;
  const float* bias;
  float* out;

  template <int NV>
  void run(const T* w, int64_t row) const {
    Floats acc[NV];
    for (int v = 0; v < NV; ++v) acc[v] = load(bias + row + v * kLanes);
    accumulate(acc, w, x, k);
    for (int v = 0; v < NV; ++v) store(out + row + v * kLanes, acc[v]);
  }
};

// The skip products of all layers in one pass, the sums in registers from the first layer to the last.
// sum: scale·Σ (W[l]·g[l] + bias[l]);  running: total = (total + W[l]·g[l] + bias[l])·scale at every layer but the
// first.
template <class T>
struct SkipSum {
  const T* gates;  // (layers, gate_stride)
  int64_t gate_stride, layers, k;
  const float* bias;  // (layers, rows)
  int64_t rows;
  float scale;
  bool running;
  float* out;

  template <int NV>
  void run(const T* w, int64_t row) const {
    const Floats factor = splat(scale);
    Floats acc[NV];
    for (int v = 0; v < NV; ++v) acc[v] = splat(0.f);
    for (int64_t l = 0; l < layers; ++l) {
      for (int v = 0; v < NV; ++v) acc[v] = add(acc[v], load(bias + l * rows + row + v * kLanes));
      accumulate(acc, w + l * k * NV * kLanes, gates + l * gate_stride, k);
      if (running && l > 0) {
        for (int v = 0; v < NV; ++v) acc[v] = mul(acc[v], factor);
      }
    }
    for (int v = 0; v < NV; ++v) store(out + row + v * kLanes, running ? acc[v] : mul(acc[v], factor));
  }
};
