// The parts of the machine that its source files share: fibers, blocks, and what they wait for. Nothing here is
// compiled with a sanitizer.
#pragma once
#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "simt.h"
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

constexpr u32 kBarriers = 16, kWarp = 32, kLooks = 8;
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
inline void release(void* place) {
  if (__tsan_release) __tsan_release(place);
}
inline void acquire(void* place) {
  if (__tsan_acquire) __tsan_acquire(place);
}

// A place that a thread looked at, and what it saw there.
struct Look {
  const void* at;
  u64 value;
  u32 index;  // among the watchers of the place
  bool vain;  // it saw there what it had seen before, or an mbarrier whose phase goes on
};

struct Loaded {
  const void* at;
  Scope scope;
};

struct Fiber : Thread {
  Context context{};
  void* tsan = nullptr;
  void* asan = nullptr;
  bool done = false;
  bool polls = false;           // has polled since its fuel was last spent
  bool parked = false;          // runs again when a place among `looks` is written, or when nobody else can run
  u32 vain = 0;                 // looks in vain since it last did anything else
  const char* waits = nullptr;  // in what, for reports
  bool looks_on = false;        // it waits because a look was in vain
  int line = 0;                 // where
  u32 result = 0;               // of a barrier reduction
  u64 cluster_phase = 0;
  bool cluster_arrived = false;
  u64 cluster_waits = 0;    // barriers of the cluster that it has passed
  Look looks[kLooks] = {};  // the places that it looked at last
  u32 next_look = 0;
  std::vector<Copy> copies;
  u64 copy_group = 0;
  std::vector<Loaded> loaded;  // where relaxed loads looked since the last fence
  bool fenced = false;         // there has been a fence; `fence_tag` carries what the last one covers
  Scope fence_scope = kBlock;
  char fence_tag = 0;
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
  bool whole = false;
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
  Fiber* maker;
  u64 known_after;  // how many barriers of the cluster make its initialisation known, 0: not fenced
};

struct Cluster {
  u32 arrived = 0, live = 0;
  u64 generation = 0;
  std::vector<Fiber*> waiting;
  char tag[2] = {};
};

struct Block {
  u32 index = 0, live = 0;
  char* shared = nullptr;
  std::vector<Warp> warps;
  Barrier barriers[kBarriers];
  Cluster* cluster = nullptr;
};

// ---- the launch that is going on

inline const Request* request;
inline void* scheduler_tsan;
inline Report* report;
inline std::vector<std::unique_ptr<Block>> blocks;
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline std::vector<Fiber*> ready;    // who can run, in order of becoming so
inline std::vector<Region> regions;  // sorted by base
inline u64 shared_size;              // bytes of a block
inline u64 live;                     // threads that have not exited
inline u64 fruitless;                // polls in a row that saw nothing new

inline Fiber& self(Thread& thread) { return static_cast<Fiber&>(thread); }
inline u32 block_threads() { return static_cast<u32>(block.count()); }

// Suspends a fiber until someone puts it into `ready`.
void wait_in(Fiber&, const char* what, int line);
void wake(std::vector<Fiber*>& waiting);

// polls.cpp: the clock and the parked.
void start_clock();
void wait_for_phase(Fiber&, const void* mbarrier, int line);
void phase_passed(Fiber&, const void* mbarrier);
// Wakes them where nobody else can run, and now and then while others do; false where nobody was to be woken.
bool let_the_parked_look(bool others_run);
void forget_watchers();
void forget_releases();  // order.cpp

// The parts of a report: where, why (as printf), and who waits where for what.
void head_of_report(const Thread&, int line);
void append(const char* format, ...) __attribute__((format(printf, 1, 2)));
void append_waiting();
[[noreturn]] void abandon();
std::string name_of_place(const void*);
std::string mbarrier_state(const void*);  // empty where there is none

// A thread exits: whoever waits for it must not do so any longer, or is reported.
void leave_meetings(Fiber&);
void forget_mbarriers();

}  // namespace simt
