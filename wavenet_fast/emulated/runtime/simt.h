// A small SIMT machine. Every CUDA thread is a fiber, all fibers share one OS thread, all blocks are resident, and a
// seed chooses the order in which they run. What cannot go on (deadlock, livelock, misuse of a barrier, an access out
// of bounds) ends the launch with a sentence; the fibers are then abandoned and the launcher returns.
//
// The .cpp files here are compiled without sanitizers: their bookkeeping is shared by all fibers on purpose, and a
// switch between fibers must not count as synchronisation. Only the code generated from PTX is checked.
#pragma once
#include <cstddef>
#include <cstdint>

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;

namespace simt {

struct Dim {
  u32 x = 1, y = 1, z = 1;
  u64 count() const { return u64(x) * y * z; }
};

// A piece of global memory that the kernel may touch; `argument` is the position in the argument list, or −1. What is
// passed by value is read by generic addresses, too: of argument n it is kByValue − n.
constexpr s32 kByValue = -16;
struct Region {
  u64 base, size;
  u32 writable;
  s32 argument;
};

// What the host hands over; laid out as the ctypes structure of native.py.
struct Request {
  u32 kernel;
  Dim grid, block;
  u32 cluster;            // blocks in a cluster, along x
  s32 mutant;             // the site to break (mutate.py), or −1
  u64 dynamic_shared;     // bytes
  u64 seed;               // 0: first come, first served
  u64 max_spins;          // this many fruitless polls in a row, by all threads together, are a livelock (polls.cpp)
  void* const* params;    // one pointer per kernel parameter
  const Region* regions;  // sorted by base, not overlapping
  u64 n_regions;
  u64* counts;  // [threads][n_counters] executed instructions, or null
  u64 n_counters;
  int (*poll)();  // asked now and then; not 0 ends the launch
};

enum Status : int { kDone = 0, kFault = 1, kInterrupted = 2 };

struct Report {
  u64 switches, barriers, spins;
  s32 line;  // of the PTX, 0 where no single line is to blame
  char message[16384];
  char stall[16384];  // who waited where when nothing could go on but waits that the clock ends
};

struct Block;

// Local memory of a function that is being executed; that of its caller is reached by generic addresses.
struct Frame {
  char* base = nullptr;
  u64 size = 0;  // bytes
  const Frame* caller = nullptr;
};

// What the generated code sees of its thread; simt.cpp derives its fiber from it.
struct Thread {
  Dim tid, bid;
  u32 linear, lane, warp, cluster_rank;
  Block* block;
  char* shared;     // this block's shared memory
  u64 shared_size;  // bytes
  Frame local;      // of the innermost function that has any
  char* stack;      // its lowest byte
  u64 fuel;         // backward branches until another thread gets its turn
  u64* counts;
};

using KernelFunction = void (*)(Thread&, void* const*);
struct Gap {  // bytes of shared memory that belong to no variable
  u64 begin, end;
};
struct Kernel {
  const char* name;
  KernelFunction run;
  u64 static_shared, stack;  // bytes
  const Gap* gaps;
  u64 n_gaps;
  const u64* parameters;  // bytes of each
  u64 n_parameters;
};
// Defined by the generated code.
extern const Kernel kernels[];
extern const Region module_regions[];  // .global and .const variables
extern const u32 n_module_regions;

extern Dim grid, block;
extern u32 cluster;
extern s32 mutant;
extern u64 dynamic_shared;
extern u32 grid_workspace[16];  // what %envreg1 and %envreg2 point to: the grid barrier of cooperative groups

// Ends the launch; does not return to the thread.
[[noreturn, gnu::cold]] void fail(const Thread&, int line, const char* format, ...)
    __attribute__((format(printf, 3, 4)));
[[noreturn]] void exit_thread(Thread&);

// Before a call: a function that needs so many bytes of stack, the runtime's own needs included, must find them.
inline void need_stack(const Thread& t, u64 bytes, int line) {
  auto left = static_cast<u64>(reinterpret_cast<char*>(__builtin_frame_address(0)) - t.stack);
  if (left < bytes) fail(t, line, "calls are nested too deep: %llu bytes of stack are left", (unsigned long long)left);
}

void preempt(Thread&, int line);  // lets other threads run
// What a thread saw in a place that others may write: the same as before is a look in vain, and lets others run.
void polled(Thread&, const void*, u64 value, int line);
void wrote(Thread&, const void*);  // who waits for this place may look again
void progress();                   // the launch goes on: looks in vain are counted anew
void sleep(Thread&, int line);
u64 clock();  // %clock and its kin: every look at it is later than the one before

// How far an access synchronises. One that acquires sees what the releases of the same place have published only where
// both scopes hold both threads: where not, `acquires` ends the launch. A store ends what was released before, a
// `change` of what is there does not.
enum Scope : u8 { kBlock, kCluster, kDevice };
void releases(Thread&, const void*, Scope, bool release, bool change);
void acquires(Thread&, const void*, Scope, int line);

// Barriers of a block. `count` 0: all its threads. The result of reduce: 0 popc, 1 and, 2 or.
enum Reduce { kNone = -1, kPopc, kAnd, kOr };
u32 barrier_sync(Thread&, u32 id, u32 count, bool aligned, int line, Reduce = kNone, bool predicate = false);
void barrier_arrive(Thread&, u32 id, u32 count, bool aligned, int line);
void cluster_arrive(Thread&, bool release, int line);
void cluster_wait(Thread&, bool acquire, int line);
void warp_sync(Thread&, u32 mask, int line);

// Every lane of `mask` brings `in`; the last one to come computes all `out` (at most 64 bytes each). Orders no memory.
struct Exchange {
  u32 mask;  // the lanes that take part
  u8 (*in)[64];
  u8 (*out)[64];
  int line;
};
using Combine = void (*)(const Thread&, const Exchange&);
void collective(Thread&, u32 mask, const char* what, Combine, const void* in, u32 in_size, void* out, u32 out_size,
                int line);
// The same for the whole warp, at one line: whoever has exited or does not exist would leave a hole.
void whole_warp(Thread&, const char* what, Combine, const void* in, u32 in_size, void* out, u32 out_size, int line);

// mbarrier objects, by host address; their state lives outside the emulated memory.
void mbarrier_init(Thread&, const void*, u32 count, int line);
void mbarrier_invalidate(Thread&, const void*, int line);
u64 mbarrier_arrive(Thread&, const void*, u32 count, bool drop, bool release, Scope, int line);
void mbarrier_increment(Thread&, const void*, int line);
// fence.mbarrier_init: of all that a thread wrote, the cluster's next barrier orders these mbarriers, even relaxed.
void fence_mbarriers(Thread&);
bool mbarrier_known(Thread&, const void*);  // whether its initialisation came to this thread in that way
bool mbarrier_test(Thread&, const void*, u64 phase, bool parity, bool acquire, Scope, int line);

// Address translation: slow paths of memory.h, and the whole path under ThreadSanitizer.
char* find_global(Thread&, u64 address, u32 size, u32 align, bool write, int line);
void check_writable(Thread&, u64 address, u32 size, int line);
char* find_generic(Thread&, u64 address, u32 size, u32 align, bool write, int line);
char* find_shared(Thread&, u64 address, u32 size, u32 align, int line);
u64 map_rank(Thread&, u64 address, u32 rank, bool generic, int line);
u64 shared_from_generic(Thread&, u64 address, int line);
u32 rank_of_generic(Thread&, u64 address, int line);

// The region of the last access, so that most checks are two comparisons.
struct Window {
  u64 base, size;
};
extern Window read_window, write_window;

// cp.async: what was asked for and has not landed.
struct Copy {
  char* to;
  const char* from;  // null: zeros only
  u32 size, zeros;   // bytes
  u64 group;
};
void copy_later(Thread&, const Copy&);
void copies_commit(Thread&);
bool next_copy(Thread&, u64 keep, Copy&);  // takes the next copy of all but the `keep` youngest groups
constexpr u64 kEvery = ~u64(0);            // as `keep`: of every group, committed or not

// Relaxed accesses order nothing by themselves, and with a fence they do (PTX memory model, release and acquire
// patterns): a store after a fence, a load before one.
void relaxed_loaded(Thread&, const void*, Scope);
void relaxed_stored(Thread&, const void*);
void fence(Thread&, Scope, int line);

}  // namespace simt

extern "C" __attribute__((visibility("default"))) int wavenet_fast_launch(const simt::Request*, simt::Report*);
