// Python's door to the probes of bandwidth.h.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "bandwidth.h"
#include "dispatch.h"

namespace py = pybind11;

namespace wavenet {
namespace {

// The loop of that kind; null where the instruction set has none.
ReadLoop loop_of(const Kernels& kernels, const std::string& kind) {
  if (kind == "vector") return kernels.read_vectors;
  if (kind == "tile") return kernels.read_tiles;
  throw std::invalid_argument("a reading loop is a vector or a tile loop, not " + kind);
}

// (instruction set, kind) of every reading loop that this CPU can run.
py::list read_loops() {
  py::list all;
  for (const Isa& isa : instruction_sets()) {
    if (!isa.available) continue;
    for (const char* kind : {"vector", "tile"}) {
      if (loop_of(*isa.kernels, kind)) all.append(py::make_tuple(isa.kernels->name, kind));
    }
  }
  return all;
}

py::tuple read(const ReadProbe& probe, const std::string& isa, const std::string& kind, int64_t times) {
  if (times < 1) throw std::invalid_argument("read at least once");
  for (const Isa& candidate : instruction_sets()) {
    if (isa != candidate.kernels->name || !candidate.available) continue;
    const ReadLoop loop = loop_of(*candidate.kernels, kind);
    if (!loop) break;
    ReadProbe::Reading reading;
    {
      const py::gil_scoped_release release;
      reading = probe.run(loop, times);
    }
    return py::make_tuple(reading.seconds, reading.sum);
  }
  throw std::invalid_argument("there is no " + kind + " loop of instruction set " + isa + " here");
}

}  // namespace

void bind_bandwidth(py::module_& module) {
  py::class_<ReadProbe>(module, "ReadProbe")
      .def(py::init<int64_t, int>(), py::arg("bytes"), py::arg("threads"))
      .def("run", &read, py::arg("isa"), py::arg("kind"), py::arg("times"));
  module.def("read_loops", &read_loops);
  module.def("spin", &spin, py::arg("count"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace wavenet
