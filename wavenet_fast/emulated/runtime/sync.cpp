// Where threads wait for each other: barriers of a block, meetings of a warp, barriers of a cluster, mbarriers.
#include <unordered_map>

#include "machine.h"

namespace simt {
namespace {

std::unordered_map<const void*, Mbarrier> mbarriers;

// An arrival: relaxed, it carries what the last fence covers.
void publish(Thread& thread, char* tag, bool ordered) { ordered ? release(tag) : relaxed_stored(thread, tag); }

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
  me.vain = 0;
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

// An instruction of the whole warp cannot do with a part of it.
void check_whole(const Fiber& me, const Warp& warp, const char* what, int line) {
  if (warp.present == ~0u) return;
  fail(me, line, "%s needs a whole warp, and %d of its lanes have exited or do not exist", what,
       kWarp - __builtin_popcount(warp.present));
}

// Lanes of `mask` meet; exited lanes are not waited for, as CUDA has it.
void meet_warp(Fiber& me, u32 mask, const char* what, Combine combine, const void* in, u32 in_size, void* out,
               u32 out_size, int line, bool ordered, bool whole = false) {
  Warp& warp = me.block->warps[me.warp];
  if (!(mask >> me.lane & 1)) fail(me, line, "%s: lane %u is not in its own mask 0x%08x", what, me.lane, mask);
  Rendezvous& meet = meeting(warp, mask);
  if (whole) check_whole(me, warp, what, line);
  if (meet.arrived && (strcmp(meet.what, what) || (whole && meet.line != line))) {
    head_of_report(me, line);
    append("lanes of mask 0x%08x execute %s here and %s at line %d", mask, what, meet.what, meet.line);
    append_waiting();
    abandon();
  }
  meet.what = what;
  meet.line = line;
  meet.combine = combine;
  meet.whole = whole;
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

}  // namespace

void leave_meetings(Fiber& me) {
  Block& home = *me.block;
  Warp& warp = home.warps[me.warp];
  warp.present &= ~(1u << me.lane);
  for (size_t i = 0; i < warp.meetings.size(); i++) {
    Rendezvous& meet = *warp.meetings[i];
    if (meet.arrived && meet.whole) check_whole(*meet.waiting[__builtin_ctz(meet.arrived)], warp, meet.what, meet.line);
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
  me.vain = 0;
  me.cluster_phase = mine.generation;
  publish(thread, &mine.tag[mine.generation & 1], ordered);
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
  me.cluster_waits = me.cluster_phase + 1;
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

void whole_warp(Thread& thread, const char* what, Combine combine, const void* in, u32 in_size, void* out, u32 out_size,
                int line) {
  Unchecked unchecked;
  self(thread).vain = 0;
  meet_warp(self(thread), ~0u, what, combine, in, in_size, out, out_size, line, false, true);
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
  mbarriers[place] = {count, count, 0, {}, &self(thread), 0};
}

void fence_mbarriers(Thread& thread) {
  Unchecked unchecked;
  Fiber& me = self(thread);
  for (auto& entry : mbarriers)
    if (entry.second.maker == &me && !entry.second.known_after)
      entry.second.known_after = me.block->cluster->generation + 1;
}

bool mbarrier_known(Thread& thread, const void* place) {
  Unchecked unchecked;
  auto found = mbarriers.find(place);
  return found != mbarriers.end() && found->second.known_after &&
         self(thread).cluster_waits >= found->second.known_after;
}

void mbarrier_invalidate(Thread& thread, const void* place, int line) {
  Unchecked unchecked;
  find_mbarrier(thread, place, line);
  mbarriers.erase(place);
}

u64 mbarrier_arrive(Thread& thread, const void* place, u32 count, bool drop, bool ordered, Scope scope, int line) {
  Unchecked unchecked;
  Mbarrier& one = find_mbarrier(thread, place, line);
  u64 phase = one.phase;
  publish(thread, &one.tag[phase & 1], ordered);
  releases(thread, place, scope, ordered, true);
  if (one.pending < count) fail(thread, line, "mbarrier: %u arrivals, and only %u are pending", count, one.pending);
  one.pending -= count;
  if (drop) one.expected -= count;
  self(thread).vain = 0;
  if (!one.pending) {
    one.pending = one.expected;
    one.phase++;
    wrote(thread, place);
  }
  progress();
  return phase;
}

void mbarrier_increment(Thread& thread, const void* place, int line) {
  Unchecked unchecked;
  find_mbarrier(thread, place, line).pending++;
}

bool mbarrier_test(Thread& thread, const void* place, u64 phase, bool parity, bool ordered, Scope scope, int line) {
  Unchecked unchecked;
  for (int attempt = 0;; attempt++) {
    Mbarrier& one = find_mbarrier(thread, place, line);
    if (parity ? (one.phase & 1) != (phase & 1) : one.phase != phase) {
      char* tag = &one.tag[(one.phase - 1) & 1];
      if (ordered)
        acquire(tag), acquires(thread, place, scope, line);
      else
        relaxed_loaded(thread, tag, scope), relaxed_loaded(thread, place, scope);
      phase_passed(self(thread), place);
      return true;
    }
    if (attempt) return false;
    wait_for_phase(self(thread), place, line);
  }
}

std::string mbarrier_state(const void* place) {
  auto found = mbarriers.find(place);
  if (found == mbarriers.end()) return "";
  const Mbarrier& one = found->second;
  return std::to_string(one.pending) + " of " + std::to_string(one.expected) + " arrivals are missing in phase " +
         std::to_string(one.phase) + " of the mbarrier at " + name_of_place(place);
}

void forget_mbarriers() { mbarriers.clear(); }

}  // namespace simt
