// The scheduler, its reports, and the launch.
#include <cstdio>
#include <cstdlib>
#include <new>
#include <sys/mman.h>

#include "machine.h"

namespace simt {

Dim grid, block;
u32 cluster;
s32 mutant;
u64 dynamic_shared;
u32 grid_workspace[16];

namespace {

constexpr u64 kFuel = 1 << 20;    // backward branches before a thread is preempted
constexpr u64 kPollEvery = 4096;  // switches between two questions whether to stop
constexpr u64 kPage = 4096;

int status;
u64 random_state, until_poll;
std::vector<std::unique_ptr<Cluster>> clusters;
Fiber* current;
Context scheduler{};
void* scheduler_asan;
const void* scheduler_stack;
size_t scheduler_stack_size;
char start_tag, end_tag;  // what the host wrote happens before the kernel, and the kernel before what the host reads

u64 random_bits() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
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

[[noreturn]] void leave(Fiber& me) {
  {
    Unchecked unchecked;
    release(&end_tag);
    me.done = true;
    live--;
    progress();
    me.block->live--;
    leave_meetings(me);
  }
  to_scheduler();
  abort();
}

void start_fiber() {
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
  Fiber& me = *current;
  acquire(&start_tag);
  try {
    kernels[request->kernel].run(me, request->params);
  } catch (const std::bad_alloc&) {
    fail(me, 0, "no memory is left");
  }
  leave(me);
}

}  // namespace

[[noreturn]] void abandon() {
  status = kFault;
  to_scheduler();
  abort();  // the scheduler never comes back to a fiber of a failed launch
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

void exit_thread(Thread& thread) { leave(self(thread)); }

void preempt(Thread& thread, int line) {
  Unchecked unchecked;
  Fiber& me = self(thread);
  me.fuel = request->seed ? 1 + random_bits() % 4096 : kFuel;
  until_poll = 1;
  // A thread that has computed all this time is what the others wait for.
  if (!me.polls) fruitless = 0;
  me.polls = false;
  ready.push_back(&me);
  wait_in(me, "a loop", line);
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
    if (!home->shared) throw std::bad_alloc();
    memset(home->shared, 0xff, room);  // NaN in every floating-point format: what was not written is noticed
    if (__asan_poison_memory_region) __asan_poison_memory_region(home->shared + shared_size, room - shared_size);
    for (u64 i = 0; __asan_poison_memory_region && i < kernel.n_gaps; i++)
      __asan_poison_memory_region(home->shared + kernel.gaps[i].begin, kernel.gaps[i].end - kernel.gaps[i].begin);
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
    bool stuck = head == ready.size();
    if (!let_the_parked_look(!stuck) && stuck) {
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

// Every launch finds the module's variables as the PTX has them, whoever launched before.
void reset_variables() {
  static std::vector<std::vector<char>> initial;
  for (u32 i = 0; i < n_module_regions; i++) {
    auto place = reinterpret_cast<char*>(module_regions[i].base);
    if (initial.size() == i) initial.emplace_back(place, place + module_regions[i].size);
    if (module_regions[i].writable) memcpy(place, initial[i].data(), initial[i].size());
  }
}

void tear_down() {
  // ThreadSanitizer has the fibers of a failed launch in the middle of something; its process ends anyway.
  for (auto& fiber : fibers)
    if (fiber->tsan && status == kDone) __tsan_destroy_fiber(fiber->tsan);
  for (auto& home : blocks) {
    if (__asan_unpoison_memory_region)
      __asan_unpoison_memory_region(home->shared, (shared_size + 64 + 1023) / 1024 * 1024);
    free(home->shared);
  }
  blocks.clear();
  clusters.clear();
  fibers.clear();
  ready.clear();
  forget_mbarriers();
  forget_watchers();
  forget_releases();
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
  start_clock();
  live = grid.count() * block.count();
  read_window = write_window = {0, 0};
  memset(grid_workspace, 0, sizeof grid_workspace);
  grid_workspace[0] = sizeof grid_workspace;
  regions.assign(asked->regions, asked->regions + asked->n_regions);
  regions.insert(regions.end(), module_regions, module_regions + n_module_regions);
  regions.push_back({reinterpret_cast<u64>(grid_workspace), sizeof grid_workspace, 1, -2});
  for (u64 i = 0; i < kernel.n_parameters; i++)
    regions.push_back({reinterpret_cast<u64>(asked->params[i]), kernel.parameters[i], 0, kByValue - s32(i)});
  std::sort(regions.begin(), regions.end(), [](const Region& a, const Region& b) { return a.base < b.base; });
  if (__tsan_get_current_fiber) scheduler_tsan = __tsan_get_current_fiber();
  release(&start_tag);
  Stacks stacks;
  if (!stacks.allocate(live, kernel.stack)) {
    append("kernel %s: no memory for the stacks of %llu threads", kernel.name, (unsigned long long)live);
    return kFault;
  }
  try {
    reset_variables();
    build(stacks);
    schedule();
  } catch (const std::bad_alloc&) {
    report->message[0] = 0;
    append("kernel %s: no memory for %llu threads in %llu blocks", kernel.name,
           (unsigned long long)(grid.count() * block.count()), (unsigned long long)grid.count());
    status = kFault;
  }
  tear_down();
  acquire(&end_tag);
  return status;
}
