// The sample loop of one thread of a team: n streams, each one sample further per turn.
// embed → per layer: dilated, gate, residual → skip → head → sample; no call leaves native code.
//
// Every thread owns some rows of every matrix, whose weights stay in its own cache, and the threads meet after each
// stage; what is made of whole vectors (operands, draws) each does for itself. With one thread no meeting takes time.
// No sum depends on how many threads or streams there are.
//
// The products of a layer's older taps wait for nothing: they are made while the gate of the layer before is.

template <class F>
class Loop {
 public:
  Loop(const Model& model, Team& team, int rank, Scratch& scratch, Control& control)
      : m_(model),
        team_(team),
        s_(scratch),
        control_(control),
        rank_(rank),
        gate_rows_(pairs(share(m_.dilated[0].vectors / 2))),
        x_rows_(share(m_.L > 1 ? m_.residual[0].vectors : 0)),
        skip_rows_(share(m_.skip.vectors)),
        hidden_rows_(share(m_.hidden.vectors)),
        out_rows_(share(m_.out.vectors)) {}

  void run() {
    for (;;) {
      if (rank_ == 0) {
        fill_places();
        for (int b = 0; b < team_.n; ++b) embed(b);
      }
      team_.meet();
      if (team_.leave) return;
      tiles_.serve(team_.n);
      step();
    }
  }

 private:
  using Operand = typename F::Operand;

  const Model& m_;
  Team& team_;
  Scratch& s_;
  Control& control_;
  const int rank_;
  const Range gate_rows_, x_rows_, skip_rows_, hidden_rows_, out_rows_;  // vectors that this thread owns
  Tiles tiles_;
  Heard heard_[kMaxWidth];

  Range share(int64_t vectors) const {
    return {vectors * rank_ / team_.size, vectors * (rank_ + 1) / team_.size};
  }
  static Range pairs(Range r) { return {2 * r.first, 2 * r.last}; }

  const Stream& stream(int b) const { return *team_.places[b].stream; }
  Scratch::Seat& seat(int b) const { return s_.seats[team_.places[b].seat]; }
  // Rows of team memory.
  float* x(int b) const { return team_.x + b * m_.x_stride; }
  float* gate_row(int b) const { return team_.gate + b * m_.half_pad; }
  float* skip(int b) const { return team_.skip + b * m_.pad(m_.S); }
  float* hidden(int b) const { return team_.hidden + b * m_.pad(m_.H); }
  float* logits(int b) const { return team_.logits + b * m_.pad(m_.A); }
  float* z(int64_t l, int b) const { return s_.z[l % 2] + b * m_.gate_pad; }
  // Rows of this thread's operands.
  Operand* newest(int b) const { return static_cast<Operand*>(s_.newest) + b * m_.r_stride; }
  Operand* gates(int b, int64_t l) const { return static_cast<Operand*>(s_.gates) + (b * m_.L + l) * m_.operands(m_.half); }
  Operand* slot(int b, int64_t l, int64_t index) const {
    return static_cast<Operand*>(stream(b).rings) + (m_.ring_first[l] + index) * m_.r_stride;
  }

  // --- who is where ---------------------------------------------------------------------------------------------

  // Streams that are done leave, others take their places; the places stay without gaps.
  void fill_places() {
    team_.leave = control_.stop.load(std::memory_order_relaxed);
    for (int b = 0; b < team_.n;) {
      Team::Place& place = team_.places[b];
      if (place.made < place.stream->samples) {
        ++b;
        continue;
      }
      if (const Stream* next = control_.take()) {
        place = {next, 0, place.seat};
        continue;
      }
      Team::Place& last = team_.places[--team_.n];
      const int seat = place.seat;
      place = last;
      last.seat = seat;
    }
    if (team_.n == 0 && !started_) {
      started_ = true;
      while (team_.n < team_.width) {
        const Stream* next = control_.take();
        if (!next) break;
        team_.places[team_.n] = {next, 0, team_.n};
        ++team_.n;
      }
    }
    team_.leave |= team_.n == 0;
  }
  bool started_ = false;

  // A stream sits down.
  void begin(Scratch::Seat& seat, const Stream& stream) {
    seat.stream = &stream;
    for (int64_t l = 0; l < m_.L; ++l) seat.now[l] = stream.position % m_.ring_depth[l];
    Conditioner(m_, seat, gate_rows_, control_.stop).begin();
  }

  // --- one sample -----------------------------------------------------------------------------------------------

  void step() {
    for (int b = 0; b < team_.n; ++b) {
      const Team::Place& place = team_.places[b];
      if (seat(b).stream != place.stream) begin(seat(b), *place.stream);
      heard_[b] = Conditioner(m_, seat(b), gate_rows_, control_.stop).at(place.stream->position + place.made);
    }
    keep_stage(&Trace::embed, x(0), m_.R);
    older_taps(0);
    for (int64_t l = 0; l < m_.L; ++l) layer(l);
    head();
    for (int b = rank_; b < team_.n; b += team_.size) {
      feed(b, draw(m_, logits(b), uniforms(stream(b).seed, static_cast<uint64_t>(now(b))), stream(b).temperature,
                   team_.weights + b * m_.sampler_floats()));
    }
    team_.meet();
    if (rank_ != 0) return;
    for (int b = 0; b < team_.n; ++b) ++team_.places[b].made;
    control_.done.fetch_add(team_.n, std::memory_order_relaxed);
  }

  int64_t now(int b) const { return stream(b).position + team_.places[b].made; }

  // Past inputs → x (R).
  void embed(int b) {
    for (int64_t c = 0; c < m_.x_stride; c += kLanes) {
      Floats sum = splat(0.f);
      for (int64_t j = 0; j < m_.in_taps; ++j) {
        const float value = stream(b).inputs[j];
        const float* tap = m_.input + j * m_.in_channels * m_.x_stride + c;
        if (!m_.one_hot) {
          sum = fma(load(tap), splat(value), sum);
        } else if (value >= 0) {
          sum = add(sum, load(tap + static_cast<int64_t>(value) * m_.x_stride));
        }
      }
      sum = add(sum, load(m_.input_bias + c));
      store(x(b) + c, m_.input_tanh ? tangent(sum) : sum);
    }
  }

  // z of layer l = conditioning + bias + the products of all taps but the newest.
  void older_taps(int64_t l) {
    const float* bias = m_.dilated_bias + l * m_.gate_pad;
    for (int b = 0; b < team_.n; ++b) {
      for (int64_t v = gate_rows_.first; v < gate_rows_.last; ++v) {
        const int64_t row = v * kLanes;
        store(z(l, b) + row, add(heard_[b].at(l * m_.gate_pad + row), load(bias + row)));
      }
    }
    const int64_t depth = m_.ring_depth[l];
    for (int64_t k = 0; k + 1 < m_.K; ++k) {  // tap k is (K−1−k)·D samples old; the oldest lies where `now` will go
      for (int b = 0; b < team_.n; ++b) {
        const int64_t ahead = seat(b).now[l] + k * m_.dilations[l], index = ahead < depth ? ahead : ahead - depth;
        copy(static_cast<Operand*>(s_.past) + b * m_.r_stride, slot(b, l, index));
        if (F::kNumber == Number::int8) s_.past_scale[b] = stream(b).ring_scales[m_.ring_first[l] + index];
      }
      const Operands<F> past{static_cast<Operand*>(s_.past), m_.r_stride, s_.past_scale};
      multiply<F>(m_.dilated[l], m_.layout, gate_rows_, {k, k + 1}, past, team_.n, Sums{z(l, 0), m_.gate_pad});
    }
  }

  // One slot of a ring.
  void copy(Operand* to, const Operand* from) const {
    __builtin_memcpy(to, from, static_cast<size_t>(m_.R) * sizeof(Operand));
  }

  // x → gate of layer l → x for the layer above.
  void layer(int64_t l) {
    for (int b = 0; b < team_.n; ++b) {
      const float* from = x(b);
      to_operands([from](int64_t i) { return load(from + i); }, m_.R, newest(b), s_.newest_scale + b);
    }
    const Operands<F> tap{newest(0), m_.r_stride, s_.newest_scale};
    multiply<F>(m_.dilated[l], m_.layout, gate_rows_, {m_.K - 1, m_.K}, tap, team_.n, Sums{z(l, 0), m_.gate_pad});
    if (l + 1 < m_.L) older_taps(l + 1);
    for (int b = 0; b < team_.n; ++b) {
      for (int64_t v = gate_rows_.first; v < gate_rows_.last; v += 2) {
        const float* both = z(l, b) + v * kLanes;
        store(gate_row(b) + v / 2 * kLanes, gate(load(both), load(both + kLanes)));
      }
    }
    team_.meet();
    for (int b = 0; b < team_.n; ++b) {
      if (b % team_.size == rank_) {
        const int64_t index = seat(b).now[l];
        copy(slot(b, l, index), newest(b));
        if (F::kNumber == Number::int8) stream(b).ring_scales[m_.ring_first[l] + index] = s_.newest_scale[b];
      }
      seat(b).now[l] = seat(b).now[l] + 1 < m_.ring_depth[l] ? seat(b).now[l] + 1 : 0;
      const float* from = gate_row(b);
      to_operands([from](int64_t i) { return load(from + i); }, m_.half, gates(b, l), s_.gates_scale + b * m_.L + l);
    }
    if (l + 1 < m_.L) residual(l);
    if (stream(0).trace) keep_layer(l);
  }

  void residual(int64_t l) {
    const float* bias = m_.residual_bias + l * m_.pad(m_.R);
    for (int b = 0; b < team_.n; ++b) {
      for (int64_t v = x_rows_.first; v < x_rows_.last; ++v) {
        float* at = x(b) + v * kLanes;
        store(at, add(load(at), load(bias + v * kLanes)));
      }
    }
    multiply<F>(m_.residual[l], m_.layout, x_rows_, {0, 1}, gates_of(l), team_.n, Sums{x(0), m_.x_stride});
    if (m_.residual_scale != 1.f) scale_rows(x(0), m_.x_stride, x_rows_, m_.residual_scale);
    team_.meet();
  }

  // The gates of layer l, or of all layers from l on as segments.
  Operands<F> gates_of(int64_t l) const {
    const int64_t stride = m_.operands(m_.half);
    return {gates(0, l), m_.L * stride, s_.gates_scale + l, m_.L, stride, 1};
  }

  void scale_rows(float* rows, int64_t stride, Range vectors, float scale) {
    for (int b = 0; b < team_.n; ++b) {
      for (int64_t v = vectors.first; v < vectors.last; ++v) {
        float* at = rows + b * stride + v * kLanes;
        store(at, mul(load(at), splat(scale)));
      }
    }
  }

  void add_bias(float* rows, int64_t stride, Range vectors, const float* bias, bool keep) {
    for (int b = 0; b < team_.n; ++b) {
      for (int64_t v = vectors.first; v < vectors.last; ++v) {
        float* at = rows + b * stride + v * kLanes;
        store(at, keep ? add(load(at), load(bias + v * kLanes)) : load(bias + v * kLanes));
      }
    }
  }

  // All gates → skip → hidden → logits.
  void head() {
    skip_sum();
    team_.meet();
    keep_stage(&Trace::skip, skip(0), m_.S);
    dense(skip(0), m_.pad(m_.S), m_.S, s_.skip_operand, s_.skip_scale, m_.hidden, hidden_rows_, m_.hidden_bias,
          Sums{hidden(0), m_.pad(m_.H)});
    team_.meet();
    keep_stage(&Trace::hidden, hidden(0), m_.H);
    dense(hidden(0), m_.pad(m_.H), m_.H, s_.hidden_operand, s_.hidden_scale, m_.out, out_rows_, m_.out_bias,
          Sums{logits(0), m_.pad(m_.A)});
    team_.meet();
    keep_stage(&Trace::logits, logits(0), m_.A);
  }

  // The skip products of all layers. sum: scale·Σ (W[l]·g[l] + bias[l]);
  // running: total = (total + W[l]·g[l] + bias[l])·scale at every layer but the first.
  void skip_sum() {
    const int64_t rows = m_.pad(m_.S);
    const Sums out{skip(0), rows};
    if (!m_.running_skip) {
      add_bias(skip(0), rows, skip_rows_, m_.skip_bias_sum.data(), false);
      multiply<F>(m_.skip, m_.layout, skip_rows_, {0, m_.L}, gates_of(0), team_.n, out);
      if (m_.skip_scale != 1.f) scale_rows(skip(0), rows, skip_rows_, m_.skip_scale);
      return;
    }
    for (int64_t l = 0; l < m_.L; ++l) {
      add_bias(skip(0), rows, skip_rows_, m_.skip_bias + l * rows, l > 0);
      multiply<F>(m_.skip, m_.layout, skip_rows_, {l, l + 1}, gates_of(0), team_.n, out);
      if (l > 0) scale_rows(skip(0), rows, skip_rows_, m_.skip_scale);
    }
  }

  // out = bias + W·relu(from)
  void dense(const float* from, int64_t stride, int64_t n, void* operands, float* scales, const Matrix& m, Range rows,
             const float* bias, Sums out) {
    const int64_t operand_stride = m_.operands(n);
    auto* to = static_cast<Operand*>(operands);
    for (int b = 0; b < team_.n; ++b) {
      const float* row = from + b * stride;
      to_operands([row](int64_t i) { return relu(load(row + i)); }, n, to + b * operand_stride, scales + b);
    }
    add_bias(out.out, out.stride, rows, bias, false);
    multiply<F>(m, m_.layout, rows, {0, 1}, Operands<F>{to, operand_stride, scales}, team_.n, out);
  }

  // The draw becomes sound and, unless the history is forced, the newest input.
  void feed(int b, float drawn) {
    const Stream& st = stream(b);
    const int64_t i = team_.places[b].made;
    if (st.logits) __builtin_memcpy(st.logits + i * m_.A, logits(b), static_cast<size_t>(m_.A) * sizeof(float));
    const float emphasised = sound_of_draw(m_, drawn) + m_.preemphasis * *st.filter;
    const float sound = emphasised / m_.gain;
    if (st.audio) st.audio[i] = sound > -1.f ? (sound < 1.f ? sound : 1.f) : -1.f;
    if (st.raw) st.raw[i] = drawn;
    float next = drawn;
    if (st.forced) {
      next = st.forced[i];
      *st.filter = sound_of_input(m_, next) + m_.preemphasis * *st.filter;
    } else {
      *st.filter = emphasised;
      if (!m_.one_hot && m_.head == HeadKind::categorical) next = m_.feedback[static_cast<size_t>(drawn)];
    }
    for (int64_t j = 0; j + 1 < m_.in_taps; ++j) st.inputs[j] = st.inputs[j + 1];
    st.inputs[m_.in_taps - 1] = next;
  }

  // --- traces: of one stream on one thread -------------------------------------------------------------------------

  // Row `index` of (…, n).
  static void keep(float* rows, int64_t index, const float* from, int64_t n) {
    if (rows) __builtin_memcpy(rows + index * n, from, static_cast<size_t>(n) * sizeof(float));
  }

  void keep_stage(float* Trace::*stage, const float* from, int64_t n) const {
    if (stream(0).trace) keep(stream(0).trace->*stage, team_.places[0].made, from, n);
  }

  void keep_layer(int64_t l) const {
    const Trace& trace = *stream(0).trace;
    const int64_t i = team_.places[0].made;
    keep(trace.gate, i * m_.L + l, gate_row(0), m_.half);
    if (l + 1 < m_.L) keep(trace.x, i * (m_.L - 1) + l, x(0), m_.R);
    if (!trace.conditioning) return;
    float* to = trace.conditioning + (i * m_.L + l) * m_.G;
    for (int64_t c = 0; c < m_.half_pad; c += kLanes) {
      float pair[2 * kLanes];
      store(pair, heard_[0].at(l * m_.gate_pad + 2 * c));
      store(pair + kLanes, heard_[0].at(l * m_.gate_pad + 2 * c + kLanes));
      for (int64_t i = 0; i < kLanes && c + i < m_.half; ++i) {
        to[c + i] = pair[i];
        to[m_.half + c + i] = pair[kLanes + i];
      }
    }
  }
};

static void generate(const Model& model, Team& team, int rank, Scratch& scratch, Control& control) {
  switch (model.number) {
    case Number::fp32: return Loop<Fp32>(model, team, rank, scratch, control).run();
    case Number::bf16: return Loop<Bf16>(model, team, rank, scratch, control).run();
    case Number::fp16: return Loop<Fp16>(model, team, rank, scratch, control).run();
    case Number::int8: return Loop<Int8>(model, team, rank, scratch, control).run();
  }
}
