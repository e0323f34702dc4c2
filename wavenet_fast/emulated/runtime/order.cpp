// What orders accesses beyond the access itself: relaxed ones with fences, and how far acquire and release reach.
#include <unordered_map>

#include "machine.h"

namespace simt {
namespace {

// Who has released by a place since it was last stored to: of each block, with the narrowest scope.
struct Released {
  u32 block;
  Scope scope;
};
std::unordered_map<const void*, std::vector<Released>> released;
const char* const kScopes[] = {"the block", "the cluster", "the device"};

}  // namespace

// What a relaxed load saw is ordered only by a fence after it: the places are kept until then. (What others publish in
// a place between the load and the fence counts as seen, too.)
void relaxed_loaded(Thread& thread, const void* place, Scope scope) {
  Unchecked unchecked;
  auto& all = self(thread).loaded;
  auto is_there = [&](const Loaded& one) { return one.at == place && one.scope == scope; };
  if (std::find_if(all.rbegin(), all.rend(), is_there) == all.rend()) all.push_back({place, scope});
}

// A relaxed store publishes what the last fence covers, and no more: a fiber that knows nothing else, and never runs
// code, publishes it. It is a fiber for a moment only, for ThreadSanitizer follows a limited number.
void relaxed_stored(Thread& thread, const void* place) {
  Fiber& me = self(thread);
  if (!me.fenced || !__tsan_create_fiber) return;
  __tsan_switch_to_fiber(scheduler_tsan, kNoOrder);
  void* helper = __tsan_create_fiber(0);  // it knows what its creator knows
  __tsan_switch_to_fiber(helper, kNoOrder);
  acquire(&me.fence_tag);
  release(const_cast<void*>(place));
  __tsan_switch_to_fiber(me.tsan, kNoOrder);
  __tsan_destroy_fiber(helper);
}

void fence(Thread& thread, Scope scope, int line) {
  Fiber& me = self(thread);
  for (auto& one : me.loaded) {
    acquire(const_cast<void*>(one.at));
    acquires(thread, one.at, std::min(scope, one.scope), line);
  }
  me.loaded.clear();
  release(&me.fence_tag);
  me.fenced = true;
  me.fence_scope = scope;
}

void releases(Thread& thread, const void* place, Scope scope, bool release, bool change) {
  Unchecked unchecked;
  if (!release && self(thread).fenced) {
    release = true;
    scope = std::min(scope, self(thread).fence_scope);
  }
  if (change && !release) return;
  auto& all = released[place];
  if (!change) all.clear();
  if (!release) return;
  for (auto& one : all)
    if (one.block == thread.block->index) {
      one.scope = std::min(one.scope, scope);
      return;
    }
  all.push_back({thread.block->index, scope});
}

void acquires(Thread& thread, const void* place, Scope scope, int line) {
  Unchecked unchecked;
  auto found = released.find(place);
  if (found == released.end()) return;
  for (auto& one : found->second) {
    if (one.block == thread.block->index) continue;
    Scope needed = one.block / cluster == thread.block->index / cluster ? kCluster : kDevice;
    if (std::min(scope, one.scope) < needed)
      fail(thread, line,
           "block %u has released in %s, and the scope is %s there and %s here: that orders nothing between the blocks",
           one.block, name_of_place(place).c_str(), kScopes[one.scope], kScopes[scope]);
  }
}

void forget_releases() { released.clear(); }

}  // namespace simt
