#include "bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

namespace wavenet {
namespace {

// Calls job(thread) on `threads` threads, the calling one among them, and joins them. Where not all can be started,
// `give_up` is called before those that run are joined, and the reason is thrown.
template <class Job, class GiveUp>
void on_threads(int threads, const Job& job, const GiveUp& give_up) {
  std::vector<std::thread> others;
  others.reserve(threads - 1);
  try {
    for (int i = 1; i < threads; ++i) others.emplace_back(job, i);
  } catch (...) {
    give_up();
    for (std::thread& other : others) other.join();
    throw;
  }
  job(0);
  for (std::thread& other : others) other.join();
}

void check_threads(int threads) {
  if (threads < 1 || threads > kMaxThreads) throw std::invalid_argument("give 1 … 1024 threads");
}

}  // namespace

ReadProbe::ReadProbe(int64_t bytes, int threads) : bytes_(bytes), threads_(threads) {
  check_threads(threads);
  if (bytes < 1 || bytes > (int64_t{1} << 40)) throw std::invalid_argument("give 1 … 2^40 bytes to read");
  block_ = zeros(bytes);
  // Not zeros: a machine may save itself moving those.
  for (int64_t i = 0; i < bytes; ++i) block_.get()[i] = static_cast<char>(i * 7 + 1);
}

ReadProbe::Reading ReadProbe::run(ReadLoop read, int64_t times) const {
  using Clock = std::chrono::steady_clock;
  const int64_t part = round_up((bytes_ + threads_ - 1) / threads_, 64);  // whole cache lines
  std::atomic<int> waiting{0};
  std::atomic<bool> cancelled{false};
  std::atomic<uint64_t> sum{0};
  std::vector<Clock::time_point> began(threads_), ended(threads_);
  const auto work = [&](int i) {
    const int64_t first = std::min(i * part, bytes_), count = std::min(part, bytes_ - first);
    const char* p = block_.get() + first;
    read(p, count, 1);
    ++waiting;
    while (waiting < threads_ && !cancelled) std::this_thread::yield();
    began[i] = Clock::now();
    const uint64_t own = cancelled ? 0 : read(p, count, times);
    ended[i] = Clock::now();
    sum += own;
  };
  on_threads(threads_, work, [&] { cancelled = true; });
  const auto all = *std::max_element(ended.begin(), ended.end()) - *std::min_element(began.begin(), began.end());
  return {std::chrono::duration<double>(all).count(), sum};
}

void spin(int64_t count, int threads) {
  check_threads(threads);
  const auto work = [count](int) {
    // In the compiler's eyes the counter may be anything after each turn, so that no turn is left out.
    for (int64_t i = 0; i < count; ++i) __asm__ volatile("" : "+r"(i));
  };
  on_threads(threads, work, [] {});
}

}  // namespace wavenet
