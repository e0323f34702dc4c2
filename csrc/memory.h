// Memory that every sample passes through.
#pragma once

#include <cstdint>
#include <memory>

namespace wavenet {

struct FreeMemory {
  void operator()(void* p) const;
};
using Memory = std::unique_ptr<char, FreeMemory>;

// Zeros that begin at a cache line. From half a huge page on they lie on huge pages if the system has them: a sample
// touches more pages than a core remembers, and walks through the page table cost time and room in the caches.
// Throws std::bad_alloc.
Memory zeros(int64_t bytes);

}  // namespace wavenet
