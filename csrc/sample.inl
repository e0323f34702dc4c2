// Logits → the next sample, and the sound it means. The formulas are those of sampling.py.

// Number of classes below the last whose prefix sum of e^((l − max)/temperature) is at most u · total. The sums run
// over groups of 16 classes first and inside the chosen group then. `weights` has room for n rounded up to 16, and a
// sixteenth of that more.
static int64_t choose(const float* logits, int64_t n, float u, float temperature, float* weights) {
  constexpr int64_t kGroup = 16;
  const int64_t padded = round_up(n, kGroup);
  __builtin_memcpy(weights, logits, static_cast<size_t>(n) * sizeof(float));
  for (int64_t i = n; i < padded; ++i) weights[i] = -HUGE_VALF;
  Floats top = load(weights);
  for (int64_t i = kLanes; i < padded; i += kLanes) top = max(top, load(weights + i));
  const Floats most = splat(highest(top));
  for (int64_t i = 0; i < padded; i += kLanes) {
    const Floats below = sub(load(weights + i), most);
    store(weights + i, exponential(temperature == 1.f ? below : div(below, splat(temperature))));
  }
  float total = 0;
  float* before = weights + padded;  // sum of the groups before
  for (int64_t g = 0; g < padded / kGroup; ++g) {
    before[g] = total;
    total += sum_of_16(weights + g * kGroup);
  }
  const float threshold = u * total;
  int64_t g = padded / kGroup - 1;
  while (g > 0 && before[g] > threshold) --g;
  float sum = before[g];
  const int64_t last = (g + 1) * kGroup < n ? (g + 1) * kGroup - 1 : n - 1;
  int64_t c = g * kGroup;
  for (; c < last; ++c) {
    sum += weights[c];
    if (sum > threshold) break;
  }
  // The sums of a group and within it may differ by a rounding: what has no weight is not drawn for that.
  while (c > 0 && weights[c] == 0.f && total > 0.f) --c;
  return c;
}

// Φ⁻¹(v) = √2·erfinv(2v − 1) by the single-precision polynomials of M. Giles, "Approximating the erfinv function"
// (2011); 1 − x² computed as 4·v·(1 − v).
static float normal_quantile(float v) {
  const float w = -logf(4.f * v * (1.f - v));
  float p;
  if (w < 5.f) {
    static const float c[] = {2.81022636e-08f, 3.43273939e-07f, -3.5233877e-06f, -4.39150654e-06f, 0.00021858087f,
                              -0.00125372503f, -0.00417768164f, 0.246640727f,    1.50140941f};
    const float x = w - 2.5f;
    p = c[0];
    for (int i = 1; i < 9; ++i) p = p * x + c[i];
  } else {
    static const float c[] = {-0.000200214257f, 0.000100950558f, 0.00134934322f, -0.00367342844f, 0.00573950773f,
                              -0.0076224613f,   0.00943887047f,  1.00167406f,    2.83297682f};
    const float x = sqrtf(w) - 3.f;
    p = c[0];
    for (int i = 1; i < 9; ++i) p = p * x + c[i];
  }
  return 1.41421356f * p * (2.f * v - 1.f);
}

// A class, or a value in −1 … 1 in the model's domain.
static float draw(const Model& m, const float* logits, const Uniforms& uniforms, float temperature, float* weights) {
  if (m.head == HeadKind::categorical) {
    return static_cast<float>(choose(logits, m.A, uniforms.u[0], temperature, weights));
  }
  const int64_t n = m.components;
  int64_t c = 0;
  if (n > 1) {
    c = choose(logits, n, uniforms.u[0], temperature, weights);
    logits += n;
  }
  const float mean = logits[c];
  const float log_scale = logits[n + c] > m.log_scale_min ? logits[n + c] : m.log_scale_min;
  // The largest float instead of infinity: infinity times a quantile of exactly 0 would be NaN.
  const float scaled = expf(log_scale) * temperature;
  const float scale = scaled < 3.4028234e38f ? scaled : 3.4028234e38f;
  const float u = uniforms.u[1], v = u < 1e-5f ? 1e-5f : u > 1.f - 1e-5f ? 1.f - 1e-5f : u;
  const float quantile = m.head == HeadKind::logistic ? logf(v) - logf(1.f - v) : normal_quantile(v);
  const float value = mean + scale * quantile;
  return value > -1.f ? (value < 1.f ? value : 1.f) : -1.f;  // a NaN becomes −1
}

// Inverse of µ-law companding.
static float expand(double y, double mu) {
  const double size = expm1(__builtin_fabs(y) * log1p(mu)) / mu;
  return static_cast<float>(y < 0 ? -size : size);
}

// The sound of a draw, before de-emphasis and gain.
static float sound_of_draw(const Model& m, float value) {
  if (m.head == HeadKind::categorical) return m.sound[static_cast<size_t>(value)];
  return m.companded ? expand(value, m.mu) : value;
}

// The sound of what is fed back.
static float sound_of_input(const Model& m, float value) {
  if (m.one_hot) return m.sound[static_cast<size_t>(value)];
  return m.companded ? expand(value, m.mu) : value;
}
