// One launch as a program of its own, for the sanitizers: reads a request from a file, launches, writes the outcome.
//
//   REQUEST  header, regions (each followed by its bytes), parameters (each followed by its bytes), pointers
//   OUTCOME  status, report, counters, the bytes of every region
//
// Every region gets memory of its own, so that AddressSanitizer puts a red zone on both sides.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "simt.h"

extern "C" void __tsan_ignore_thread_begin() __attribute__((weak));

namespace {

struct Header {
  u32 kernel;
  simt::Dim grid, block;
  u32 cluster;
  s32 mutant;
  u32 n_params;
  u64 dynamic_shared, seed, max_spins, n_regions, n_pointers, n_counters;
};
struct Pointer {  // where in the parameters an address lies, and what it points to
  u64 param, at, region, offset;
};

void transfer(bool ok) {
  if (ok) return;
  fprintf(stderr, "the request or the outcome cannot be transferred\n");
  exit(65);
}
template <class T>
T get(FILE* file) {
  T value;
  transfer(fread(&value, sizeof value, 1, file) == 1);
  return value;
}
void get(FILE* file, void* to, u64 size) { transfer(!size || fread(to, size, 1, file) == 1); }
void put(FILE* file, const void* from, u64 size) { transfer(!size || fwrite(from, size, 1, file) == 1); }

}  // namespace

int main(int count, char** words) {
  transfer(count == 3);
  FILE* in = fopen(words[1], "rb");
  transfer(in);
  auto header = get<Header>(in);
  std::vector<simt::Region> regions(header.n_regions);
  for (auto& region : regions) {
    region = get<simt::Region>(in);
    void* place = nullptr;
    transfer(!posix_memalign(&place, 256, region.size));  // as far apart as a GPU's allocator puts them
    get(in, place, region.size);
    region.base = reinterpret_cast<u64>(place);
  }
  std::vector<std::vector<char>> values(header.n_params);
  std::vector<void*> params;
  for (auto& value : values) {
    value.resize(get<u64>(in));
    get(in, value.data(), value.size());
    params.push_back(value.data());
  }
  for (u64 i = 0; i < header.n_pointers; i++) {
    auto pointer = get<Pointer>(in);
    u64 address = regions[pointer.region].base + pointer.offset;
    memcpy(values[pointer.param].data() + pointer.at, &address, sizeof address);
  }
  fclose(in);

  std::vector<simt::Region> sorted = regions;
  for (size_t i = 1; i < sorted.size(); i++)
    for (size_t j = i; j && sorted[j].base < sorted[j - 1].base; j--) std::swap(sorted[j], sorted[j - 1]);
  std::vector<u64> counts(header.n_counters * header.grid.count() * header.block.count());
  auto report = std::make_unique<simt::Report>();
  simt::Request request{header.kernel,     header.grid,      header.block,
                        header.cluster,    header.mutant,    header.dynamic_shared,
                        header.seed,       header.max_spins, params.data(),
                        sorted.data(),     sorted.size(),    counts.empty() ? nullptr : counts.data(),
                        header.n_counters, nullptr};
  s32 status = wavenet_fast_launch(&request, report.get());

  // What the kernel has written may be read now, also where a launch failed and its threads never came to an end.
  if (__tsan_ignore_thread_begin) __tsan_ignore_thread_begin();
  FILE* out = fopen(words[2], "wb");
  transfer(out);
  put(out, &status, sizeof status);
  put(out, report.get(), sizeof *report);
  put(out, counts.data(), counts.size() * sizeof(u64));
  for (auto& region : regions) put(out, reinterpret_cast<void*>(region.base), region.size);
  transfer(!fclose(out));
  fflush(nullptr);
  _Exit(0);
}
