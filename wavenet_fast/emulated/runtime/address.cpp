// Addresses and what is deferred: which memory an address is, and copies that land later.
#include <cstdio>
#include <algorithm>
#include <string>

#include "machine.h"

namespace simt {

Window read_window, write_window;

namespace {

const Region* region_of(u64 address) {
  auto next =
      std::upper_bound(regions.begin(), regions.end(), address, [](u64 a, const Region& r) { return a < r.base; });
  return next == regions.begin() ? nullptr : &*(next - 1);
}

// Bytes between an address and a region, 0 inside of it.
u64 distance(const Region& region, u64 address) {
  if (address < region.base) return region.base - address;
  return address - region.base < region.size ? 0 : address - region.base - region.size;
}

std::string relative(u64 address) {
  if (!address) return "the null pointer";
  const Region* best = nullptr;
  for (auto& region : regions)
    if (!best || distance(region, address) < distance(*best, address)) best = &region;
  char text[160];
  if (!best || distance(*best, address) > u64(1) << 20) {
    snprintf(text, sizeof text, "address 0x%llx, which is far from every argument", (unsigned long long)address);
    return text;
  }
  char name[48] = "a module variable";
  if (best->argument >= 0)
    snprintf(name, sizeof name, "argument %d", best->argument);
  else if (best->argument == -1)
    snprintf(name, sizeof name, "a further buffer");
  else if (best->argument <= kByValue)
    snprintf(name, sizeof name, "argument %d, which is passed by value,", kByValue - best->argument);
  snprintf(text, sizeof text, "byte %lld of %s, which has %llu", (long long)(address - best->base), name,
           (unsigned long long)best->size);
  return text;
}

Block* block_of_shared(const Thread& t, u64 address) {
  u32 first = t.block->index / cluster * cluster;
  for (u32 i = first; i < first + cluster; i++) {
    u64 base = reinterpret_cast<u64>(blocks[i]->shared);
    if (address - base < std::max<u64>(shared_size, 1)) return blocks[i].get();
  }
  return nullptr;
}

}  // namespace

std::string name_of_place(const void* place) {
  u64 address = reinterpret_cast<u64>(place);
  for (auto& home : blocks)
    if (u64 offset = address - reinterpret_cast<u64>(home->shared); offset < shared_size)
      return "byte " + std::to_string(offset) + " of the shared memory of block " + std::to_string(home->index);
  return relative(address);
}

void check_writable(Thread& thread, u64 address, u32 size, int line) {
  Unchecked unchecked;
  const Region* region = region_of(address);
  if (region && address - region->base < region->size && !region->writable)
    fail(thread, line, "store of %u bytes to read-only memory: %s", size, relative(address).c_str());
}

char* find_global(Thread& thread, u64 address, u32 size, u32 align, bool write, int line) {
  Unchecked unchecked;
  const char* verb = write ? "store" : "load";
  const Region* region = region_of(address);
  if (!region || address - region->base > region->size || region->size - (address - region->base) < size)
    fail(thread, line, "%s of %u bytes out of bounds: %s", verb, size, relative(address).c_str());
  if (write) check_writable(thread, address, size, line);
  if (address % align)
    fail(thread, line, "misaligned %s of %u bytes: %s (address 0x%llx)", verb, size, relative(address).c_str(),
         (unsigned long long)address);
  read_window = {region->base, region->size};
  if (region->writable) write_window = read_window;
  return reinterpret_cast<char*>(address);
}

char* find_generic(Thread& thread, u64 address, u32 size, u32 align, bool write, int line) {
  Unchecked unchecked;
  Block* owner = block_of_shared(thread, address);
  u64 base = owner ? reinterpret_cast<u64>(owner->shared) : 0, limit = shared_size;
  const char* what = "shared memory";
  for (const Frame* frame = &thread.local; frame && !base; frame = frame->caller)
    if (address - reinterpret_cast<u64>(frame->base) < frame->size)
      base = reinterpret_cast<u64>(frame->base), limit = frame->size, what = "local memory";
  if (!base) return find_global(thread, address, size, align, write, line);
  if (owner && owner != thread.block && !owner->live)
    fail(thread, line, "access to the shared memory of block %u, which has exited", owner->index);
  if (address - base + size > limit)
    fail(thread, line, "access of %u bytes out of bounds: byte %llu of %s, which has %llu", size,
         (unsigned long long)(address - base), what, (unsigned long long)limit);
  if (address % align)
    fail(thread, line, "misaligned access of %u bytes: byte %llu of %s", size, (unsigned long long)(address - base),
         what);
  return reinterpret_cast<char*>(address);
}

char* find_shared(Thread& thread, u64 address, u32 size, u32 align, int line) {
  Unchecked unchecked;
  u64 offset = address & 0xffffff, rank = address >> 24;
  Block* owner = thread.block;
  if (rank > cluster)
    fail(thread, line, "access of %u bytes out of bounds: shared address 0x%llx", size, (unsigned long long)address);
  if (rank) owner = blocks[thread.block->index / cluster * cluster + rank - 1].get();
  if (!owner->live) fail(thread, line, "access to the shared memory of block %u, which has exited", owner->index);
  if (offset + size > shared_size)
    fail(thread, line, "access of %u bytes out of bounds: byte %llu of shared memory, which has %llu", size,
         (unsigned long long)offset, (unsigned long long)shared_size);
  if (offset % align)
    fail(thread, line, "misaligned access of %u bytes: byte %llu of shared memory", size, (unsigned long long)offset);
  return owner->shared + offset;
}

u64 map_rank(Thread& thread, u64 address, u32 rank, bool generic, int line) {
  Unchecked unchecked;
  if (rank >= cluster) fail(thread, line, "mapa to block %u of a cluster of %u", rank, cluster);
  if (!generic) return (address & 0xffffff) | u64(rank + 1) << 24;
  u64 offset = address - reinterpret_cast<u64>(thread.shared);
  if (offset > shared_size) fail(thread, line, "mapa of an address that is not in this block's shared memory");
  return reinterpret_cast<u64>(blocks[thread.block->index / cluster * cluster + rank]->shared) + offset;
}

u64 shared_from_generic(Thread& thread, u64 address, int line) {
  u64 offset = address - reinterpret_cast<u64>(thread.shared);
  if (offset <= shared_size) return offset;
  Unchecked unchecked;
  Block* owner = block_of_shared(thread, address);
  // A wrong address may be converted and never used: what it would reach is checked where it is used.
  if (!owner) return 0xffffffff;
  return map_rank(thread, address - reinterpret_cast<u64>(owner->shared), owner->index % cluster, false, line);
}

u32 rank_of_generic(Thread& thread, u64 address, int line) {
  Unchecked unchecked;
  Block* owner = block_of_shared(thread, address);
  if (!owner) fail(thread, line, "getctarank of an address that is not in the cluster's shared memory");
  return owner->index % cluster;
}

// ---- cp.async

void copy_later(Thread& thread, const Copy& copy) {
  Unchecked unchecked;
  Fiber& me = self(thread);
  me.copies.push_back(copy);
  me.copies.back().group = me.copy_group;
  me.vain = 0;
}

void copies_commit(Thread& thread) { self(thread).copy_group++; }

bool next_copy(Thread& thread, u64 keep, Copy& copy) {
  Unchecked unchecked;
  Fiber& me = self(thread);
  if (me.copies.empty()) return false;
  copy = me.copies.front();
  if (keep != kEvery && copy.group + keep >= me.copy_group) return false;
  me.copies.erase(me.copies.begin());
  return true;
}

}  // namespace simt
