// Mel → what each layer's dilated product is added to, in bounded windows just ahead of the sample loop.
//
// Every conditioning column is summed in a fixed order from columns before it, a pure function of its absolute index:
// where a window begins or ends changes no bit. What a window needs of the layer before is found by walking the
// network backwards; the overlap with the window before is computed again.

using Columns = Scratch::Columns;

// Which taps of a node meet which of its input columns for output column o, in the order of summation.
struct Walk {
  const Node& node;
  const Columns& in;
  int64_t o, length;  // length of the input, kUnbounded while the stream is open
  int64_t begin, end;

  Walk(const Node& node, const Columns& in, int64_t length) : node(node), in(in), o(0), length(length) {
    begin = 0;
    end = node.taps;
  }
  void move_to(int64_t column) {
    o = column;
    if (node.kind == NodeKind::transposed) {  // i counts input columns
      begin = floor_div(o + node.crop - node.taps, node.scale) + 1;
      end = floor_div(o + node.crop, node.scale) + 1;
      if (begin < 0) begin = 0;
      if (end > length) end = length;
    }
  }
  int64_t tap(int64_t i) const { return node.kind == NodeKind::transposed ? o + node.crop - node.scale * i : i; }
  // Null where zeros stand beyond an end.
  const float* column(int64_t i) const {
    int64_t at = i;
    if (node.kind == NodeKind::frame_conv) {
      at = o + i - node.taps / 2;
      if (node.replicate) at = at < 0 ? 0 : at >= length ? length - 1 : at;
      if (at < 0 || at >= length) return nullptr;
    } else if (node.kind == NodeKind::repeat) {
      at = floor_div(o + i - (node.taps - 1) / 2, node.scale);
      if (at < 0 || at >= length) return nullptr;
    }
    return in.at(at);
  }
};

// job.run<vectors>(weights, step, first row) over the vectors [vector, last) of a block, NV or fewer at a time.
template <int NV, class Job>
static WAVENET_INLINE void run_vectors(const Block<Fp32>& block, int64_t vector, int64_t last, const Job& job) {
  for (; last - vector >= NV; vector += NV) {
    job.template run<NV>(block.weights + (vector - block.first) * kLanes, block.step, vector * kLanes);
  }
  if constexpr (NV > 1) {
    if (vector < last) run_vectors<(NV > 4 ? NV - 1 : NV / 2)>(block, vector, last, job);
  }
}

// The same over all blocks of a matrix that have some of `vectors`.
template <class Job>
static void for_rows(const Matrix& m, const Layout& plain, Range vectors, const Job& job) {
  for_blocks<Fp32>(m, plain, vectors, [&](const Block<Fp32>& block, Range part) {
    run_vectors<kAccumulators>(block, part.first, part.last, job);
  });
}

// A convolution that mixes all channels.
struct DenseNode {
  const Node& node;
  const Columns &in, &out;
  int64_t length;
  const std::atomic<bool>& stop;

  template <int NV>
  void run(const float* w, int64_t step, int64_t row) const {
    const int64_t tap_size = node.in * step;
    if (stop.load(std::memory_order_relaxed)) return;  // the caller of `at` looks too, before it uses anything
    Walk walk(node, in, length);
    for (int64_t o = out.first; o < out.first + out.count; ++o) {
      walk.move_to(o);
      Floats sum[1][NV];
      for (int v = 0; v < NV; ++v) sum[0][v] = load(node.bias + row + v * kLanes);
      for (int64_t i = walk.begin; i < walk.end; ++i) {
        const float* x = walk.column(i);
        if (x) accumulate<Fp32, NV, 1>(sum, w + walk.tap(i) * tap_size, step, x, 0, node.in);
      }
      for (int v = 0; v < NV; ++v) store(out.at(o) + row + v * kLanes, sum[0][v]);
    }
  }
};

// A convolution of the (channels, time) picture with one small kernel. Transposed convolutions are flipped along both
// axes, as everywhere.
static void picture_node(const Node& node, const Columns& in, const Columns& out, int64_t length) {
  const int64_t reach = (node.freq_taps - 1) / 2;
  const int64_t direction = node.kind == NodeKind::transposed ? -1 : 1;
  Walk walk(node, in, length);
  for (int64_t o = out.first; o < out.first + out.count; ++o) {
    walk.move_to(o);
    for (int64_t c = 0; c < node.out; c += kLanes) {
      Floats acc = splat(node.bias[0]);
      for (int64_t i = walk.begin; i < walk.end; ++i) {
        const float* x = walk.column(i);
        if (!x) continue;
        for (int64_t f = 0; f < node.freq_taps; ++f) {
          const Floats w = splat(node.kernel[f * node.taps + walk.tap(i)]);
          acc = fma(load(x + c + direction * (f - reach)), w, acc);
        }
      }
      store(out.at(o) + c, acc);
    }
  }
}

// Activation; zeros beyond the channels, where a picture kernel of the next stage will look.
static void finish_columns(const Node& node, const Columns& out) {
  for (int64_t o = out.first; o < out.first + out.count; ++o) {
    float* column = out.at(o);
    for (int64_t c = 0; c < node.out; c += kLanes) {
      Floats y = load(column + c);
      if (node.activation == Activation::relu) y = relu(y);
      if (node.activation == Activation::tanh) y = tangent(y);
      if (node.activation == Activation::leaky_relu) y = fma(min(y, splat(0.f)), splat(node.slope), relu(y));
      store(column + c, first(node.out - c < kLanes ? node.out - c : kLanes, y));
    }
  }
}

// How a sample hears its conditioning: one column as it is; two neighbours, interpolated; or, in number formats whose
// operands are short, two neighbours rounded to bf16 and interpolated in 256ths, which is one instruction where the
// set has bf16 and half the memory.
enum class Hearing { held, blended, paired };

// What a sample hears: L rows of gate_pad.
struct Heard {
  const float *a, *b;  // columns; b, the one to the right, where they are blended; where they are paired, a holds words
  Floats weight;       // of b
  uint32_t pair_weights;
  // z + what is heard.
  template <Hearing kHow>
  WAVENET_INLINE Floats onto(Floats z, int64_t row) const {
    if constexpr (kHow == Hearing::paired) return dot_pair(z, load_words(a + row), splat_word(pair_weights));
    const Floats left = load(a + row);
    return add(z, kHow == Hearing::blended ? fma(sub(load(b + row), left), weight, left) : left);
  }
  template <Hearing kHow>
  WAVENET_INLINE void call_for(int64_t row) const {
    __builtin_prefetch(a + row);
    if (kHow == Hearing::blended) __builtin_prefetch(b + row);
  }
  // From row `row` on.
  Heard layer(int64_t row) const { return {a + row, b ? b + row : nullptr, weight, pair_weights}; }
};

// For the stream in one seat, and the rows that this thread will read: `own` vectors of each layer.
class Conditioner {
 public:
  Conditioner(const Model& model, Scratch::Seat& seat, uint16_t* operands, Range own, Tiles& tiles,
              const std::atomic<bool>& stop)
      : m_(model), stream_(*seat.stream), s_(seat), operands_(operands), own_(own), tiles_(tiles), stop_(stop) {
    end_ = right_of(stream_.position + stream_.samples - 1) + 1;
  }

  // Once, before the first sample of a stream.
  void begin() {
    for (Columns& columns : s_.columns) columns.count = 0;
    s_.project_count = 0;
    for (int64_t i = 0; i < m_.projected; ++i) s_.project_start[i] = m_.project_bias[i];
    if (!m_.P) return;
    for (int64_t i = 0; i < m_.projected; ++i) s_.project_start[i] += m_.speaker_bias[i];
    const Operands<Fp32> speaker{stream_.speaker, 0, nullptr};
    for_own([&](Range vectors) {
      multiply_by_vectors<Fp32>(m_.speaker, m_.plain, vectors, {0, 1}, speaker, 1, Sums{s_.project_start, 0});
    });
  }

  // What sample t hears; anything once `stop` is set. May leave the tiles in another shape.
  Heard at(int64_t t) {
    const int64_t left = left_of(t), right = right_of(t);
    if (left < s_.project_first || right >= s_.project_first + s_.project_count) project(left);
    Heard found{s_.projections + (left - s_.project_first) * m_.projected_stride, nullptr, splat(0.f), 0};
    if (m_.hears_pairs()) {
      found.pair_weights = m_.fraction_pair[right > left ? heard(t) % m_.hop : m_.hop];
    } else if (m_.upsampling == Upsampling::linear) {
      found.b = s_.projections + (right - s_.project_first) * m_.projected_stride;
      found.weight = splat(m_.fraction[heard(t) % m_.hop]);
    }
    return found;
  }

 private:
  const Model& m_;
  const Stream& stream_;
  Scratch::Seat& s_;
  uint16_t* operands_;
  Range own_;
  Tiles& tiles_;
  const std::atomic<bool>& stop_;
  int64_t end_;  // columns that the call needs

  // job(vectors of the projection) for what is this thread's of each layer, or for all at once.
  template <class Job>
  void for_own(const Job& job) const {
    const int64_t layer = m_.gate_pad / kLanes;
    if (own_.size() == layer) return job({0, m_.L * layer});
    for (int64_t l = 0; l < m_.L; ++l) job({l * layer + own_.first, l * layer + own_.last});
  }

  int64_t heard(int64_t t) const { return t + m_.offset > 0 ? t + m_.offset : 0; }
  int64_t frames() const { return stream_.ended ? stream_.frames : kUnbounded; }
  int64_t inside(int64_t frame) const { return frame < 0 ? 0 : frame < frames() ? frame : frames() - 1; }
  int64_t left_of(int64_t t) const {
    const int64_t h = heard(t);
    if (m_.upsampling == Upsampling::stages) return h;
    return inside(h / m_.hop + m_.shift[h % m_.hop]);
  }
  int64_t right_of(int64_t t) const {
    const int64_t h = heard(t);
    if (m_.upsampling != Upsampling::linear) return left_of(t);
    return inside(h / m_.hop + m_.shift[h % m_.hop] + 1);
  }

  void project(int64_t from) {
    const Columns& top = s_.columns.back();
    if (from < top.first || from >= top.first + top.count || needs_more(from, top)) window(from);
    int64_t count = top.first + top.count - from;
    if (count > s_.project_capacity) count = s_.project_capacity;
    // Columns take the place of streams: a group of rows is read once for several of them.
    if (m_.projection_number == Number::fp32) {
      const Operands<Fp32> columns{top.at(from), top.stride, nullptr};
      const Sums sums{s_.projections, m_.projected_stride, s_.project_start};
      for_own([&](Range vectors) {
        multiply<Fp32>(m_.project, m_.projection_layout, vectors, {0, 1}, columns, count, sums);
      });
    } else {
      project_short(top, from, count);
    }
    s_.project_first = from;
    s_.project_count = count;
  }

  void project_short(const Columns& top, int64_t from, int64_t count) {
    const int64_t stride = m_.column_stride;
    for (int64_t i = 0; i < count; ++i) {
      const float* column = top.at(from + i);
      to_operands([column](int64_t c) { return load(column + c); }, m_.C, operands_ + i * stride, nullptr);
    }
    for (int64_t i = 0; i < count; i += kMaxWidth) {
      const int64_t n = count - i < kMaxWidth ? count - i : kMaxWidth;
      tiles_.serve(static_cast<int>(n));
      const Operands<Bf16> columns{operands_ + i * stride, stride, nullptr};
      const Sums sums{s_.projections + i * m_.projected_stride, m_.projected_stride, s_.project_start};
      for_own(
          [&](Range vectors) { multiply<Bf16>(m_.project, m_.projection_layout, vectors, {0, 1}, columns, n, sums); });
    }
    if (m_.hears_pairs()) for_own([&](Range vectors) { pair_columns(vectors, count); });
  }

  // Columns → words of a column and its neighbour to the right, in ascending order, for the neighbour must still be as
  // it was projected. The last of a block has none and is only heard by itself. Nothing infinite is kept: times a
  // weight of zero it would reach samples that do not hear it.
  void pair_columns(Range vectors, int64_t count) {
    const auto bounded = [](Floats a) {
      constexpr float kLargest = 0x1.FEp127f;  // in bf16
      return min(max(a, splat(-kLargest)), splat(kLargest));
    };
    for (int64_t i = 0; i < count; ++i) {
      float* left = s_.projections + i * m_.projected_stride;
      const float* right = i + 1 < count ? left + m_.projected_stride : left;
      for (int64_t row = vectors.first * kLanes; row < vectors.last * kLanes; row += kLanes) {
        store(left + row, floats(bf16_pair(bounded(load(left + row)), bounded(load(right + row)))));
      }
    }
  }

  // Interpolation wants two neighbours in one projected block.
  bool needs_more(int64_t from, const Columns& top) const {
    return m_.upsampling == Upsampling::linear && from + 1 < end_ && from + 1 >= top.first + top.count;
  }

  void window(int64_t from) {
    const int64_t n = static_cast<int64_t>(s_.columns.size()) - 1;
    Columns* columns = s_.columns.data();
    columns[n].first = from;
    columns[n].count = end_ - from < columns[n].capacity ? end_ - from : columns[n].capacity;
    for (int64_t i = n - 1; i >= 0; --i) {
      const Columns& out = columns[i + 1];
      Range needed = m_.nodes[i].inputs_of({out.first, out.first + out.count});
      const int64_t length = length_into(i);
      if (needed.first < 0) needed.first = 0;
      if (needed.last > length) needed.last = length;
      columns[i].first = needed.first;
      columns[i].count = needed.last - needed.first;
      if (columns[i].count < 1 || columns[i].count > columns[i].capacity) missing_frames();
    }
    gather();
    for (int64_t i = 0; i < n; ++i) {
      const Node& node = m_.nodes[i];
      if (node.image) {
        picture_node(node, columns[i], columns[i + 1], length_into(i));
      } else {
        const DenseNode job{node, columns[i], columns[i + 1], length_into(i), stop_};
        for_rows(node.weight, m_.plain, {0, node.weight.vectors}, job);
      }
      finish_columns(node, columns[i + 1]);
    }
  }

  // Columns that enter node i in all, kUnbounded while the stream is open.
  int64_t length_into(int64_t i) const {
    int64_t length = frames();
    if (length == kUnbounded) return length;
    for (int64_t j = 0; j < i; ++j) length *= m_.nodes[j].scale;
    return length;
  }

  // Mel frames → the input of the first node, standardised.
  void gather() {
    const Columns& in = s_.columns[0];
    if (in.first < stream_.pending_first || in.first + in.count > stream_.frames) missing_frames();
    for (int64_t f = in.first; f < in.first + in.count; ++f) {
      float* column = in.at(f);
      const bool waiting = f < stream_.frames_before;
      const float* frame = waiting ? stream_.pending + (f - stream_.pending_first) * m_.M
                                   : stream_.mel + (f - stream_.frames_before) * stream_.mel_frame_stride;
      const int64_t stride = waiting ? 1 : stream_.mel_band_stride;
      for (int64_t band = 0; band < m_.M; ++band) {
        const float value = frame[band * stride];
        column[band] = m_.standardise ? (value - m_.mel_mean[band]) / m_.mel_scale[band] : value;
      }
    }
  }
};
