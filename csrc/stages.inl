// The stages of stages.h.

template <class F>
class Stages {
 public:
  Stages(const Model& model, StageRoom& room) : m_(model), r_(room) {
    tiles_.serve(r_.n);
    // Operands of the stages that do not make their own.
    for (int64_t k = 0; k < m_.K; ++k) tap_operands(k);
    activate();
    for (int64_t l = 0; l < m_.L; ++l) gate_operands(l);
  }

  void run(Stage stage, int64_t times) {
    for (int64_t i = 0; i < times; ++i) {
      switch (stage) {
        case Stage::dilated:
          for (int64_t l = 0; l < m_.L; ++l) dilated(l);
          break;
        case Stage::gate:
          for (int64_t l = 0; l < m_.L; ++l) {
            activate();
            gate_operands(l);
          }
          break;
        case Stage::residual_skip:
          for (int64_t l = 0; l + 1 < m_.L; ++l) {
            product(m_.residual[l], m_.residual_bias + l * m_.pad(m_.R), {0, 1}, gates(l), r_.residual, m_.pad(m_.R));
          }
          product(m_.skip, m_.skip_bias_sum.data(), {0, m_.L}, gates(0), r_.skip, m_.pad(m_.S));
          break;
        case Stage::head:
          dense(r_.skip, m_.S, r_.skips, r_.skip_scale, m_.hidden, m_.hidden_bias, r_.hidden, m_.pad(m_.H));
          dense(r_.hidden, m_.H, r_.hiddens, r_.hidden_scale, m_.out, m_.out_bias, r_.logits, m_.pad(m_.A));
          break;
        case Stage::sample:
          for (int b = 0; b < r_.n; ++b) {
            const Uniforms u = uniforms(static_cast<uint64_t>(b), static_cast<uint64_t>(r_.position));
            r_.draw[b] = draw(m_, r_.logits + b * m_.pad(m_.A), u, 1.f, r_.weights);
          }
          ++r_.position;
          break;
      }
    }
  }

 private:
  using Operand = typename F::Operand;

  const Model& m_;
  StageRoom& r_;
  Tiles tiles_;

  // out = bias + Σ_s W[s]·x[s]
  void product(const Matrix& m, const float* bias, Range segments, const Operands<F>& x, float* out, int64_t stride) {
    multiply<F>(m, m_.layout, {0, m.vectors}, segments, x, r_.n, Sums{out, stride, bias});
  }

  // x → the operands of tap k
  void tap_operands(int64_t k) {
    for (int b = 0; b < r_.n; ++b) {
      const float* from = r_.x + b * m_.x_stride;
      const int64_t at = b * m_.K + k;
      auto* to = static_cast<Operand*>(r_.taps) + at * m_.r_stride;
      to_operands([from](int64_t i) { return load(from + i); }, m_.R, to, r_.tap_scale + at);
    }
  }

  // x → the newest operands → z of layer l; the older taps have been operands for a while.
  void dilated(int64_t l) {
    tap_operands(m_.K - 1);
    auto* taps = static_cast<Operand*>(r_.taps);
    const Operands<F> x{taps, m_.K * m_.r_stride, r_.tap_scale, m_.K, m_.r_stride, 1};
    product(m_.dilated[l], m_.dilated_bias + l * m_.gate_pad, {0, m_.K}, x, r_.z, m_.gate_pad);
  }

  // z → gate
  void activate() {
    for (int b = 0; b < r_.n; ++b) {
      const float* from = r_.z + b * m_.gate_pad;
      float* to = r_.gate + b * m_.half_pad;
      for (int64_t c = 0; c < m_.half_pad; c += kLanes) {
        store(to + c, gate(load(from + 2 * c), load(from + 2 * c + kLanes)));
      }
    }
  }

  void gate_operands(int64_t l) {
    for (int b = 0; b < r_.n; ++b) {
      const float* from = r_.gate + b * m_.half_pad;
      const int64_t at = b * m_.L + l;
      auto* to = static_cast<Operand*>(r_.gates) + at * m_.operands(m_.half);
      to_operands([from](int64_t i) { return load(from + i); }, m_.half, to, r_.gate_scale + at);
    }
  }

  // The gates of layer l, or of all layers from l on as segments.
  Operands<F> gates(int64_t l) const {
    const int64_t size = m_.operands(m_.half);
    return {static_cast<Operand*>(r_.gates) + l * size, m_.L * size, r_.gate_scale + l, m_.L, size, 1};
  }

  // out = bias + W·relu(from)
  void dense(const float* from, int64_t n, void* operands, float* scales, const Matrix& m, const float* bias,
             float* out, int64_t stride) {
    const int64_t size = m_.operands(n), from_stride = m_.pad(n);
    auto* to = static_cast<Operand*>(operands);
    for (int b = 0; b < r_.n; ++b) {
      const float* row = from + b * from_stride;
      to_operands([row](int64_t i) { return relu(load(row + i)); }, n, to + b * size, scales + b);
    }
    product(m, bias, {0, 1}, Operands<F>{to, size, scales}, out, stride);
  }
};

static void run_stage(const Model& model, StageRoom& room, Stage stage, int64_t times) {
  switch (model.number) {
    case Number::fp32:
      return Stages<Fp32>(model, room).run(stage, times);
    case Number::bf16:
      return Stages<Bf16>(model, room).run(stage, times);
    case Number::fp16:
      return Stages<Fp16>(model, room).run(stage, times);
    case Number::int8:
      return Stages<Int8>(model, room).run(stage, times);
  }
}
