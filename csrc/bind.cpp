// Python's door to the engine. Every size that comes in is checked against the model before a pointer is taken.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "dispatch.h"
#include "run.h"
#include "stages.h"

namespace py = pybind11;
using namespace wavenet;

namespace wavenet {
void bind_bandwidth(py::module_& module);  // bind_bandwidth.cpp
}

namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

// --- configuration ---------------------------------------------------------------------------------------------------

// Fields of a configuration as plain Python objects, as msgspec's to_builtins gives them.
class Fields {
 public:
  Fields(py::handle dict, std::string path) : dict_(py::cast<py::dict>(dict)), path_(std::move(path)) {}

  py::object at(const char* name) const {
    if (!dict_.contains(name)) refuse("configuration field " + path_ + name + " is missing");
    return dict_[name];
  }
  Fields sub(const char* name) const { return Fields(at(name), path_ + name + "."); }
  bool none(const char* name) const { return at(name).is_none(); }
  std::string text(const char* name) const { return py::cast<std::string>(at(name)); }
  bool flag(const char* name) const { return py::cast<bool>(at(name)); }
  int64_t size(const char* name, int64_t low = 1, int64_t high = int64_t{1} << 24) const {
    const auto n = py::cast<int64_t>(at(name));
    if (n < low || n > high) refuse("configuration field " + path_ + name + " is " + std::to_string(n));
    return n;
  }
  double number(const char* name) const {
    const auto x = py::cast<double>(at(name));
    if (!std::isfinite(x)) refuse("configuration field " + path_ + name + " is not a finite number");
    return x;
  }

 private:
  py::dict dict_;
  std::string path_;
};

Activation activation_of(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "leaky_relu") return Activation::leaky_relu;
  if (name == "tanh") return Activation::tanh;
  refuse("activation " + name + " is unknown");
}

void read_shape(Model& m, const Fields& c) {
  m.hop = c.size("hop_length");
  m.M = c.size("n_mels");
  for (const py::handle d : py::cast<py::sequence>(c.at("dilations"))) {
    m.dilations.push_back(py::cast<int64_t>(d));
    if (m.dilations.back() < 1 || m.dilations.back() > (int64_t{1} << 24)) refuse("a dilation is out of range");
  }
  m.L = static_cast<int64_t>(m.dilations.size());
  if (m.L < 1 || m.L > 65536) refuse("the number of layers is out of range");
  m.K = c.size("kernel_size", 2);
  m.R = c.size("residual_channels");
  m.G = c.size("gate_channels", 2);
  if (m.G % 2) refuse("gate_channels must be even");
  m.S = c.size("skip_channels");
  m.H = c.size("head_channels");
  m.residual_scale = static_cast<float>(c.number("residual_scale"));
  m.skip_scale = static_cast<float>(c.number("skip_scale"));
  m.running_skip = c.text("skip_rule") == "running";
  m.steady_past = c.text("past") == "steady";
  m.P = c.sub("speakers").size("channels", 0);
}

void read_head(Model& m, const Fields& c) {
  const Fields head = c.sub("head");
  const std::string kind = head.text("kind");
  m.log_scale_min = -std::numeric_limits<float>::infinity();
  if (kind == "categorical") {
    m.head = HeadKind::categorical;
    m.A = head.size("classes", 2);
    return;
  }
  if (kind != "logistic" && kind != "gaussian") refuse("head.kind " + kind + " is unknown");
  m.head = kind == "logistic" ? HeadKind::logistic : HeadKind::gaussian;
  m.components = head.size("components");
  m.A = m.components > 1 ? 3 * m.components : 2;
  if (!head.none("log_scale_min")) m.log_scale_min = static_cast<float>(head.number("log_scale_min"));
}

void read_signal(Model& m, const Fields& c) {
  const Fields input = c.sub("input"), signal = c.sub("signal");
  m.one_hot = input.text("kind") == "onehot";
  m.in_channels = m.one_hot ? m.A : 1;
  m.in_taps = input.size("kernel_size");
  m.input_tanh = input.flag("tanh");
  m.start = m.one_hot && input.none("start") ? static_cast<float>(m.A / 2) : static_cast<float>(input.number("start"));
  m.companded = signal.text("domain") == "mulaw";
  m.preemphasis = static_cast<float>(signal.number("preemphasis"));
  m.gain = static_cast<float>(signal.number("gain"));
  m.mu = signal.number("mu");
  if (m.head != HeadKind::categorical) {
    if (m.one_hot) refuse("a one-hot input needs a categorical head");
    return;
  }
  m.mu = static_cast<double>(m.A - 1);
  const double offset = c.sub("head").number("decode_offset");
  for (int64_t y = 0; y < m.A; ++y) {
    const double companded = 2 * (static_cast<double>(y) - offset) / m.mu - 1;
    const double size = std::expm1(std::fabs(companded) * std::log1p(m.mu)) / m.mu;
    m.sound.push_back(static_cast<float>(std::copysign(size, companded)));
    m.feedback.push_back(m.companded ? static_cast<float>(companded) : m.sound.back());
  }
}

void read_conditioning(Model& m, const Fields& c) {
  const Fields conditioning = c.sub("conditioning");
  m.standardise = conditioning.flag("standardise");
  m.offset = conditioning.size("offset", -1, 0);
  int64_t width = m.M;
  const auto add = [&](const Fields& layer, NodeKind kind) {
    Node n;
    n.kind = kind;
    n.in = n.out = width;
    if (!layer.none("channels")) n.out = layer.size("channels");
    n.taps = layer.size("kernel_size");
    n.activation = activation_of(layer.text("activation"));
    n.slope = static_cast<float>(layer.number("slope"));
    if (kind == NodeKind::frame_conv) {
      n.replicate = layer.text("padding") == "replicate";
    } else {
      n.scale = layer.size("scale");
      n.image = layer.flag("image");
      n.freq_taps = layer.size("freq_kernel_size");
      if (kind == NodeKind::transposed) n.crop = layer.size("crop", 0);
    }
    width = n.out;
    m.nodes.push_back(n);
  };
  for (const py::handle conv : py::cast<py::sequence>(conditioning.at("network"))) {
    add(Fields(conv, "conditioning.network."), NodeKind::frame_conv);
  }
  const Fields up = conditioning.sub("upsampling");
  const std::string kind = up.text("kind");
  m.upsampling = kind == "hold" ? Upsampling::hold : kind == "linear" ? Upsampling::linear : Upsampling::stages;
  m.frame_centre = m.upsampling == Upsampling::linear ? up.number("frame_centre") : 0;
  if (m.upsampling == Upsampling::stages) {
    for (const py::handle stage : py::cast<py::sequence>(up.at("stages"))) {
      const Fields fields(stage, "conditioning.upsampling.stages.");
      add(fields, fields.text("kind") == "transposed" ? NodeKind::transposed : NodeKind::repeat);
    }
  }
  m.C = width;
}

Number number_named(const std::string& dtype) {
  if (dtype == "fp32") return Number::fp32;
  if (dtype == "bf16") return Number::bf16;
  if (dtype == "fp16") return Number::fp16;
  if (dtype == "int8") return Number::int8;
  refuse("number format " + dtype + " is unknown");
}

const Kernels& kernels_named(const std::string& isa) {
  for (const Isa& candidate : instruction_sets()) {
    if (isa != candidate.kernels->name) continue;
    if (!candidate.available) refuse("instruction set " + isa + " is not available here");
    return *candidate.kernels;
  }
  refuse("instruction set " + isa + " is unknown");
}

// A model and the kernels that it is packed for.
struct Engine : Model {
  const Kernels* kernels = nullptr;
};

std::unique_ptr<Engine> make_engine(const py::dict& config, const std::string& dtype, const std::string& isa,
                                    const py::dict& arrays) {
  auto m = std::make_unique<Engine>();
  m->kernels = &kernels_named(isa);
  m->number = number_named(dtype);
  m->layout = m->kernels->layouts[static_cast<int>(m->number)];
  m->plain = m->kernels->layouts[static_cast<int>(Number::fp32)];
  m->projection_number = projection_of(m->number);
  m->projection_layout = m->kernels->layouts[static_cast<int>(m->projection_number)];
  const Fields c(config, "");
  read_shape(*m, c);
  read_head(*m, c);
  read_signal(*m, c);
  read_conditioning(*m, c);
  m->derive();
  m->load([&arrays](const std::string& name) -> Model::Array {
    if (!arrays.contains(name.c_str())) refuse("packed array " + name + " is missing");
    const auto a = py::cast<py::array>(arrays[name.c_str()]);
    const bool known = py::isinstance<py::array_t<float>>(a) || py::isinstance<py::array_t<uint16_t>>(a) ||
                       py::isinstance<py::array_t<int8_t>>(a);
    if (!known || !(a.flags() & py::array::c_style)) {
      refuse("packed array " + name + " must be contiguous float32, uint16 or int8");
    }
    return {a.data(), a.size(), a.itemsize()};
  });
  return m;
}

// --- one call --------------------------------------------------------------------------------------------------------

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t n : shape) text += (text.empty() ? "(" : ", ") + std::to_string(n);
  return text + ")";
}

// The array's data if it is a contiguous T of exactly this shape; −1 stands for any size.
template <class T>
T* data_of(const py::array& a, const std::vector<int64_t>& shape, const char* name, bool writable) {
  bool fits = py::isinstance<py::array_t<T>>(a) && (a.flags() & py::array::c_style) &&
              a.ndim() == static_cast<py::ssize_t>(shape.size()) && (!writable || a.writeable());
  for (size_t i = 0; fits && i < shape.size(); ++i)
    fits = shape[i] == -1 || a.shape(static_cast<py::ssize_t>(i)) == shape[i];
  if (!fits) refuse(std::string("array ") + name + " must be contiguous, of its type and shape " + shape_text(shape));
  return static_cast<T*>(const_cast<void*>(a.data()));
}

template <class T>
const T* optional_data(const py::object& o, const std::vector<int64_t>& shape, const char* name) {
  return o.is_none() ? nullptr : data_of<const T>(py::cast<py::array>(o), shape, name, false);
}

template <class T>
T* optional_output(const py::object& o, const std::vector<int64_t>& shape, const char* name) {
  return o.is_none() ? nullptr : data_of<T>(py::cast<py::array>(o), shape, name, true);
}

bool is_input(const Model& m, float value, bool or_none) {
  if (!m.one_hot) return std::isfinite(value);
  return value == std::floor(value) && value < static_cast<float>(m.A) && (value >= 0 || (or_none && value == -1));
}

Trace trace_of(const Model& m, const py::dict& arrays, int64_t samples) {
  const auto rows = [&](const char* name, std::vector<int64_t> shape) {
    shape.insert(shape.begin(), samples);
    return arrays.contains(name) ? data_of<float>(py::cast<py::array>(arrays[name]), shape, name, true) : nullptr;
  };
  return {rows("conditioning", {m.L, m.G}),
          rows("embed", {m.R}),
          rows("gate", {m.L, m.half}),
          rows("x", {m.L - 1, m.R}),
          rows("skip", {m.S}),
          rows("hidden", {m.H}),
          rows("logits", {m.A})};
}

Split split_named(const std::string& name) {
  if (name == "auto") return Split::automatic;
  if (name == "streams") return Split::streams;
  if (name == "rows") return Split::rows;
  refuse("split " + name + " is unknown");
}

struct State {
  py::array rings, ring_scales, inputs, filters, positions, seeds, speakers, received, pending, pending_counts;
};

// Makes counts[b] samples of every stream b; state and outputs as in backends/cpu.py. Returns false when stopped.
bool generate(const Engine& m, const State& state, const py::array& mel, const py::array& frames,
              const py::array& ended, const py::array& counts, float temperature, int threads, const std::string& split,
              int ahead, const py::object& forced, const py::object& audio, const py::object& raw,
              const py::object& logits, const py::object& trace, const py::object& progress) {
  if (!(temperature > 0)) refuse("temperature must be positive");
  if (mel.ndim() != 3 || mel.shape(1) != m.M || !py::isinstance<py::array_t<float>>(mel))
    refuse("mel must be float32 (B, M, n)");
  const int64_t B = mel.shape(0), n = mel.shape(2), waiting = m.context_frames + m.lookahead_frames;
  for (int axis = 0; axis < 3; ++axis) {
    if (mel.strides(axis) % static_cast<int64_t>(sizeof(float)))
      refuse("mel's strides must be whole numbers of floats");
  }

  const std::vector<int64_t> ring_shape = {B, m.ring_slots * m.r_stride};
  const bool scaled = m.number == Number::int8;
  char* rings = static_cast<char*>(
      m.operand_bytes() == 4   ? static_cast<void*>(data_of<float>(state.rings, ring_shape, "rings", true))
      : m.operand_bytes() == 2 ? static_cast<void*>(data_of<uint16_t>(state.rings, ring_shape, "rings", true))
                               : static_cast<void*>(data_of<int8_t>(state.rings, ring_shape, "rings", true)));
  float* ring_scales = data_of<float>(state.ring_scales, {B, scaled ? m.ring_slots : 0}, "ring_scales", true);
  float* inputs = data_of<float>(state.inputs, {B, m.in_taps}, "inputs", true);
  float* filters = data_of<float>(state.filters, {B}, "filters", true);
  const int64_t* positions = data_of<int64_t>(state.positions, {B}, "positions", false);
  const uint64_t* seeds = data_of<uint64_t>(state.seeds, {B}, "seeds", false);
  const float* speakers = data_of<float>(state.speakers, {B, m.P}, "speakers", false);
  const int64_t* received = data_of<int64_t>(state.received, {B}, "received", false);
  const float* pending = data_of<float>(state.pending, {B, waiting, m.M}, "pending", false);
  const int64_t* pending_counts = data_of<int64_t>(state.pending_counts, {B}, "pending_counts", false);
  const int64_t* new_frames = data_of<int64_t>(frames, {B}, "frames", false);
  const bool* is_ended = data_of<bool>(ended, {B}, "ended", false);
  const int64_t* wanted = data_of<int64_t>(counts, {B}, "counts", false);

  int64_t capacity = 0, total = 0;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t known = received[b], count = wanted[b], t = positions[b];
    const bool counted = t >= 0 && t <= kUnbounded / 2 && known >= 0 && known <= kUnbounded / m.hop / 4 &&
                         new_frames[b] >= 0 && new_frames[b] <= n && pending_counts[b] >= 0 &&
                         pending_counts[b] <= std::min(waiting, known) && count >= 0;
    if (!counted) refuse("a count of the stream's state is out of range");
    if (count > ready_samples(m, known + new_frames[b], is_ended[b]) - t) {
      if (count) refuse("more samples are asked for than the mel frames allow");
    }
    if (count && std::max<int64_t>(0, t / m.hop - m.context_frames) < known - pending_counts[b]) {
      refuse("the stream's state does not hold the mel frames that its position needs");
    }
    for (int64_t j = 0; j < m.in_taps; ++j) {
      if (!is_input(m, inputs[b * m.in_taps + j], true)) refuse("a past input of the stream's state is out of range");
    }
    capacity = std::max(capacity, count);
    total += count;
  }

  const float* force = optional_data<float>(forced, {B, capacity}, "forced");
  float* sound = optional_output<float>(audio, {B, capacity}, "audio");
  float* draws = optional_output<float>(raw, {B, capacity}, "raw");
  float* logit_rows = optional_output<float>(logits, {B, -1, m.A}, "logits");
  const int64_t logit_capacity = logit_rows ? py::cast<py::array>(logits).shape(1) : 0;
  if (logit_rows && logit_capacity < capacity) refuse("array logits is too short");
  Trace traced{};
  if (!trace.is_none()) {
    if (B != 1) refuse("a trace is of one stream");
    traced = trace_of(m, py::cast<py::dict>(trace), capacity);
  }

  std::vector<Stream> streams;
  for (int64_t b = 0; b < B; ++b) {
    if (!wanted[b]) continue;
    Stream s{};
    s.rings = rings + b * ring_shape[1] * m.operand_bytes();
    s.ring_scales = ring_scales + (scaled ? b * m.ring_slots : 0);
    s.inputs = inputs + b * m.in_taps;
    s.filter = filters + b;
    s.position = positions[b];
    s.seed = seeds[b];
    s.speaker = speakers + b * m.P;
    s.pending = pending + b * waiting * m.M;
    s.pending_first = received[b] - pending_counts[b];
    s.frames_before = received[b];
    s.frames = received[b] + new_frames[b];
    s.mel = static_cast<const float*>(mel.data()) + b * (mel.strides(0) / static_cast<int64_t>(sizeof(float)));
    s.mel_band_stride = mel.strides(1) / static_cast<int64_t>(sizeof(float));
    s.mel_frame_stride = mel.strides(2) / static_cast<int64_t>(sizeof(float));
    s.ended = is_ended[b];
    s.samples = wanted[b];
    s.temperature =
        std::min(std::max(temperature, std::numeric_limits<float>::min()), std::numeric_limits<float>::max());
    if (force) s.forced = force + b * capacity;
    if (sound) s.audio = sound + b * capacity;
    if (draws) s.raw = draws + b * capacity;
    if (logit_rows) s.logits = logit_rows + b * logit_capacity * m.A;
    if (!trace.is_none()) s.trace = &traced;
    for (int64_t i = 0; force && i < s.samples; ++i) {
      if (!is_input(m, s.forced[i], false)) refuse("a forced value is out of range");
    }
    streams.push_back(s);
  }
  if (streams.empty()) return true;

  const Plan plan = plan_call(m.streamed_bytes(), static_cast<int64_t>(streams.size()), trace.is_none() ? threads : 1,
                              split_named(split), ahead);
  Control control;
  const py::gil_scoped_release release;
  return run(m, *m.kernels, streams, plan, control, [&] {
    const py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!progress.is_none()) progress(control.done.load(), total);
    return true;
  });
}

// --- for tests -------------------------------------------------------------------------------------------------------

using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

FloatArray gate_values(const std::string& isa, const FloatArray& a, const FloatArray& b) {
  const Kernels& kernels = kernels_named(isa);
  if (a.ndim() != 1 || a.size() != b.size() || a.size() % kernels.layouts[0].lanes)
    refuse("give two vectors of whole blocks");
  FloatArray out(a.size());
  kernels.gate(a.data(), b.data(), out.mutable_data(), a.size());
  return out;
}

FloatArray exponential_values(const std::string& isa, const FloatArray& x) {
  const Kernels& kernels = kernels_named(isa);
  if (x.ndim() != 1 || x.size() % kernels.layouts[0].lanes) refuse("give a vector of whole blocks");
  FloatArray out(x.size());
  kernels.exponential(x.data(), out.mutable_data(), x.size());
  return out;
}

py::list describe_isas() {
  py::list all;
  for (const Isa& isa : instruction_sets()) {
    py::dict d;
    d["name"] = isa.kernels->name;
    py::dict layouts;
    for (const char* dtype : {"fp32", "bf16", "fp16", "int8"}) {
      const Layout& layout = isa.kernels->layouts[static_cast<int>(number_named(dtype))];
      layouts[dtype] = py::make_tuple(layout.lanes, layout.accumulators, layout.run, layout.pack);
    }
    d["layouts"] = layouts;
    d["available"] = isa.available;
    d["automatic"] = isa.automatic;
    d["needs"] = isa.needs;
    all.append(d);
  }
  return all;
}

py::array_t<uint8_t> zero_bytes(int64_t bytes) {
  if (bytes < 0) refuse("cannot give " + std::to_string(bytes) + " bytes");
  Memory memory;
  {
    const py::gil_scoped_release release;
    memory = zeros(bytes);
  }
  auto* first = reinterpret_cast<uint8_t*>(memory.get());
  const py::capsule owner(memory.get(), [](void* p) { FreeMemory()(p); });
  memory.release();
  return py::array_t<uint8_t>(bytes, first, owner);
}

}  // namespace

PYBIND11_MODULE(_engine, module) {
  module.doc() =
      "The native sample loop. Use it through wavenet_fast.backends.cpu, which checks arguments in sentences.";
  module.def("isas", &describe_isas);
  module.def("second_cache", &second_cache);
  module.def("zeros", &zero_bytes, py::arg("bytes"));
  module.def(
      "plan",
      [](int64_t weight_bytes, int64_t streams, int threads, const std::string& split, int ahead) {
        const Plan plan = plan_call(weight_bytes, streams, threads, split_named(split), ahead);
        return py::make_tuple(plan.teams, plan.size, plan.width, plan.ahead);
      },
      py::arg("weight_bytes"), py::arg("streams"), py::arg("threads"), py::arg("split"), py::arg("ahead") = 0);
  py::class_<Engine>(module, "Model")
      .def(py::init(&make_engine), py::arg("config"), py::arg("dtype"), py::arg("isa"), py::arg("arrays"))
      .def_property_readonly("streamed_bytes", &Engine::streamed_bytes)
      .def_property_readonly("ring_channels", [](const Engine& m) { return m.r_stride; })
      .def_property_readonly("lookahead_frames", [](const Engine& m) { return m.lookahead_frames; })
      .def_property_readonly("context_frames", [](const Engine& m) { return m.context_frames; });
  py::class_<State>(module, "State")
      .def(py::init([](py::array rings, py::array ring_scales, py::array inputs, py::array filters, py::array positions,
                       py::array seeds, py::array speakers, py::array received, py::array pending,
                       py::array pending_counts) {
             return State{rings, ring_scales, inputs,   filters, positions,
                          seeds, speakers,    received, pending, pending_counts};
           }),
           py::kw_only(), py::arg("rings"), py::arg("ring_scales"), py::arg("inputs"), py::arg("filters"),
           py::arg("positions"), py::arg("seeds"), py::arg("speakers"), py::arg("received"), py::arg("pending"),
           py::arg("pending_counts"));
  module.def("generate", &generate, py::kw_only(), py::arg("model"), py::arg("state"), py::arg("mel"),
             py::arg("frames"), py::arg("ended"), py::arg("counts"), py::arg("temperature"), py::arg("threads"),
             py::arg("split"), py::arg("ahead"), py::arg("forced"), py::arg("audio"), py::arg("raw"), py::arg("logits"),
             py::arg("trace"), py::arg("progress"));
  module.def("gate", &gate_values, py::arg("isa"), py::arg("a"), py::arg("b"));
  module.def("exponential", &exponential_values, py::arg("isa"), py::arg("x"));
  bind_bandwidth(module);
  py::class_<StageRoom>(module, "Stages")
      .def(py::init([](const Engine& m, int streams) { return std::make_unique<StageRoom>(m, *m.kernels, streams); }),
           py::arg("model"), py::arg("streams"), py::keep_alive<1, 2>())
      .def("run", &StageRoom::run, py::arg("stage"), py::arg("times"), py::call_guard<py::gil_scoped_release>())
      .def(
          "row",
          [](const StageRoom& room, const std::string& name, int stream) {
            const std::vector<float> row = room.row(name, stream);
            return py::array_t<float>(static_cast<py::ssize_t>(row.size()), row.data());
          },
          py::arg("name"), py::arg("stream"));
}
