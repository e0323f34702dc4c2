#include "run.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <system_error>
#include <thread>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace wavenet {

// Set on a thread while it makes samples; tests count heap allocations by it.
static thread_local int sample_loops = 0;

extern "C" __attribute__((visibility("default"), noinline)) int wavenet_fast_in_sample_loop() { return sample_loops; }

void missing_frames() {
  throw std::logic_error("the stream's state does not hold the mel frames that its position needs");
}

int64_t ready_samples(const Model& model, int64_t frames, bool ended) {
  return std::max<int64_t>(0, ended ? frames : frames - model.lookahead_frames) * model.hop;
}

namespace {

// Numbers below 1e-38 count as zero while samples are made: a decaying value in a ring would otherwise slow every
// product it meets a hundredfold. The old mode is put back.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040u); }  // FTZ, DAZ
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FlushDenormals() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
    const uint64_t mode = before_ | (uint64_t{1} << 24);  // FZ
    __asm__ volatile("msr fpcr, %0" : : "r"(mode));
  }
  ~FlushDenormals() { __asm__ volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#endif
};

struct SampleLoop {
  SampleLoop() { ++sample_loops; }
  ~SampleLoop() { --sample_loops; }
};

constexpr auto kWatchInterval = std::chrono::milliseconds(30);

// Below so many multiply-adds, some 10 ms of work, a call runs on the calling thread: starting another and waiting for
// it costs two turns of the scheduler on a busy machine.
constexpr double kShortCall = 2e8;

// Of a call for so many samples, the conditioning network's share included.
double multiply_adds(const Model& m, int64_t samples) {
  const int64_t layer = m.gate_pad * (m.K * m.R + m.C) + m.half * (m.pad(m.R) + m.pad(m.S));
  double work = static_cast<double>(samples) * (m.L * layer + m.pad(m.H) * m.S + m.pad(m.A) * m.H);
  // Columns, counted back from the last node; a call for a few samples still needs all that their frames look at.
  int64_t columns = m.upsampling == Upsampling::stages ? samples : samples / m.hop + 2;
  for (size_t i = m.nodes.size(); i-- > 0;) {
    const Node& node = m.nodes[i];
    const int64_t each = node.out * (node.image ? node.freq_taps : node.in) * node.taps;
    work += static_cast<double>(columns) * each;
    const Range inputs = node.inputs_of({0, columns});
    columns = inputs.last - inputs.first;
  }
  return work;
}

}  // namespace

// Windows of conditioning: about 256 KiB of columns and 128 KiB of projections, so that they stay in the second cache;
// at least two, because interpolation reads neighbours. No result depends on these numbers.
Scratch::Scratch(const Model& m) {
  n_columns = static_cast<int64_t>(m.nodes.size()) + 1;
  columns.reset(new Columns[n_columns]);
  const auto clamp = [](int64_t n, int64_t low, int64_t high) { return std::min(std::max(n, low), high); };
  const int64_t last_stride = round_up(m.C, kChannelPad) + 2 * kGuard;
  project_capacity = clamp(32768 / m.projected, 2, 64);
  columns[n_columns - 1].capacity = std::max(project_capacity, clamp(65536 / last_stride, 2, 512));
  columns[n_columns - 1].stride = last_stride;
  for (int64_t i = n_columns - 2; i >= 0; --i) {
    const Range inputs = m.nodes[i].inputs_of({0, columns[i + 1].capacity});
    columns[i].capacity = inputs.last - inputs.first + 2;  // a window may begin anywhere within a scale
    columns[i].stride = m.nodes[i].stride_in();
  }
  gate_stride = round_up(m.half, kChannelPad);

  int64_t used = 0;
  const auto reserve = [&used](int64_t elements) {
    const int64_t at = used;
    used += round_up(checked_mul(elements, 4), 64);
    checked_mul(used, 1);
    return at;
  };
  std::vector<int64_t> at_columns;
  for (int64_t i = 0; i < n_columns; ++i)
    at_columns.push_back(reserve(checked_mul(columns[i].capacity, columns[i].stride)));
  const int64_t at_projections = reserve(checked_mul(project_capacity, m.projected));
  const int64_t at_start = reserve(m.projected), at_interpolated = reserve(m.projected);
  const int64_t at_x = reserve(m.r_stride), at_z = reserve(m.gate_pad), at_gate = reserve(m.half_pad);
  const int64_t at_skip = reserve(m.pad(m.S)), at_hidden = reserve(m.pad(m.H)), at_logits = reserve(m.pad(m.A));
  const int64_t classes = round_up(m.A, 16);
  const int64_t at_weights = reserve(classes + classes / 16);
  // Operands, at the size of the wider format.
  const int64_t at_newest = reserve(m.r_stride), at_gates = reserve(checked_mul(m.L, gate_stride));
  const int64_t at_skip_operand = reserve(round_up(m.S, kChannelPad)),
                at_hidden_operand = reserve(round_up(m.H, kChannelPad));
  const int64_t at_taps = reserve(2 * m.K), at_slots = reserve(2 * m.L);

  block_.reset(static_cast<char*>(std::aligned_alloc(64, used)));
  if (!block_) throw std::bad_alloc();
  std::memset(block_.get(), 0, static_cast<size_t>(used));
  const auto floats = [this](int64_t at) { return reinterpret_cast<float*>(block_.get() + at); };
  for (int64_t i = 0; i < n_columns; ++i) columns[i].data = floats(at_columns[i]);
  projections = floats(at_projections);
  project_start = floats(at_start);
  interpolated = floats(at_interpolated);
  x = floats(at_x);
  z = floats(at_z);
  gate = floats(at_gate);
  skip = floats(at_skip);
  hidden = floats(at_hidden);
  logits = floats(at_logits);
  weights = floats(at_weights);
  newest = floats(at_newest);
  gates = floats(at_gates);
  skip_operand = floats(at_skip_operand);
  hidden_operand = floats(at_hidden_operand);
  taps = reinterpret_cast<const void**>(block_.get() + at_taps);
  slots = reinterpret_cast<int64_t*>(block_.get() + at_slots);
}

void Scratch::Free::operator()(void* p) const { std::free(p); }

bool run(const Model& model, const Kernels& kernels, std::vector<Stream>& streams, int threads, Control& control,
         const std::function<bool()>& watch) {
  std::mutex mutex;
  std::condition_variable finished;
  int working = 0;  // guarded by mutex
  std::exception_ptr failure;
  std::atomic<size_t> next{0};

  const auto work = [&] {
    try {
      Scratch scratch(model);
      const FlushDenormals mode;
      const SampleLoop loop;
      for (size_t b; (b = next.fetch_add(1)) < streams.size();) {
        if (!kernels.generate(model, streams[b], scratch, control)) break;
      }
    } catch (...) {
      control.stop = true;
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
    }
    const std::lock_guard<std::mutex> lock(mutex);
    --working;
    finished.notify_one();
  };

  int64_t samples = 0;
  for (const Stream& stream : streams) samples += stream.samples;
  const size_t wanted = std::min(streams.size(), static_cast<size_t>(std::max(threads, 1)));
  if (wanted == 1 && multiply_adds(model, samples) <= kShortCall) {
    working = 1;
    work();
    if (failure) std::rethrow_exception(failure);
    return true;
  }

  std::vector<std::thread> workers;
  workers.reserve(wanted);
  while (workers.size() < wanted) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      ++working;
    }
    try {
      workers.emplace_back(work);
    } catch (...) {  // no more threads, or no memory for one: those that run do the work
      const std::lock_guard<std::mutex> lock(mutex);
      --working;
      if (workers.empty()) throw;
      break;
    }
  }

  std::exception_ptr watch_failure;
  {
    std::unique_lock<std::mutex> lock(mutex);
    while (!finished.wait_for(lock, kWatchInterval, [&] { return working == 0; })) {
      if (control.stop) continue;
      lock.unlock();
      try {
        if (!watch()) control.stop = true;
      } catch (...) {
        watch_failure = std::current_exception();
        control.stop = true;
      }
      lock.lock();
    }
  }
  for (std::thread& worker : workers) worker.join();
  if (watch_failure) std::rethrow_exception(watch_failure);
  if (failure) std::rethrow_exception(failure);
  return !control.stop;
}

}  // namespace wavenet
