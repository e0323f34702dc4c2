// What a launch that cannot go on tells: where, why, and who waits for what.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>

#include "machine.h"

namespace simt {
namespace {

template <class... Values>
std::string format(const char* pattern, Values... values) {
  char text[200];
  snprintf(text, sizeof text, pattern, values...);
  return text;
}

// "0–63, 96": the first ones of many.
std::string ranges(std::vector<u32> members) {
  std::sort(members.begin(), members.end());
  std::string text;
  int left = 8;
  for (size_t i = 0; i < members.size();) {
    if (!left--) return text + " …";
    size_t j = i;
    while (j + 1 < members.size() && members[j + 1] == members[j] + 1) j++;
    if (!text.empty()) text += ", ";
    text += std::to_string(members[i]);
    if (j > i) text += "–" + std::to_string(members[j]);
    i = j + 1;
  }
  return text;
}

// What a waiting thread waits for; empty where the name of the wait says all.
std::string missing(const Fiber& fiber) {
  auto it_waits = [&](const std::vector<Fiber*>& waiting) {
    return std::find(waiting.begin(), waiting.end(), &fiber) != waiting.end();
  };
  if (fiber.looks_on) {
    std::string told;
    for (auto& look : fiber.looks) {
      if (!look.vain) continue;
      std::string state = mbarrier_state(look.at);
      if (state.empty()) state = format("it sees 0x%llx in ", (unsigned long long)look.value) + name_of_place(look.at);
      told += (told.empty() ? "" : "; ") + state;
    }
    return told;
  }
  for (u32 id = 0; id < kBarriers; id++)
    if (const Barrier& barrier = fiber.block->barriers[id]; it_waits(barrier.waiting))
      return format("%u of %u threads have come to barrier %u", barrier.arrived, barrier.expected, id);
  if (const Cluster& cluster = *fiber.block->cluster; it_waits(cluster.waiting))
    return format("%u of %u threads of the cluster have arrived", cluster.arrived, cluster.live);
  for (auto& meet : fiber.block->warps[fiber.warp].meetings)
    if (meet->waiting[fiber.lane] == &fiber)
      return format("lanes 0x%08x of 0x%08x have come", meet->arrived, meet->mask);
  return "";
}

void append_list(const char* pattern, va_list list) {
  size_t used = strlen(report->message);
  vsnprintf(report->message + used, sizeof report->message - used, pattern, list);
}

}  // namespace

void append(const char* pattern, ...) {
  va_list list;
  va_start(list, pattern);
  append_list(pattern, list);
  va_end(list);
}

void append_waiting() {
  std::map<std::pair<int, std::string>, std::map<std::pair<u32, std::string>, std::vector<u32>>> places;
  std::map<u32, u32> exited;
  for (auto& fiber : fibers) {
    if (fiber->done)
      exited[fiber->block->index]++;
    else
      places[{fiber->line, fiber->waits ? fiber->waits : "nothing: it can run"}]
            [{fiber->block->index, fiber->waits ? missing(*fiber) : ""}]
                .push_back(fiber->linear);
  }
  for (auto& [place, members] : places)
    for (auto& [home, threads] : members)
      append("\n  line %d, %s: block %u, %zu threads (%s)%s%s", place.first, place.second.c_str(), home.first,
             threads.size(), ranges(threads).c_str(), home.second.empty() ? "" : "; ", home.second.c_str());
  for (auto& [index, count] : exited) append("\n  exited: block %u, %u threads", index, count);
}

void head_of_report(const Thread& t, int line) {
  report->line = line;
  report->message[0] = 0;
  append("kernel %s, line %d, block (%u,%u,%u), thread (%u,%u,%u): ", kernels[request->kernel].name, line, t.bid.x,
         t.bid.y, t.bid.z, t.tid.x, t.tid.y, t.tid.z);
}

void fail(const Thread& thread, int line, const char* pattern, ...) {
  Unchecked unchecked;
  head_of_report(thread, line);
  va_list list;
  va_start(list, pattern);
  append_list(pattern, list);
  va_end(list);
  abandon();
}

}  // namespace simt
