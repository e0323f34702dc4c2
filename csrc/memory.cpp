#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace wavenet {

void FreeMemory::operator()(void* p) const { std::free(p); }

Memory zeros(int64_t bytes) {
  constexpr int64_t kHugePage = int64_t{2} << 20, kLine = 64;
  if (bytes > INT64_MAX - kHugePage) throw std::bad_alloc();
  const int64_t unit = bytes >= kHugePage / 2 ? kHugePage : kLine;
  const int64_t room = (std::max<int64_t>(bytes, 1) + unit - 1) / unit * unit;
  Memory memory(static_cast<char*>(std::aligned_alloc(unit, room)));
  if (!memory) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (unit == kHugePage) madvise(memory.get(), room, MADV_HUGEPAGE);
#endif
  std::memset(memory.get(), 0, bytes);
  return memory;
}

}  // namespace wavenet
