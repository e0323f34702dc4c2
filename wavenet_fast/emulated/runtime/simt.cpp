#include "simt.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>
#include <sys/mman.h>

#include "switch.h"

// Present only where the program is linked with the sanitizer.
extern "C" {
void* __tsan_create_fiber(unsigned) __attribute__((weak));
void __tsan_destroy_fiber(void*) __attribute__((weak));
void __tsan_switch_to_fiber(void*, unsigned) __attribute__((weak));
void* __tsan_get_current_fiber() __attribute__((weak));
void __tsan_set_fiber_name(void*, const char*) __attribute__((weak));
void __tsan_acquire(void*) __attribute__((weak));
void __tsan_release(void*) __attribute__((weak));
void __tsan_ignore_thread_begin() __attribute__((weak));
void __tsan_ignore_thread_end() __attribute__((weak));
void __asan_poison_memory_region(void const volatile*, size_t) __attribute__((weak));
void __asan_unpoison_memory_region(void const volatile*, size_t) __attribute__((weak));
void __sanitizer_start_switch_fiber(void**, const void*, size_t) __attribute__((weak));
void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) __attribute__((weak));
}

namespace simt {
namespace {

constexpr u32 kBarriers = 16, kWarp = 32;
constexpr u64 kFuel = 1 << 20;    // backward branches before a thread is preempted
constexpr u64 kPollEvery = 4096;  // switches between two questions whether to stop
constexpr u64 kPage = 4096;
constexpr unsigned kNoOrder = 1;  // __tsan_switch_to_fiber: the switch itself synchronises nothing

// What the runtime does with its own memory is none of ThreadSanitizer's business.
struct Unchecked {
  Unchecked() {
    if (__tsan_ignore_thread_begin) __tsan_ignore_thread_begin();
  }
  ~Unchecked() {
    if (__tsan_ignore_thread_end) __tsan_ignore_thread_end();
  }
};

// A place that carries order from those who release to those who acquire.
void release(void* place) {
  if (__tsan_release) __tsan_release(place);
}
void acquire(void* place) {
  if (__tsan_acquire) __tsan_acquire(place);
}

struct Fiber : Thread {
  Context context{};
  char* stack = nullptr;
  void* tsan = nullptr;
  void* asan = nullptr;
  bool done = false;
  const char* waits = nullptr;  // in what, for reports
  int line = 0;                 // where
  u32 result = 0;               // of a barrier reduction
  u64 cluster_phase = 0;
  bool cluster_arrived = false;
  std::vector<Copy> copies;
  u64 copy_group = 0;
  void* loads = nullptr;   // a TSan fiber that knows what this thread's relaxed loads saw
  void* stores = nullptr;  // a TSan fiber that knows what this thread's last fence covers
  char loads_tag = 0, stores_tag = 0;
};

struct Barrier {
  u32 arrived = 0, expected = 0;
  u64 generation = 0;
  std::vector<Fiber*> waiting;
  std::vector<int> warp_line;  // where the warp's first lane of this generation came from, 0 none
  std::vector<std::pair<Fiber*, int>> arrivals;
  u32 popc = 0;
  char tag[2] = {};
};

struct Rendezvous {
  u32 mask = 0, arrived = 0;
  const char* what = nullptr;
  int line = 0;
  Fiber* waiting[kWarp] = {};
  Combine combine = nullptr;
  bool ordered = false;
  u64 generation = 0;
  char tag[2] = {};
  alignas(64) u8 in[kWarp][64];
  alignas(64) u8 out[kWarp][64];
};

struct Warp {
  u32 present = 0;  // lanes that exist and have not exited
  std::vector<std::unique_ptr<Rendezvous>> meetings;
};

struct Mbarrier {
  u32 expected, pending;
  u64 phase;
  char tag[2];
};

struct Cluster {
  u32 arrived = 0, live = 0;
  u64 generation = 0;
  std::vector<Fiber*> waiting;
  char tag[2] = {};
};

}  // namespace

struct Block {
  u32 index = 0, live = 0;
  char* shared = nullptr;
  std::vector<Warp> warps;
  Barrier barriers[kBarriers];
  Cluster* cluster = nullptr;
};

Dim grid, block;
u32 cluster;
s32 mutant;
u64 dynamic_shared;
u32 grid_workspace[16];
Window read_window, write_window;

namespace {

const Request* request;
Report* report;
int status;
std::vector<std::unique_ptr<Block>> blocks;
std::vector<std::unique_ptr<Cluster>> clusters;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> ready;
std::vector<Region> regions;
std::unordered_map<const void*, Mbarrier> mbarriers;
Fiber* current;
Context scheduler{};
void* scheduler_tsan;
void* scheduler_asan;
const void* scheduler_stack;
size_t scheduler_stack_size;
u64 random_state, shared_size, live, fruitless, until_poll;
char start_tag, end_tag;  // what the host wrote happens before the kernel, and the kernel before what the host reads

u64 random_bits() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

Fiber& self(Thread& thread) { return static_cast<Fiber&>(thread); }
u32 block_threads() { return static_cast<u32>(block.count()); }

void append(const char* format, ...) __attribute__((format(printf, 1, 2)));
void append(const char* format, ...) {
  size_t used = strlen(report->message);
  va_list list;
  va_start(list, format);
  vsnprintf(report->message + used, sizeof report->message - used, format, list);
  va_end(list);
}

// "block (0,0,0): threads 0–63, 96 (65)"
std::string ranges(std::vector<u32> members) {
  std::sort(members.begin(), members.end());
  std::string text;
  for (size_t i = 0; i < members.size();) {
    size_t j = i;
    while (j + 1 < members.size() && members[j + 1] == members[j] + 1) j++;
    if (!text.empty()) text += ", ";
    text += std::to_string(members[i]);
    if (j > i) text += "–" + std::to_string(members[j]);
    i = j + 1;
  }
  return text;
}

// Who waits where: the end of every report about something that does not go on.
void append_waiting() {
  std::map<std::pair<int, std::string>, std::map<u32, std::vector<u32>>> places;
  std::map<u32, u32> exited;
  for (auto& fiber : fibers) {
    if (fiber->done)
      exited[fiber->block->index]++;
    else
      places[{fiber->line, fiber->waits ? fiber->waits : "nothing: it can run"}][fiber->block->index].push_back(
          fiber->linear);
  }
  for (auto& [place, members] : places)
    for (auto& [index, threads] : members)
      append("\n  line %d, %s: block %u, %zu threads (%s)", place.first, place.second.c_str(), index, threads.size(),
             ranges(threads).c_str());
  for (auto& [index, count] : exited) append("\n  exited: block %u, %u threads", index, count);
}

void to_scheduler() {
  report->switches++;
  Fiber* me = current;
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(me->done ? nullptr : &me->asan, scheduler_stack, scheduler_stack_size);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(scheduler_tsan, kNoOrder);
  change(me->context, scheduler);
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(me->asan, &scheduler_stack, &scheduler_stack_size);
}

void to_fiber(Fiber* fiber) {
  current = fiber;
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(&scheduler_asan, fiber->stack, kernels[request->kernel].stack);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(fiber->tsan, kNoOrder);
  change(scheduler, fiber->context);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(scheduler_asan, nullptr, nullptr);
}

[[noreturn]] void abandon() {
  status = kFault;
  to_scheduler();
  abort();  // the scheduler never comes back to a fiber of a failed launch
}

void head_of_report(const Thread& t, int line) {
  report->line = line;
  report->message[0] = 0;
  append("kernel %s, line %d, block (%u,%u,%u), thread (%u,%u,%u): ", kernels[request->kernel].name, line, t.bid.x,
         t.bid.y, t.bid.z, t.tid.x, t.tid.y, t.tid.z);
}

void wait_in(Fiber& me, const char* what, int line) {
  me.waits = what;
  me.line = line;
  to_scheduler();
  me.waits = nullptr;
}

void wake(std::vector<Fiber*>& waiting) {
  ready.insert(ready.end(), waiting.begin(), waiting.end());
  waiting.clear();
}

// ---- barriers of a block

// Threads that have exited do not come any more: can this barrier still fill?
void check_reachable(Fiber& me, const Barrier& barrier, u32 id, u32 waiting, int line) {
  u32 outstanding = barrier.expected - barrier.arrived, others = me.block->live - waiting;
  if (me.block->live == block_threads() || outstanding <= others) return;
  head_of_report(me, line);
  append("barrier %u needs %u threads, %u have come, and the others have exited", id, barrier.expected,
         barrier.arrived);
  append_waiting();
  abandon();
}

// One arrival; true when it was the last one of this generation.
bool arrive(Fiber& me, u32 id, u32 count, bool aligned, int line, bool predicate) {
  u32 threads = block_threads(), need = count ? count : threads;
  if (id >= kBarriers) fail(me, line, "barrier %u does not exist: a block has %u", id, kBarriers);
  if (count % kWarp && count != threads)
    fail(me, line, "barrier %u with %u threads: the count must be a multiple of 32", id, count);
  if (need > threads) fail(me, line, "barrier %u waits for %u threads, and a block has %u", id, need, threads);
  Barrier& barrier = me.block->barriers[id];
  if (!barrier.arrived) {
    barrier.expected = need;
    barrier.popc = 0;
    barrier.warp_line.assign(me.block->warps.size(), 0);
  } else if (barrier.expected != need) {
    head_of_report(me, line);
    append("barrier %u is used with %u threads here and with %u by those who came before", id, need, barrier.expected);
    append_waiting();
    abandon();
  }
  int& first = barrier.warp_line[me.warp];
  if (aligned && first && first != line) {
    head_of_report(me, line);
    append(
        "divergent barrier: this lane comes to barrier %u here, other lanes of its warp came at line %d; an aligned "
        "barrier must be executed by the whole warp",
        id, first);
    append_waiting();
    abandon();
  }
  first = line;
  for (Fiber* other : barrier.waiting)
    if (other == &me) fail(me, line, "barrier %u: the thread arrives twice", id);
  release(&barrier.tag[barrier.generation & 1]);
  barrier.popc += predicate;
  barrier.arrived++;
  fruitless = 0;
  if (barrier.arrived < need) {
    check_reachable(me, barrier, id, static_cast<u32>(barrier.waiting.size()) + 1, line);
    return false;
  }
  barrier.arrived = 0;
  barrier.generation++;
  return true;
}

u32 reduced(Reduce how, u32 popc, u32 count) {
  return how == kPopc ? popc : how == kAnd ? popc == count : how == kOr ? popc != 0 : 0;
}

// ---- meetings of a warp

Rendezvous& meeting(Warp& warp, u32 mask) {
  for (auto& one : warp.meetings)
    if (one->mask == mask) return *one;
  warp.meetings.push_back(std::make_unique<Rendezvous>());
  warp.meetings.back()->mask = mask;
  return *warp.meetings.back();
}

void complete(const Thread& thread, Rendezvous& meet) {
  if (meet.combine) meet.combine(thread, {meet.arrived, meet.in, meet.out, meet.line});
  for (auto& fiber : meet.waiting)
    if (fiber) ready.push_back(std::exchange(fiber, nullptr));
  meet.arrived = 0;
  meet.generation++;
  fruitless = 0;
}

// Lanes of `mask` meet; exited lanes are not waited for, as CUDA has it.
void meet_warp(Fiber& me, u32 mask, const char* what, Combine combine, const void* in, u32 in_size, void* out,
               u32 out_size, int line, bool ordered) {
  Warp& warp = me.block->warps[me.warp];
  if (!(mask >> me.lane & 1)) fail(me, line, "%s: lane %u is not in its own mask 0x%08x", what, me.lane, mask);
  Rendezvous& meet = meeting(warp, mask);
  if (meet.arrived && strcmp(meet.what, what)) {
    head_of_report(me, line);
    append("lanes of mask 0x%08x execute %s here and %s at line %d", mask, what, meet.what, meet.line);
    append_waiting();
    abandon();
  }
  meet.what = what;
  meet.line = line;
  meet.combine = combine;
  if (in_size) memcpy(meet.in[me.lane], in, in_size);
  u64 generation = meet.generation;
  if (ordered) release(&meet.tag[generation & 1]);
  meet.arrived |= 1u << me.lane;
  if ((meet.arrived & warp.present) == (mask & warp.present)) {
    complete(me, meet);
  } else {
    meet.waiting[me.lane] = &me;
    wait_in(me, what, line);
  }
  if (out_size) memcpy(out, meet.out[me.lane], out_size);
  if (ordered) acquire(&meet.tag[generation & 1]);
}

void complete_cluster(Cluster& one) {
  one.arrived = 0;
  one.generation++;
  fruitless = 0;
  wake(one.waiting);
}

[[noreturn]] void leave(Fiber& me) {
  {
    Unchecked unchecked;
    release(&end_tag);
    me.done = true;
    live--;
    fruitless = 0;
    Block& home = *me.block;
    home.live--;
    Warp& warp = home.warps[me.warp];
    warp.present &= ~(1u << me.lane);
    for (size_t i = 0; i < warp.meetings.size(); i++) {
      Rendezvous& meet = *warp.meetings[i];
      if (meet.arrived && (meet.arrived & warp.present) == (meet.mask & warp.present)) complete(me, meet);
    }
    for (u32 id = 0; id < kBarriers; id++) {
      Barrier& barrier = home.barriers[id];
      if (!barrier.waiting.empty())
        check_reachable(me, barrier, id, static_cast<u32>(barrier.waiting.size()), barrier.waiting.front()->line);
    }
    home.cluster->live--;
    if (home.cluster->arrived && home.cluster->arrived == home.cluster->live) complete_cluster(*home.cluster);
  }
  to_scheduler();
  abort();
}

void start_fiber() {
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
  Fiber& me = *current;
  acquire(&start_tag);
  kernels[request->kernel].run(me, request->params);
  leave(me);
}

// ---- addresses

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

void fail(const Thread& thread, int line, const char* format, ...) {
  Unchecked unchecked;
  head_of_report(thread, line);
  size_t used = strlen(report->message);
  va_list list;
  va_start(list, format);
  vsnprintf(report->message + used, sizeof report->message - used, format, list);
  va_end(list);
  abandon();
}

void exit_thread(Thread& thread) { leave(self(thread)); }

void spin(Thread& thread, int line, const char* what) {
  Unchecked unchecked;
  Fiber& me = self(thread);
  report->spins++;
  if (++fruitless > request->max_spins) {
    me.waits = what;
    me.line = line;
    head_of_report(me, line);
    append("livelock: %llu polls in a row, by all threads together, have seen nothing new",
           (unsigned long long)fruitless);
    append_waiting();
    abandon();
  }
  ready.push_back(&me);
  wait_in(me, what, line);
}

void preempt(Thread& thread, int line) {
  Unchecked unchecked;
  Fiber& me = self(thread);
  me.fuel = request->seed ? 1 + random_bits() % 4096 : kFuel;
  until_poll = 1;
  ready.push_back(&me);
  wait_in(me, "a loop", line);
}

void progress() { fruitless = 0; }

u32 barrier_sync(Thread& thread, u32 id, u32 count, bool aligned, int line, Reduce how, bool predicate) {
  Unchecked unchecked;
  Fiber& me = self(thread);
  report->barriers++;
  u64 generation = id < kBarriers ? me.block->barriers[id].generation : 0;
  bool last = arrive(me, id, count, aligned, line, predicate);
  Barrier& barrier = me.block->barriers[id];
  if (last) {
    for (Fiber* fiber : barrier.waiting) fiber->result = barrier.popc;
    me.result = barrier.popc;
    wake(barrier.waiting);
  } else {
    barrier.waiting.push_back(&me);
    wait_in(me, "a block barrier", line);
  }
  acquire(&barrier.tag[generation & 1]);
  return reduced(how, me.result, count ? count : block_threads());
}

void barrier_arrive(Thread& thread, u32 id, u32 count, bool aligned, int line) {
  Unchecked unchecked;
  Fiber& me = self(thread);
  if (arrive(me, id, count, aligned, line, false)) wake(me.block->barriers[id].waiting);
}

void cluster_arrive(Thread& thread, bool ordered, int line) {
  Unchecked unchecked;
  Fiber& me = self(thread);
  Cluster& mine = *me.block->cluster;
  if (me.cluster_arrived) fail(me, line, "barrier.cluster.arrive twice without a barrier.cluster.wait between");
  me.cluster_arrived = true;
  me.cluster_phase = mine.generation;
  if (ordered) release(&mine.tag[mine.generation & 1]);
  if (++mine.arrived == mine.live) complete_cluster(mine);
}

void cluster_wait(Thread& thread, bool ordered, int line) {
  Unchecked unchecked;
  Fiber& me = self(thread);
  Cluster& mine = *me.block->cluster;
  if (!me.cluster_arrived) fail(me, line, "barrier.cluster.wait without a barrier.cluster.arrive before it");
  report->barriers++;
  if (mine.generation == me.cluster_phase) {
    mine.waiting.push_back(&me);
    wait_in(me, "barrier.cluster.wait", line);
  }
  me.cluster_arrived = false;
  if (ordered) acquire(&mine.tag[me.cluster_phase & 1]);
}

void warp_sync(Thread& thread, u32 mask, int line) {
  Unchecked unchecked;
  meet_warp(self(thread), mask, "bar.warp.sync", nullptr, nullptr, 0, nullptr, 0, line, true);
}

void collective(Thread& thread, u32 mask, const char* what, Combine combine, const void* in, u32 in_size, void* out,
                u32 out_size, int line) {
  Unchecked unchecked;
  meet_warp(self(thread), mask, what, combine, in, in_size, out, out_size, line, false);
}

// ---- mbarrier

static Mbarrier& find_mbarrier(Thread& thread, const void* place, int line) {
  auto found = mbarriers.find(place);
  if (found == mbarriers.end()) fail(thread, line, "the mbarrier has not been initialised");
  return found->second;
}

void mbarrier_init(Thread& thread, const void* place, u32 count, int line) {
  Unchecked unchecked;
  if (!count || count >= 1u << 20) fail(thread, line, "mbarrier.init with count %u; possible: 1 … 2^20 − 1", count);
  mbarriers[place] = {count, count, 0, {}};
}

void mbarrier_invalidate(Thread& thread, const void* place, int line) {
  Unchecked unchecked;
  find_mbarrier(thread, place, line);
  mbarriers.erase(place);
}

u64 mbarrier_arrive(Thread& thread, const void* place, u32 count, bool drop, bool ordered, int line) {
  Unchecked unchecked;
  Mbarrier& one = find_mbarrier(thread, place, line);
  u64 phase = one.phase;
  if (ordered) release(&one.tag[phase & 1]);
  if (one.pending < count) fail(thread, line, "mbarrier: %u arrivals, and only %u are pending", count, one.pending);
  one.pending -= count;
  if (drop) one.expected -= count;
  if (!one.pending) {
    one.pending = one.expected;
    one.phase++;
  }
  fruitless = 0;
  return phase;
}

void mbarrier_increment(Thread& thread, const void* place, int line) {
  Unchecked unchecked;
  find_mbarrier(thread, place, line).pending++;
}

bool mbarrier_test(Thread& thread, const void* place, u64 phase, bool parity, bool ordered, int line) {
  Unchecked unchecked;
  for (int attempt = 0;; attempt++) {
    Mbarrier& one = find_mbarrier(thread, place, line);
    if (parity ? (one.phase & 1) != (phase & 1) : one.phase != phase) {
      if (ordered) acquire(&one.tag[(one.phase - 1) & 1]);
      return true;
    }
    if (attempt) return false;
    spin(thread, line, "an mbarrier wait");
  }
}

// ---- addresses

char* find_global(Thread& thread, u64 address, u32 size, u32 align, bool write, int line) {
  Unchecked unchecked;
  const char* verb = write ? "store" : "load";
  const Region* region = region_of(address);
  if (!region || address - region->base > region->size || region->size - (address - region->base) < size)
    fail(thread, line, "%s of %u bytes out of bounds: %s", verb, size, relative(address).c_str());
  if (write && !region->writable)
    fail(thread, line, "store of %u bytes to read-only memory: %s", size, relative(address).c_str());
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
  if (!owner && thread.local_size && address - reinterpret_cast<u64>(thread.local) < thread.local_size) {
    base = reinterpret_cast<u64>(thread.local), limit = thread.local_size, what = "local memory";
  }
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

// ---- order of relaxed accesses, for ThreadSanitizer

// A helper fiber never runs code: it is a clock. What a relaxed load saw is ordered only after a fence, so the load
// tells it to a helper, and the fence asks the helper; a relaxed store publishes what the last fence covers, and no
// more.
static void as_helper(Fiber& me, void*& helper, void (*act)(void*), void* place) {
  if (!helper) {
    helper = __tsan_create_fiber(0);
    __tsan_set_fiber_name(helper, "order of relaxed accesses");
  }
  __tsan_switch_to_fiber(helper, kNoOrder);
  act(place);
  __tsan_switch_to_fiber(me.tsan, kNoOrder);
}

void relaxed_loaded(Thread& thread, const void* place) {
  if (!__tsan_create_fiber) return;
  Fiber& me = self(thread);
  as_helper(me, me.loads, acquire, const_cast<void*>(place));
}

void relaxed_stored(Thread& thread, const void* place) {
  Fiber& me = self(thread);
  if (!me.stores) return;
  as_helper(me, me.stores, release, const_cast<void*>(place));
}

void fence(Thread& thread) {
  if (!__tsan_create_fiber) return;
  Fiber& me = self(thread);
  if (me.loads) {
    as_helper(me, me.loads, release, &me.loads_tag);
    acquire(&me.loads_tag);
  }
  release(&me.stores_tag);
  as_helper(me, me.stores, acquire, &me.stores_tag);
}

// ---- launch

namespace {

// Stacks lie in one mapping, a page that faults below each.
struct Stacks {
  char* base = nullptr;
  u64 bytes = 0;
  bool allocate(u64 count, u64 size) {
    bytes = count * (size + kPage);
    void* got = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got == MAP_FAILED) return false;
    base = static_cast<char*>(got);
    // A guard costs the kernel two mappings, of which a process has some 65000.
    if (count <= 8192)
      for (u64 i = 0; i < count; i++) mprotect(base + i * (size + kPage), kPage, PROT_NONE);
    return true;
  }
  char* of(u64 index, u64 size) const { return base + index * (size + kPage) + kPage; }
  ~Stacks() {
    if (base) munmap(base, bytes);
  }
};

void build(Stacks& stacks) {
  const Kernel& kernel = kernels[request->kernel];
  u32 threads = block_threads();
  u64 n_blocks = grid.count();
  for (u64 c = 0; c < n_blocks / cluster; c++) {
    clusters.push_back(std::make_unique<Cluster>());
    clusters.back()->live = cluster * threads;
  }
  for (u32 b = 0; b < n_blocks; b++) {
    auto home = std::make_unique<Block>();
    home->index = b;
    home->live = threads;
    home->cluster = clusters[b / cluster].get();
    u64 room = (shared_size + 64 + 1023) / 1024 * 1024;
    home->shared = static_cast<char*>(aligned_alloc(1024, room));
    memset(home->shared, 0xff, room);  // NaN in every floating-point format: what was not written is noticed
    if (__asan_poison_memory_region) __asan_poison_memory_region(home->shared + shared_size, room - shared_size);
    home->warps.resize((threads + kWarp - 1) / kWarp);
    for (u32 t = 0; t < threads; t++) {
      auto fiber = std::make_unique<Fiber>();
      fiber->tid = {t % block.x, t / block.x % block.y, t / (block.x * block.y)};
      fiber->bid = {b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)};
      fiber->linear = t;
      fiber->lane = t % kWarp;
      fiber->warp = t / kWarp;
      fiber->cluster_rank = b % cluster;
      fiber->block = home.get();
      fiber->shared = home->shared;
      fiber->shared_size = shared_size;
      fiber->fuel = request->seed ? 1 + random_bits() % 4096 : kFuel;
      fiber->counts = request->counts ? request->counts + (u64(b) * threads + t) * request->n_counters : nullptr;
      fiber->stack = stacks.of(u64(b) * threads + t, kernel.stack);
      prepare(fiber->context, fiber->stack, kernel.stack, start_fiber);
      if (__tsan_create_fiber) {
        char name[64];
        snprintf(name, sizeof name, "block %u thread %u", b, t);
        fiber->tsan = __tsan_create_fiber(0);
        __tsan_set_fiber_name(fiber->tsan, name);
      }
      home->warps[fiber->warp].present |= 1u << fiber->lane;
      ready.push_back(fiber.get());
      fibers.push_back(std::move(fiber));
    }
    blocks.push_back(std::move(home));
  }
}

void schedule() {
  size_t head = 0;
  until_poll = kPollEvery;
  while (live && status == kDone) {
    if (head == ready.size()) {
      report->message[0] = 0;
      append("kernel %s: deadlock, no thread can go on", kernels[request->kernel].name);
      append_waiting();
      for (auto& fiber : fibers)
        if (!fiber->done) report->line = fiber->line;
      status = kFault;
      return;
    }
    if (!--until_poll) {
      until_poll = kPollEvery;
      if (request->poll && request->poll()) {
        status = kInterrupted;
        append("kernel %s was interrupted", kernels[request->kernel].name);
        append_waiting();
        return;
      }
    }
    if (request->seed) std::swap(ready[head], ready[head + random_bits() % (ready.size() - head)]);
    Fiber* next = ready[head++];
    if (head > 4096) {
      ready.erase(ready.begin(), ready.begin() + static_cast<ptrdiff_t>(head));
      head = 0;
    }
    to_fiber(next);
  }
}

void tear_down() {
  // ThreadSanitizer has the fibers of a failed launch in the middle of something; its process ends anyway.
  for (auto& fiber : fibers)
    for (void* clock : {fiber->tsan, fiber->loads, fiber->stores})
      if (clock && status == kDone && __tsan_destroy_fiber) __tsan_destroy_fiber(clock);
  for (auto& home : blocks) {
    if (__asan_unpoison_memory_region)
      __asan_unpoison_memory_region(home->shared, (shared_size + 64 + 1023) / 1024 * 1024);
    free(home->shared);
  }
  blocks.clear();
  clusters.clear();
  fibers.clear();
  ready.clear();
  mbarriers.clear();
}

}  // namespace
}  // namespace simt

extern "C" int wavenet_fast_launch(const simt::Request* asked, simt::Report* told) {
  using namespace simt;
  Unchecked unchecked;
  request = asked;
  report = told;
  memset(report, 0, sizeof *report);
  grid = asked->grid, block = asked->block, cluster = asked->cluster, mutant = asked->mutant;
  const Kernel& kernel = kernels[asked->kernel];
  dynamic_shared = asked->dynamic_shared;
  shared_size = kernel.static_shared + asked->dynamic_shared;
  random_state = asked->seed * 0x9E3779B97F4A7C15ull + 1;
  status = kDone;
  fruitless = 0;
  live = grid.count() * block.count();
  read_window = write_window = {0, 0};
  memset(grid_workspace, 0, sizeof grid_workspace);
  grid_workspace[0] = sizeof grid_workspace;
  regions.assign(asked->regions, asked->regions + asked->n_regions);
  regions.insert(regions.end(), module_regions, module_regions + n_module_regions);
  regions.push_back({reinterpret_cast<u64>(grid_workspace), sizeof grid_workspace, 1, -2});
  std::sort(regions.begin(), regions.end(), [](const Region& a, const Region& b) { return a.base < b.base; });
  if (__tsan_get_current_fiber) scheduler_tsan = __tsan_get_current_fiber();
  release(&start_tag);
  Stacks stacks;
  if (!stacks.allocate(live, kernel.stack)) {
    append("kernel %s: no memory for the stacks of %llu threads", kernel.name, (unsigned long long)live);
    return kFault;
  }
  build(stacks);
  schedule();
  tear_down();
  acquire(&end_tag);
  return status;
}
