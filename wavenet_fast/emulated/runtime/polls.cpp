// Threads that wait by looking: at a word in memory or at an mbarrier, again and again.
//
// A thread that has looked in vain is parked: it runs again when one of the places it looked at last is written by an
// access that synchronises. Where nobody else can run, time passes: the clock goes ahead, by twice as much each time,
// and everyone who is parked looks again. So a wait that is bounded by the clock ends by its own bound after some 40
// looks, however long the bound is, or when it looks at the clock next (up to 100 looks at the place may lie between
// two at the clock). Waits that are not bounded end with a report.
#include <unordered_map>

#include "machine.h"

namespace simt {
namespace {

constexpr u64 kLook = 64;               // what a look at the clock takes, in its own ticks
constexpr u64 kStalled = u64(1) << 24;  // a jump of the clock that no launch needs where all is well
constexpr u64 kLongestJump = u64(1) << 40;
constexpr u64 kLooksOfEach = 256;        // looks in vain that every thread has, whatever max_spins says
constexpr u64 kPatience = u64(1) << 17;  // switches after which the parked look, also while others run

struct Watcher {
  Fiber* fiber;
  u32 look;
};
// By word of 8 bytes: who looked there last. Looked up by place and never walked through: an address has no say in
// who runs first.
std::unordered_map<u64, std::vector<Watcher>> watchers;
u64 ticks, jump, parked, patience;

u64 word_of(const void* place) { return reinterpret_cast<u64>(place) >> 3; }

void forget(Fiber& me, u32 look) {
  auto found = watchers.find(word_of(me.looks[look].at));
  auto& all = found->second;
  Watcher& last = all.back();
  last.fiber->looks[last.look].index = me.looks[look].index;
  all[me.looks[look].index] = last;
  all.pop_back();
  if (all.empty()) watchers.erase(found);
}

// The entry of a place among those that this thread looked at last; `fresh` where it was none of them.
Look& look_at(Fiber& me, const void* place, bool& fresh) {
  fresh = false;
  for (auto& look : me.looks)
    if (look.at == place) return look;
  fresh = true;
  u32 n = me.next_look++ % kLooks;
  if (me.looks[n].at) forget(me, n);
  auto& all = watchers[word_of(place)];
  me.looks[n] = {place, 0, static_cast<u32>(all.size()), false};
  all.push_back({&me, n});
  return me.looks[n];
}

void unpark(Fiber& fiber) {
  fiber.parked = false;
  parked--;
  ready.push_back(&fiber);
}

// One look in vain. The first is followed by another turn, as a thread that works looks too, now and then.
void in_vain(Fiber& me, int line, const char* what, bool waits) {
  report->spins++;
  me.polls = true;
  me.looks_on = true;
  u64 allowed = std::max(request->max_spins, kLooksOfEach * live);
  if (++fruitless > allowed) {
    me.waits = what;
    me.line = line;
    head_of_report(me, line);
    append(
        "livelock: %llu polls in a row, by all threads together, have seen nothing new (max_spins allows %llu, and "
        "%llu for each thread)",
        (unsigned long long)fruitless, (unsigned long long)request->max_spins, (unsigned long long)kLooksOfEach);
    append_waiting();
    abandon();
  }
  if (++me.vain > 1 || waits) {
    me.parked = true;
    parked++;
  } else {
    ready.push_back(&me);
  }
  wait_in(me, what, line);
  me.looks_on = false;
}

}  // namespace

void start_clock() {
  ticks = parked = 0;
  jump = kLook;
  patience = kPatience;
}

u64 clock() { return ticks += kLook; }

void progress() {
  fruitless = 0;
  jump = kLook;
}

bool let_the_parked_look(bool others_run) {
  if (others_run && --patience) return false;
  patience = kPatience;
  if (!parked) return false;
  if (!others_run) {
    ticks += jump;
    if (jump < kLongestJump) jump *= 2;
    if (jump == kStalled && !report->stall[0]) {
      append_waiting();
      memcpy(report->stall, report->message, sizeof report->stall);
      report->message[0] = 0;
    }
  }
  for (auto& fiber : fibers)
    if (fiber->parked) unpark(*fiber);
  return true;
}

void wrote(Thread& thread, const void* place) {
  Unchecked unchecked;
  self(thread).vain = 0;
  progress();
  auto found = watchers.find(word_of(place));
  if (found == watchers.end()) return;
  for (auto& watcher : found->second)
    if (watcher.fiber->parked) unpark(*watcher.fiber);
}

void polled(Thread& thread, const void* place, u64 value, int line) {
  Unchecked unchecked;
  Fiber& me = self(thread);
  bool fresh;
  Look& look = look_at(me, place, fresh);
  look.vain = !fresh && look.value == value;
  if (look.vain) return in_vain(me, line, "a polling loop", false);
  look.value = value;
  me.vain = 0;
}

void wait_for_phase(Fiber& me, const void* place, int line) {
  bool fresh;
  look_at(me, place, fresh).vain = true;
  in_vain(me, line, "an mbarrier wait", true);
}

void phase_passed(Fiber& me, const void* place) {
  me.vain = 0;
  for (auto& look : me.looks)
    if (look.at == place) look.vain = false;
}

void sleep(Thread& thread, int line) {
  Unchecked unchecked;
  in_vain(self(thread), line, "nanosleep", false);
}

void forget_watchers() { watchers.clear(); }

}  // namespace simt
