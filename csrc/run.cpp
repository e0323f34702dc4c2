#include "run.h"

#include "denormals.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#include <unistd.h>

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

// --- memory and meetings -----------------------------------------------------------------------------------------

void Arena::allocate() {
  block_ = zeros(used_);
  for (const Piece& piece : pieces_) *piece.where = block_.get() + piece.at;
}

// After the `looks`th look in vain.
static void wait_a_little(int looks) {
  constexpr int kEager = 64;    // the others come within tenths of a microsecond, a pause takes about 140 cycles
  constexpr int kPauses = 128;  // some five microseconds
  if (looks < kEager) return;
  if (looks >= kEager + kPauses) {
    std::this_thread::yield();
  } else {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
  }
}

void Barrier::wait(int rank, int size) {
  const uint32_t times = arrivals_[rank].count.load(std::memory_order_relaxed) + 1;
  arrivals_[rank].count.store(times, std::memory_order_release);
  int looks = 0;
  for (int other = 0; other < size; ++other) {
    // Another may have come once more already.
    while (other != rank && arrivals_[other].count.load(std::memory_order_acquire) - times > UINT32_MAX / 2) {
      wait_a_little(looks++);
    }
  }
}

Team::Team(const Model& m, int width, int most_threads) : width(width), barrier(most_threads) {
  arena_.reserve(&x, checked_mul(width, m.x_stride));
  arena_.reserve(&gate, checked_mul(2 * width, m.half_pad));
  arena_.reserve(&skip, checked_mul(width, m.pad(m.S)));
  arena_.reserve(&hidden, checked_mul(width, m.pad(m.H)));
  arena_.reserve(&logits, checked_mul(width, m.pad(m.A)));
  arena_.reserve(&weights, checked_mul(width, m.sampler_floats()));
  const int64_t rows = m.number == Number::int8 ? 0 : width, bytes = m.operand_bytes();
  arena_.reserve(reinterpret_cast<char**>(&taps), checked_mul(2 * rows, m.K * m.r_stride * bytes));
  arena_.reserve(reinterpret_cast<char**>(&gates), checked_mul(checked_mul(rows, m.L), m.operands(m.half) * bytes));
  arena_.allocate();
}

// Windows of conditioning: for one stream about 256 KiB of columns and 384 KiB of projections, for many about four
// times that in all: large enough that the projections' weights, which no cache holds beside the layers', are read
// rarely. At least two columns, because interpolation reads neighbours, and after learned stages, where every sample
// has a column of its own, up to a tile of them within 1 MiB. No result depends on these numbers.
Scratch::Scratch(const Model& m, int width, int samples_ahead)
    : seats(new Seat[width]), width(width), ahead_most(samples_ahead) {
  const auto clamp = [](int64_t n, int64_t low, int64_t high) { return std::min(std::max(n, low), high); };
  const int64_t share = std::max(1, width / 4);
  const size_t n_columns = m.nodes.size() + 1;
  for (int i = 0; i < width; ++i) {
    Seat& seat = seats[i];
    seat.columns.resize(n_columns);
    const int64_t last_stride = round_up(m.C, kChannelPad) + 2 * kGuard;
    const bool tiled = m.upsampling == Upsampling::stages && m.projection_number == Number::bf16;
    const int64_t fewest = tiled ? clamp(262144 / m.projected, 2, kMaxWidth) : 2;
    seat.project_capacity = clamp(98304 / m.projected / share, fewest, 64);
    seat.columns.back().capacity = std::max(seat.project_capacity, clamp(65536 / last_stride / share, 2, 512));
    seat.columns.back().stride = last_stride;
    for (size_t c = n_columns - 1; c-- > 0;) {
      const Range inputs = m.nodes[c].inputs_of({0, seat.columns[c + 1].capacity});
      seat.columns[c].capacity = inputs.size() + 2;  // a window may begin anywhere within a scale
      seat.columns[c].stride = m.nodes[c].stride_in();
    }
    for (Columns& c : seat.columns) arena_.reserve(&c.data, checked_mul(c.capacity, c.stride));
    arena_.reserve(&seat.projections, checked_mul(seat.project_capacity, m.projected_stride));
    arena_.reserve(&seat.project_start, m.projected);
    arena_.reserve(&seat.now, m.L);
  }
  const int64_t columns = m.projection_number == Number::bf16 ? seats[0].project_capacity : 0;
  arena_.reserve(&column_operands, checked_mul(columns, m.column_stride));
  arena_.reserve(&x, checked_mul(width, m.x_stride));
  arena_.reserve(&z, checked_mul(width, m.gate_pad));
  const auto operands = [&](void** where, float** scales, int64_t vectors, int64_t channels) {
    const int64_t n = checked_mul(width, vectors);
    arena_.reserve(reinterpret_cast<char**>(where), checked_mul(n, m.operands(channels) * m.operand_bytes()));
    arena_.reserve(scales, n);
  };
  const bool whole = m.number == Number::int8;
  operands(&taps, &tap_scales, 2 * m.K, m.R);
  operands(&gates, &gate_scales, whole ? m.L : 0, m.half);
  operands(&skip_operand, &skip_scale, 1, m.S);
  operands(&hidden_operand, &hidden_scale, 1, m.H);
  const int64_t columns_ahead = ahead_most > 1 ? ahead_most : 0;
  operands(&older_taps, &older_scales, columns_ahead * (m.K - 1), m.R);
  arena_.reserve(&older_sums, checked_mul(m.L * columns_ahead, checked_mul(width, m.gate_pad)));
  arena_.reserve(&ahead, m.L);
  arena_.allocate();
}

// --- plans -------------------------------------------------------------------------------------------------------

int64_t second_cache() {
  constexpr int64_t kUnknown = int64_t{1} << 20;
#ifdef _SC_LEVEL2_CACHE_SIZE
  const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (size > 0) return size;
#endif
  return kUnknown;
}

static int usable_cores() {
#if defined(__linux__)
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) == 0) return CPU_COUNT(&cores);
#endif
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

// For how many samples at once a team of some streams, whose cores each read so many bytes of weights a sample,
// multiplies the older taps, see older_taps.inl. It pays where weights come from afar: by far where no second cache
// holds them, by some where they fill most of it and a stream is alone. Further ahead than this brought nothing.
static int worth_ahead(int64_t bytes, int width) {
  if (bytes > second_cache()) return std::min(16, kColumnsAhead / width);
  return width == 1 && bytes > second_cache() / 2 ? 8 : 1;
}

Plan plan_call(int64_t weight_bytes, int64_t streams, int threads, Split split, int ahead) {
  threads = std::max(threads, 1);
  streams = std::max<int64_t>(streams, 1);
  // Members of a team wait for each other many times a sample: more of them than cores would only wait.
  const int members = split == Split::rows ? threads : std::min(threads, usable_cores());
  // Weights that no second cache holds are read from further away, unless each thread keeps to its own rows. Where each
  // thread has several streams of its own, that costs less than the meetings.
  if (split == Split::automatic) {
    split = weight_bytes > second_cache() && streams < 4 * members ? Split::rows : Split::streams;
  }
  Plan plan{1, members, 1, 1};
  if (split == Split::streams) plan = {static_cast<int>(std::min<int64_t>(threads, streams)), 1, 1, 1};
  plan.width = static_cast<int>(std::min<int64_t>(kMaxWidth, (streams + plan.teams - 1) / plan.teams));
  plan.ahead =
      ahead > 0 ? std::min(ahead, kColumnsAhead / plan.width) : worth_ahead(weight_bytes / plan.size, plan.width);
  return plan;
}

bool run(const Model& model, const Kernels& kernels, const std::vector<Stream>& streams, const Plan& plan,
         Control& control, const std::function<bool()>& watch) {
  std::mutex mutex;
  std::condition_variable changed;
  int working = 0;  // guarded by mutex
  bool begun = false;
  std::exception_ptr failure;
  control.streams = streams.data();
  control.n_streams = static_cast<int64_t>(streams.size());

  // All memory before the first thread: a member that failed alone would leave its team waiting.
  std::vector<std::unique_ptr<Team>> teams;
  std::vector<std::unique_ptr<Scratch>> scratch;
  for (int i = 0; i < plan.teams; ++i) teams.push_back(std::make_unique<Team>(model, plan.width, plan.size));
  // No further ahead than a layer or a stream of this call can be.
  int64_t ahead = *std::max_element(model.dilations.begin(), model.dilations.end()), longest = 1;
  for (const Stream& stream : streams) longest = std::max(longest, stream.samples);
  ahead = std::min({ahead, longest, static_cast<int64_t>(plan.ahead)});
  for (int i = 0; i < plan.teams * plan.size; ++i) {
    scratch.push_back(std::make_unique<Scratch>(model, plan.width, static_cast<int>(ahead)));
  }

  const auto work = [&](int team, int rank, Scratch& own) {
    {
      std::unique_lock<std::mutex> lock(mutex);
      changed.wait(lock, [&] { return begun; });
    }
    try {
      const FlushDenormals mode;
      const SampleLoop loop;
      kernels.generate(model, *teams[team], rank, own, control);
    } catch (...) {
      control.stop = true;
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
    }
    const std::lock_guard<std::mutex> lock(mutex);
    --working;
    changed.notify_all();
  };

  int64_t samples = 0;
  for (const Stream& stream : streams) samples += stream.samples;
  if (plan.teams * plan.size == 1 && multiply_adds(model, samples) <= kShortCall) {
    working = 1;
    begun = true;
    work(0, 0, *scratch[0]);
    if (failure) std::rethrow_exception(failure);
    return true;
  }

  std::vector<std::thread> workers;
  workers.reserve(static_cast<size_t>(plan.teams * plan.size));
  std::exception_ptr no_thread;
  for (int team = 0; team < plan.teams && !no_thread; ++team) {
    for (int rank = 0; rank < plan.size; ++rank) {
      try {
        workers.emplace_back(work, team, rank, std::ref(*scratch[workers.size()]));
        teams[team]->size = rank + 1;
      } catch (...) {  // no more threads, or no memory for one: those that run do the work
        no_thread = std::current_exception();
        break;
      }
    }
  }
  if (workers.empty()) std::rethrow_exception(no_thread);

  std::exception_ptr watch_failure;
  {
    std::unique_lock<std::mutex> lock(mutex);
    working = static_cast<int>(workers.size());
    begun = true;
    changed.notify_all();
    while (!changed.wait_for(lock, kWatchInterval, [&] { return working == 0; })) {
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
