// The sample loop of one thread of a team: n streams, each one sample further per turn.
// embed → per layer: dilated, gate, residual → skip → head → sample; no call leaves native code.
//
// Every thread owns some rows of every matrix, whose weights stay in its own cache, and the threads meet after each
// stage; what is made of whole vectors (operands, draws) each does for itself, and so are small residual products,
// which take less time than a meeting. With one thread no meeting takes time. No sum depends on how many threads or
// streams there are.

template <class F>
class Loop {
 public:
  Loop(const Model& model, Team& team, int rank, Scratch& scratch, Control& control)
      : m_(model),
        team_(team),
        s_(scratch),
        control_(control),
        older_(model, scratch),
        rank_(rank),
        own_x_(team.size > 1 && m_.L > 1 && own_x_is_faster()),
        gate_rows_(pairs(share(m_.dilated[0].vectors / 2))),
        x_rows_(own_x_ ? Range{0, m_.residual[0].vectors} : share(m_.L > 1 ? m_.residual[0].vectors : 0)),
        skip_rows_(share(m_.skip.vectors)),
        hidden_rows_(share(m_.hidden.vectors)),
        out_rows_(share(m_.out.vectors)) {}

  void run() {
    for (;;) {
      if (rank_ == 0) fill_places();
      team_.meet(rank_);
      if (team_.leave) return;
      step();
    }
  }

 private:
  using Operand = typename F::Operand;
  // Whether a vector is rounded as a whole, by its largest number: then each thread does it for itself, once all
  // threads have made their part.
  static constexpr bool kWhole = F::kNumber == Number::int8;

  const Model& m_;
  Team& team_;
  Scratch& s_;
  Control& control_;
  OlderTaps<F> older_;
  const int rank_;
  const bool own_x_;  // whether each thread makes the whole of x for itself
  const Range gate_rows_, x_rows_, skip_rows_, hidden_rows_, out_rows_;  // vectors that this thread owns
  Tiles tiles_;
  // Of the stream in each place: what it hears, its rings, and t mod depth of each layer.
  Heard heard_[kMaxWidth];
  Operand* rings_[kMaxWidth];
  int64_t* now_[kMaxWidth];
  bool traced_ = false;

  Range share(int64_t vectors) const { return {vectors * rank_ / team_.size, vectors * (rank_ + 1) / team_.size}; }
  static Range pairs(Range r) { return {2 * r.first, 2 * r.last}; }

  const Stream& stream(int b) const { return *team_.places[b].stream; }
  Scratch::Seat& seat(int b) const { return s_.seats[team_.places[b].seat]; }
  // Reading the other threads' residual weights, for every stream of a set without tiles, against a meeting and the
  // journey of x from core to core: with four lines 0.24 to 0.28 µs, measured, in which a core reads 16 KiB at 60 GB/s.
  bool own_x_is_faster() const {
    const int64_t others = m_.residual[0].vectors * (team_.size - 1) / team_.size;  // the same number for every rank
    const int64_t bytes = others * kLanes * m_.residual[0].k * static_cast<int64_t>(sizeof(typename F::Weight));
    return bytes * (kTiled<F> ? 1 : team_.width) <= 16384;
  }

  // Rows of team memory, but for an x of one's own. A thread may be at the gate of a layer while another is still
  // reading that of the layer below.
  float* x(int b) const { return (own_x_ ? s_.x : team_.x) + b * m_.x_stride; }
  float* gate_row(int64_t l, int b) const { return team_.gate + (l % 2 * team_.width + b) * m_.half_pad; }
  float* skip(int b) const { return team_.skip + b * m_.pad(m_.S); }
  float* hidden(int b) const { return team_.hidden + b * m_.pad(m_.H); }
  float* logits(int b) const { return team_.logits + b * m_.pad(m_.A); }
  float* z(int b) const { return s_.z + b * m_.gate_pad; }
  // Operands are shared where threads round their own parts.
  bool own_taps() const { return kWhole || own_x_; }
  // Taps of a layer, oldest first, the newest last, and what a unit of each is worth. Those of a layer and of the next
  // stand side by side.
  Operand* taps(int64_t l, int b) const {
    auto* first = static_cast<Operand*>(own_taps() ? s_.taps : team_.taps);
    return first + (l % 2 * team_.width + b) * m_.K * m_.r_stride;
  }
  float* tap_scales(int64_t l, int b) const { return s_.tap_scales + (l % 2 * team_.width + b) * m_.K; }
  Operand* newest(int64_t l, int b) const { return taps(l, b) + (m_.K - 1) * m_.r_stride; }
  Operand* gates(int64_t l, int b) const {
    return static_cast<Operand*>(kWhole ? s_.gates : team_.gates) + (b * m_.L + l) * m_.operands(m_.half);
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

  Conditioner conditioner(Scratch::Seat& seat) {
    return Conditioner(m_, seat, s_.column_operands, gate_rows_, tiles_, control_.stop);
  }

  // A stream sits down.
  void begin(Scratch::Seat& seat, const Stream& stream) {
    seat.stream = &stream;
    for (int64_t l = 0; l < m_.L; ++l) seat.now[l] = stream.position % m_.ring_depth[l];
    conditioner(seat).begin();
  }

  // --- one sample -----------------------------------------------------------------------------------------------

  void step() {
    bool presumed = false;
    int64_t wanted = INT64_MAX;
    for (int b = 0; b < team_.n; ++b) {
      const Team::Place& place = team_.places[b];
      if (seat(b).stream != place.stream) begin(seat(b), *place.stream);
      heard_[b] = conditioner(seat(b)).at(place.stream->position + place.made);
      rings_[b] = static_cast<Operand*>(place.stream->rings);
      now_[b] = seat(b).now;
      presumed |= presumes(b);
      const int64_t left = place.stream->samples - place.made;
      wanted = left < wanted ? left : wanted;
    }
    if (!presumed) older_.make([this](int64_t l, int b) { return ring(l, b); }, team_.n, wanted, gate_rows_, tiles_);
    recall(0);
    for (int b = 0; b < team_.n && (own_x_ || rank_ == 0); ++b) {
      embed(b);
      if (!kWhole) round(x(b), m_.R, newest(0, b), nullptr);
    }
    tiles_.serve(team_.n);
    traced_ = stream(0).trace != nullptr;
    if (!own_x_) team_.meet(rank_);
    keep_stage(&Trace::embed, x(0), m_.R);
    for (int64_t l = 0; l < m_.L; ++l) layer(l);
    head();
    for (int b = rank_; b < team_.n; b += team_.size) {
      feed(b, draw(m_, logits(b), uniforms(stream(b).seed, static_cast<uint64_t>(now(b))), stream(b).temperature,
                   team_.weights + b * m_.sampler_floats()));
    }
    team_.meet(rank_);
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

  // x → gate of layer l → x for the layer above.
  void layer(int64_t l) {
    const bool more = l + 1 < m_.L;
    call_for_rings(more ? l + 1 : 0);
    if (kWhole) {
      for (int b = 0; b < team_.n; ++b) round(x(b), m_.R, newest(l, b), tap_scales(l, b) + m_.K - 1);
    }
    if (m_.steady_past) presume(l);
    if (older_.stand(l)) {
      dilated(l, {m_.K - 1, m_.K}, older_.sums(l, team_.n));
    } else {
      dilated(l, {0, m_.K}, Sums{z(0), m_.gate_pad, m_.dilated_bias + l * m_.gate_pad});
    }
    team_.meet(rank_);
    if (kWhole) {
      for (int b = 0; b < team_.n; ++b) round(gate_row(l, b), m_.half, gates(l, b), gate_scales(l, b));
    }
    if (more) residual(l);
    remember(l);
    older_.pass(l);
    if (more) {
      recall(l + 1);
      finish_x(l);
      if (!own_x_) team_.meet(rank_);
    }
    if (traced_) keep_layer(l);
  }

  // The products of some taps of layer l → sums → gates.
  void dilated(int64_t l, const Range taps_now, const Sums sums) {
    const Operands<F> inputs{taps(l, 0), m_.K * m_.r_stride, tap_scales(l, 0), m_.K, m_.r_stride, 1};
    // A group of rows passes the gate while the next one is multiplied.
    Range before{gate_rows_.first, gate_rows_.first};
    for (int64_t v = gate_rows_.first; v < gate_rows_.last; v += kGroup) {
      const Range group{v, v + kGroup < gate_rows_.last ? v + kGroup : gate_rows_.last};
      multiply<F>(m_.dilated[l], m_.layout, group, taps_now, inputs, team_.n, sums);
      pass_gate(l, before, sums);
      before = group;
    }
    pass_gate(l, before, sums);
  }

  // Vectors of rows from one multiplication to the next; even, so that gates are whole.
  static constexpr int64_t kGroup = kTiled<F> ? 2 * kTileVectors : kAccumulators;

  float* gate_scales(int64_t l, int b) const { return s_.gate_scales + b * m_.L + l; }
  // The gates of layer l and of those above it.
  Operands<F> gates_from(int64_t l) const {
    const int64_t stride = m_.operands(m_.half);
    return {gates(l, 0), m_.L * stride, gate_scales(l, 0), m_.L, stride, 1};
  }

  // z + conditioning → gates, and their operands where each is rounded by itself.
  void pass_gate(int64_t l, Range rows, const Sums& sums) {
    const int n = team_.n;
    for (int b = 0; b < n; ++b) {
      const Heard heard = heard_[b].layer(l * m_.gate_pad);
      const Heard next = heard_[b + 1 < n ? b + 1 : 0].layer(l * m_.gate_pad);
      hear([&](auto how) {
        pass_gate<how()>(sums.out + b * sums.stride, heard, next, gate_row(l, b), gates(l, b), rows);
      });
    }
  }
  // job(how), how() being the model's Hearing.
  template <class Job>
  WAVENET_INLINE void hear(const Job& job) const {
    if (m_.upsampling != Upsampling::linear) return job(std::integral_constant<Hearing, Hearing::held>());
    job(std::integral_constant<Hearing,
                               projection_of(F::kNumber) == Number::fp32 ? Hearing::blended : Hearing::paired>());
  }
  template <Hearing kHow>
  WAVENET_INLINE void pass_gate(const float* z, const Heard heard, const Heard next, float* out, Operand* operands,
                                Range rows) const {
    const int64_t half = m_.half, last = rows.last / 2 * kLanes;
    const bool floats = kWhole || traced_;
    for (int64_t c = rows.first / 2 * kLanes; c < last; c += kLanes) {
      // What the next stream hears is called for just ahead: the first cache forgets it while weights pass through.
      next.template call_for<kHow>(2 * c);
      next.template call_for<kHow>(2 * c + kLanes);
      const Floats g = gate(heard.template onto<kHow>(load(z + 2 * c), 2 * c),
                            heard.template onto<kHow>(load(z + 2 * c + kLanes), 2 * c + kLanes));
      if (floats) store(out + c, g);
      if (!kWhole) store_part(operands, c, half, g);
    }
  }

  WAVENET_INLINE Ring<Operand> ring(int64_t l, int b) const {
    const int64_t first = m_.ring_first[l];
    return {rings_[b] + first * m_.r_stride, kWhole ? stream(b).ring_scales + first : nullptr, now_[b][l],
            m_.ring_depth[l], m_.dilations[l]};
  }
  // Whether this thread writes the ring of stream b.
  bool mine(int b) const { return team_.size == 1 || b % team_.size == rank_; }

  // Calls for the ring slots that layer l will read and write: rings are longer than caches. (Inlined, for a function
  // that does nothing but this has no effect in the eyes of the compiler.)
  WAVENET_INLINE void call_for_rings(int64_t l) const {
    constexpr int64_t kLine = kOperandPad / static_cast<int64_t>(sizeof(Operand));
    // Where older taps have been multiplied already, only the oldest slot is wanted: the newest operands go there.
    const bool made = older_.stand(l);
    const int64_t n = m_.r_stride, older = made ? 1 : m_.K - 1;
    for (int b = 0; b < team_.n; ++b) {
      if (!mine(b) && (made || !own_taps())) continue;
      const Ring<Operand> from = ring(l, b);
      for (int64_t k = 0; k < older; ++k) {
        for (int64_t i = 0; i < n; i += kLine) __builtin_prefetch(from.slots + from.tap(k) * n + i);
      }
    }
  }

  // Whether stream b has no past but what its first sample tells it to presume.
  bool presumes(int b) const { return m_.steady_past && now(b) == 0; }

  // Steady past: where every sample before the first was heard as the first is, the older taps are the newest one. The
  // rings learn it in `remember`, when no thread reads them any more.
  void presume(int64_t l) {
    bool any = false;
    for (int b = 0; b < team_.n; ++b) {
      if (!presumes(b)) continue;
      any = true;
      if (!own_taps() && !mine(b)) continue;
      for (int64_t k = 0; k + 1 < m_.K; ++k) {
        copy(taps(l, b) + k * m_.r_stride, newest(l, b));
        if (kWhole) tap_scales(l, b)[k] = tap_scales(l, b)[m_.K - 1];
      }
    }
    if (any && !own_taps()) team_.meet(rank_);
  }

  // The newest operands go where the oldest were, which have been copied to the taps; a presumed past becomes all of
  // them.
  void remember(int64_t l) {
    for (int b = 0; b < team_.n; ++b) {
      const Ring<Operand> to = ring(l, b);
      if (mine(b)) {
        const bool all = presumes(b);
        for (int64_t slot = all ? 0 : to.now; slot < (all ? to.depth : to.now + 1); ++slot) {
          copy(to.slots + slot * m_.r_stride, newest(l, b));
          if (kWhole) to.scales[slot] = tap_scales(l, b)[m_.K - 1];
        }
      }
      now_[b][l] = to.now + 1 < to.depth ? to.now + 1 : 0;
    }
  }

  // The older taps of layer l are brought together, unless they have been multiplied already: the operands of a product
  // lie in one piece.
  void recall(int64_t l) {
    if (older_.stand(l)) return;
    const int64_t n = m_.r_stride, older = m_.K - 1;
    for (int b = 0; b < team_.n; ++b) {
      if (!own_taps() && !mine(b)) continue;
      const Ring<Operand> from = ring(l, b);
      for (int64_t k = 0; k < older; ++k) {
        copy(taps(l, b) + k * n, from.slots + from.tap(k) * n);
        if (kWhole) tap_scales(l, b)[k] = from.scales[from.tap(k)];
      }
    }
  }

  void copy(Operand* to, const Operand* from) const { copy_slot(to, from, m_.r_stride); }

  void residual(int64_t l) {
    multiply<F>(m_.residual[l], m_.layout, x_rows_, {0, 1}, gates_from(l), team_.n, Sums{x(0), m_.x_stride});
  }

  // x gets its bias, is scaled and, where each number is rounded by itself, becomes the operand of the layer above.
  void finish_x(int64_t l) {
    const float* bias = m_.residual_bias + l * m_.pad(m_.R);
    for (int b = 0; b < team_.n; ++b) finish_x(x(b), bias, newest(l + 1, b), m_.R, x_rows_, splat(m_.residual_scale));
  }
  static void finish_x(float* x, const float* bias, Operand* operands, int64_t R, Range rows, Floats scale) {
    for (int64_t c = rows.first * kLanes; c < rows.last * kLanes; c += kLanes) {
      const Floats done = mul(add(load(x + c), load(bias + c)), scale);
      store(x + c, done);
      if (!kWhole) store_part(operands, c, R, done);
    }
  }

  static void round(const float* from, int64_t n, Operand* to, float* scale) {
    to_operands([from](int64_t i) { return load(from + i); }, n, to, scale);
  }

  // All gates → skip → hidden → logits.
  void head() {
    skip_sum();
    team_.meet(rank_);
    keep_stage(&Trace::skip, skip(0), m_.S);
    dense(skip(0), m_.pad(m_.S), m_.S, s_.skip_operand, s_.skip_scale, m_.hidden, hidden_rows_,
          Sums{hidden(0), m_.pad(m_.H), m_.hidden_bias});
    team_.meet(rank_);
    keep_stage(&Trace::hidden, hidden(0), m_.H);
    dense(hidden(0), m_.pad(m_.H), m_.H, s_.hidden_operand, s_.hidden_scale, m_.out, out_rows_,
          Sums{logits(0), m_.pad(m_.A), m_.out_bias});
    team_.meet(rank_);
    keep_stage(&Trace::logits, logits(0), m_.A);
  }

  // sum: skip_scale·(Σ W[l]·g[l] + Σ bias[l]);
  // running: total = (total + W[l]·g[l] + bias[l])·skip_scale at every layer but the first.
  void skip_sum() {
    const int64_t rows = m_.pad(m_.S);
    if (!m_.running_skip) {
      const Sums sums{skip(0), rows, m_.skip_bias_sum.data()};
      multiply<F>(m_.skip, m_.layout, skip_rows_, {0, m_.L}, gates_from(0), team_.n, sums);
      if (m_.skip_scale != 1.f) {
        change_skip([this](Floats sum, int64_t) { return mul(sum, splat(m_.skip_scale)); });
      }
      return;
    }
    multiply<F>(m_.skip, m_.layout, skip_rows_, {0, 1}, gates_from(0), team_.n, Sums{skip(0), rows, m_.skip_bias});
    for (int64_t l = 1; l < m_.L; ++l) {
      multiply<F>(m_.skip, m_.layout, skip_rows_, {l, l + 1}, gates_from(0), team_.n, Sums{skip(0), rows});
      const float* bias = m_.skip_bias + l * rows;
      change_skip([&](Floats sum, int64_t c) { return mul(add(sum, load(bias + c)), splat(m_.skip_scale)); });
    }
  }

  // change(vector, c) in place of the skip sums of channels c on, of every stream.
  template <class Change>
  void change_skip(const Change& change) {
    for (int b = 0; b < team_.n; ++b) {
      float* sums = skip(b);
      for (int64_t c = skip_rows_.first * kLanes; c < skip_rows_.last * kLanes; c += kLanes) {
        store(sums + c, change(load(sums + c), c));
      }
    }
  }

  // out = bias + W·relu(from)
  void dense(const float* from, int64_t stride, int64_t n, void* operands, float* scales, const Matrix& m, Range rows,
             Sums out) {
    const int64_t operand_stride = m_.operands(n);
    auto* to = static_cast<Operand*>(operands);
    for (int b = 0; b < team_.n; ++b) {
      const float* row = from + b * stride;
      to_operands([row](int64_t i) { return relu(load(row + i)); }, n, to + b * operand_stride, scales + b);
    }
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

  void keep_stage(float* Trace::* stage, const float* from, int64_t n) const {
    if (stream(0).trace) keep(stream(0).trace->*stage, team_.places[0].made, from, n);
  }

  void keep_layer(int64_t l) const {
    const Trace& trace = *stream(0).trace;
    const int64_t i = team_.places[0].made;
    keep(trace.gate, i * m_.L + l, gate_row(l, 0), m_.half);
    if (l + 1 < m_.L) keep(trace.x, i * (m_.L - 1) + l, x(0), m_.R);
    if (!trace.conditioning) return;
    float* to = trace.conditioning + (i * m_.L + l) * m_.G;
    for (int64_t c = 0; c < m_.half_pad; c += kLanes) {
      float pair[2 * kLanes];
      const int64_t row = l * m_.gate_pad + 2 * c;
      for (const int64_t i : {int64_t{0}, int64_t{kLanes}}) {
        hear([&](auto how) { store(pair + i, heard_[0].template onto<how()>(splat(0.f), row + i)); });
      }
      for (int64_t i = 0; i < kLanes && c + i < m_.half; ++i) {
        to[c + i] = pair[i];
        to[m_.half + c + i] = pair[kLanes + i];
      }
    }
  }
};

static void generate(const Model& model, Team& team, int rank, Scratch& scratch, Control& control) {
  switch (model.number) {
    case Number::fp32:
      return Loop<Fp32>(model, team, rank, scratch, control).run();
    case Number::bf16:
      return Loop<Bf16>(model, team, rank, scratch, control).run();
    case Number::fp16:
      return Loop<Fp16>(model, team, rank, scratch, control).run();
    case Number::int8:
      return Loop<Int8>(model, team, rank, scratch, control).run();
  }
}
