// Which kernels this CPU can run.
#pragma once

#include <vector>

#include "stream.h"

namespace wavenet {

struct Isa {
  const Kernels* kernels;
  bool available;     // on this CPU and under this operating system
  const char* needs;  // what the CPU must have, for people
  bool automatic;     // may be chosen without being asked for
};

// Every instruction set compiled in, best last.
const std::vector<Isa>& instruction_sets();

}  // namespace wavenet
