// Rings of past layer inputs, and products of their older taps made ahead of time.
//
// The newest tap of a layer waits for the layer below; every other lies at least D samples back, so that for D samples
// on they stand in the ring already. Their products are made for several samples at once, and their weights, half of
// the dilated ones with two taps and two thirds of them with three, are read once for all of these: fewer bytes a
// sample, which is what one stream is waiting for. A sum passes its taps in the same order, oldest first, and is kept
// in fp32 between the older ones and the newest as it is within: no bit depends on what is made ahead.

// The ring of one layer of one stream.
template <class Operand>
struct Ring {
  Operand* slots;
  float* scales;
  int64_t now, depth, dilation;
  // Slot of tap k, which is (K−1−k)·D samples old; the oldest lies where the newest will go. `ahead` < D samples later.
  int64_t tap(int64_t k, int64_t ahead = 0) const {
    const int64_t index = now + k * dilation + ahead;
    return index < depth ? index : index - depth;
  }
};

// One slot of a ring of n operands, padding included, which is zero.
template <class Operand>
static WAVENET_INLINE void copy_slot(Operand* to, const Operand* from, int64_t n) {
  constexpr int64_t kVector = kLanes * 4 / static_cast<int64_t>(sizeof(Operand));
  for (int64_t i = 0; i < n; i += kVector) {
    store(reinterpret_cast<float*>(to + i), load(reinterpret_cast<const float*>(from + i)));
  }
}

// What one thread of a team has made ahead, for its own rows.
template <class F>
class OlderTaps {
 public:
  OlderTaps(const Model& model, Scratch& scratch) : m_(model), s_(scratch) {}

  // Whether the sums of the older taps of layer l stand for this sample.
  bool stand(int64_t l) const { return s_.ahead[l].left > 0; }
  // Where, for n streams; the newest tap is added to them in place.
  Sums sums(int64_t l, int n) const {
    const Scratch::Ahead& ahead = s_.ahead[l];
    return {row(l, (ahead.size - ahead.left) * n), m_.gate_pad};
  }
  // The sample has passed layer l.
  void pass(int64_t l) {
    if (s_.ahead[l].left > 0) --s_.ahead[l].left;
  }

  // At the beginning of a sample of n streams, all of which go on for `wanted` samples: makes what is used up, of layer
  // l from the rings rings(l, b). No further than that, so that what stands is of the streams that are there. Leaves
  // the tiles in another shape.
  template <class Rings>
  void make(const Rings& rings, int n, int64_t wanted, Range rows, Tiles& tiles) {
    if (s_.ahead_most == 1) return;
    ++clock_;
    for (int64_t l = 0; l < m_.L; ++l) {
      Scratch::Ahead& ahead = s_.ahead[l];
      if (ahead.left) continue;
      const int64_t possible = m_.dilations[l] < s_.ahead_most ? m_.dilations[l] : s_.ahead_most;
      // Each layer has its turn at another sample, so that no sample waits for all of them.
      const int64_t until_turn = possible - (clock_ + l) % possible;
      ahead.size = until_turn < wanted ? until_turn : wanted;
      if (ahead.size == 1) continue;
      ahead.left = ahead.size;
      gather(l, rings, n);
      multiply_columns(l, static_cast<int>(ahead.size) * n, rows, tiles);
    }
  }

 private:
  using Operand = typename F::Operand;
  Operand* taps(int64_t column) const {
    return static_cast<Operand*>(s_.older_taps) + column * (m_.K - 1) * m_.r_stride;
  }

  // The taps of every sample and stream in one piece, a column each.
  template <class Rings>
  void gather(int64_t l, const Rings& rings, int n) {
    for (int b = 0; b < n; ++b) {
      const Ring<Operand> ring = rings(l, b);
      for (int64_t j = 0; j < s_.ahead[l].size; ++j) {
        const int64_t column = j * n + b;
        for (int64_t k = 0; k + 1 < m_.K; ++k) {
          const int64_t slot = ring.tap(k, j);
          copy_slot(taps(column) + k * m_.r_stride, ring.slots + slot * m_.r_stride, m_.r_stride);
          if (ring.scales) s_.older_scales[column * (m_.K - 1) + k] = ring.scales[slot];
        }
      }
    }
  }

  // Tiles take kMaxWidth columns at a time, and meet the same weights while these are still nearby.
  void multiply_columns(int64_t l, int columns, Range rows, Tiles& tiles) {
    constexpr int64_t kNearby = int64_t{1} << 18;  // bytes: a part of any second cache
    const int64_t older = m_.K - 1, vector = kLanes * older * m_.dilated[l].k * sizeof(typename F::Weight);
    const int64_t some_rows = kNearby / vector / kGroupRows * kGroupRows;
    const int64_t at_once = some_rows > kGroupRows ? some_rows : kGroupRows;
    const int most = kTiled<F> ? kMaxWidth : columns;
    for (int64_t v = rows.first; v < rows.last; v += at_once) {
      const Range group{v, v + at_once < rows.last ? v + at_once : rows.last};
      for (int c = 0; c < columns; c += most) {
        const int some = columns - c < most ? columns - c : most;
        const Operands<F> inputs{taps(c), older * m_.r_stride, s_.older_scales + c * older, older, m_.r_stride, 1};
        if (kTiled<F>) tiles.serve(some);
        multiply<F>(m_.dilated[l], m_.layout, group, {0, older}, inputs, some,
                    Sums{row(l, c), m_.gate_pad, m_.dilated_bias + l * m_.gate_pad});
      }
    }
  }
  // Vectors of a block of weights: what is worked on together.
  static constexpr int64_t kGroupRows = kTiled<F> ? kTileVectors : kAccumulators;

  float* row(int64_t l, int64_t column) const {
    return s_.older_sums + (l * s_.ahead_most * s_.width + column) * m_.gate_pad;
  }

  const Model& m_;
  Scratch& s_;
  int64_t clock_ = 0;  // samples
};
