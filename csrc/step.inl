// The sample loop of one stream. T is the operand type: float, or uint16_t holding bf16.
// embed → per layer: dilated, gate, residual → skip → head → sample; no call leaves native code.

template <class T>
class Loop {
 public:
  Loop(const Model& model, const Stream& stream, Scratch& scratch, Control& control)
      : m_(model), st_(stream), s_(scratch), control_(control), conditioner_(model, stream, scratch, control.stop) {
    for (int64_t l = 0; l < m_.L; ++l) s_.slots[l] = stream.position % m_.ring_depth[l];
  }

  bool run() {
    for (int64_t i = 0; i < st_.samples; ++i) {
      const int64_t t = st_.position + i;
      const float* conditioning = conditioner_.at(t);
      embed();
      keep(st_.trace ? st_.trace->embed : nullptr, i, s_.x, m_.R);
      for (int64_t l = 0; l < m_.L; ++l) {
        if (control_.stop.load(std::memory_order_relaxed)) return false;
        layer(l, conditioning + l * m_.gate_pad);
        if (st_.trace) keep_layer(i, l, conditioning + l * m_.gate_pad);
      }
      head(i);
      feed(i, draw(m_, s_.logits, uniforms(st_.seed, static_cast<uint64_t>(t)), st_.temperature, s_.weights));
      control_.done.fetch_add(1, std::memory_order_relaxed);
    }
    return true;
  }

 private:
  const Model& m_;
  const Stream& st_;
  Scratch& s_;
  Control& control_;
  Conditioner conditioner_;

  T* newest() const { return static_cast<T*>(s_.newest); }
  T* gates(int64_t l) const { return static_cast<T*>(s_.gates) + l * s_.gate_stride; }
  T* slot(int64_t l, int64_t index) const {
    return static_cast<T*>(st_.rings) + m_.ring_offset[l] + index * m_.r_stride;
  }

  // Past inputs → x (R).
  void embed() {
    for (int64_t c = 0; c < m_.r_stride; c += kLanes) {
      Floats x = splat(0.f);
      for (int64_t j = 0; j < m_.in_taps; ++j) {
        const float value = st_.inputs[j];
        const float* tap = m_.input + j * m_.in_channels * m_.r_stride + c;
        if (!m_.one_hot) {
          x = fma(load(tap), splat(value), x);
        } else if (value >= 0) {
          x = add(x, load(tap + static_cast<int64_t>(value) * m_.r_stride));
        }
      }
      x = add(x, load(m_.input_bias + c));
      store(s_.x + c, m_.input_tanh ? tangent(x) : x);
    }
  }

  // x → gate of layer l → x for the layer above.
  void layer(int64_t l, const float* conditioning) {
    const int64_t depth = m_.ring_depth[l], dilation = m_.dilations[l], now = s_.slots[l];
    const T** taps = reinterpret_cast<const T**>(s_.taps);
    to_operand(s_.x, m_.R, newest());
    for (int64_t k = 0; k + 1 < m_.K; ++k) {  // tap k is (K−1−k)·D samples old; the oldest lies where `now` will go
      const int64_t ahead = now + k * dilation;
      taps[k] = slot(l, ahead < depth ? ahead : ahead - depth);
    }
    taps[m_.K - 1] = newest();
    const Matrix& dilated = m_.dilated[l];
    for_blocks<T>(dilated, Product<T>{taps, m_.K, dilated.k, conditioning, m_.dilated_bias + l * m_.gate_pad, s_.z});
    __builtin_memcpy(slot(l, now), newest(), static_cast<size_t>(m_.R) * sizeof(T));
    s_.slots[l] = now + 1 < depth ? now + 1 : 0;

    for (int64_t c = 0; c < m_.half_pad; c += kLanes) {
      store(s_.gate + c, gate(load(s_.z + c), load(s_.z + m_.half_pad + c)));
    }
    to_operand(s_.gate, m_.half, gates(l));
    if (l + 1 == m_.L) return;
    const Matrix& residual = m_.residual[l];
    const T* operand = gates(l);
    const int64_t rows = residual.vectors * kLanes;
    for_blocks<T>(residual, Product<T>{&operand, 1, residual.k, s_.x, m_.residual_bias + l * rows, s_.x});
    if (m_.residual_scale != 1.f) {
      const Floats scale = splat(m_.residual_scale);
      for (int64_t c = 0; c < rows; c += kLanes) store(s_.x + c, mul(load(s_.x + c), scale));
    }
  }

  // All gates → skip → hidden → logits.
  void head(int64_t i) {
    const int64_t rows = m_.skip.vectors * kLanes;
    for_blocks<T>(m_.skip, SkipSum<T>{gates(0), s_.gate_stride, m_.L, m_.skip.k, m_.skip_bias, rows, m_.skip_scale,
                                      m_.running_skip, s_.skip});
    T* operand = static_cast<T*>(s_.skip_operand);
    to_operand_relu(s_.skip, m_.S, operand);
    for_blocks<T>(m_.hidden, Dense<T>{operand, m_.hidden.k, m_.hidden_bias, s_.hidden});
    operand = static_cast<T*>(s_.hidden_operand);
    to_operand_relu(s_.hidden, m_.H, operand);
    for_blocks<T>(m_.out, Dense<T>{operand, m_.out.k, m_.out_bias, s_.logits});
    keep(st_.logits, i, s_.logits, m_.A);
    if (st_.trace) {
      keep(st_.trace->skip, i, s_.skip, m_.S);
      keep(st_.trace->hidden, i, s_.hidden, m_.H);
      keep(st_.trace->logits, i, s_.logits, m_.A);
    }
  }

  // The draw becomes sound and, unless the history is forced, the newest input.
  void feed(int64_t i, float drawn) {
    const float emphasised = sound_of_draw(m_, drawn) + m_.preemphasis * *st_.filter;
    const float sound = emphasised / m_.gain;
    if (st_.audio) st_.audio[i] = sound > -1.f ? (sound < 1.f ? sound : 1.f) : -1.f;
    if (st_.raw) st_.raw[i] = drawn;
    float next = drawn;
    if (st_.forced) {
      next = st_.forced[i];
      *st_.filter = sound_of_input(m_, next) + m_.preemphasis * *st_.filter;
    } else {
      *st_.filter = emphasised;
      if (!m_.one_hot && m_.head == HeadKind::categorical) next = m_.feedback[static_cast<size_t>(drawn)];
    }
    for (int64_t j = 0; j + 1 < m_.in_taps; ++j) st_.inputs[j] = st_.inputs[j + 1];
    st_.inputs[m_.in_taps - 1] = next;
  }

  // Row `index` of (…, n).
  void keep(float* rows, int64_t index, const float* from, int64_t n) const {
    if (rows) __builtin_memcpy(rows + index * n, from, static_cast<size_t>(n) * sizeof(float));
  }

  void keep_layer(int64_t i, int64_t l, const float* conditioning) const {
    const Trace& trace = *st_.trace;
    keep(trace.conditioning, (i * m_.L + l) * 2, conditioning, m_.half);
    keep(trace.conditioning, (i * m_.L + l) * 2 + 1, conditioning + m_.half_pad, m_.half);
    keep(trace.gate, i * m_.L + l, s_.gate, m_.half);
    if (l + 1 < m_.L) keep(trace.x, i * (m_.L - 1) + l, s_.x, m_.R);
  }
};

static bool generate(const Model& model, const Stream& stream, Scratch& scratch, Control& control) {
  if (model.number == Number::fp32) return Loop<float>(model, stream, scratch, control).run();
  return Loop<uint16_t>(model, stream, scratch, control).run();
}
