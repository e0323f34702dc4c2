// What a kernel is given: streams to make, the team of threads that makes them, and the scratch memory of both.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "memory.h"
#include "model.h"

namespace wavenet {

// Streams that one pass over the weights serves: the rows of a tile of operands.
constexpr int kMaxWidth = 16;

// Products of older taps that are made at once, for several samples of these streams: what they are kept in between
// shall not displace the weights.
constexpr int kColumnsAhead = 64;

// Where a traced call leaves every stage, one row per sample, channels unpadded. Null pointers are skipped.
struct Trace {
  float *conditioning, *embed, *gate, *x, *skip, *hidden, *logits;  // (T, L, G) (T, R) (T, L, G/2) (T, L−1, R) (T, S) …
};

struct Stream {
  // State, changed in place.
  void* rings;         // ring_slots vectors of operands, r_stride each: slot t mod depth of a layer holds its input t
  float* ring_scales;  // int8: what one unit of each slot is worth
  float* inputs;       // in_taps past inputs, oldest first, newest is x[t−1]; classes as numbers, −1 for none
  float* filter;       // last de-emphasised value
  int64_t position;    // t of the first sample to make
  uint64_t seed;
  const float* speaker;  // P

  // Mel. Frames pending_first … frames_before − 1 are in `pending` (frame, band), later ones in `mel`.
  const float* pending;
  int64_t pending_first, frames_before, frames;
  const float* mel;
  int64_t mel_band_stride, mel_frame_stride;  // in floats
  bool ended;

  int64_t samples;  // how many to make
  float temperature;
  const float* forced;  // what the history is fed instead of the draws, or null
  float* audio;         // decoded sound, or null
  float* raw;           // draws as they are: classes or values in the model's domain; or null
  float* logits;        // (samples, A) or null
  const Trace* trace;   // or null; a traced stream is made alone
};

// Shared by all threads of one call.
struct Control {
  const Stream* streams = nullptr;
  int64_t n_streams = 0;
  std::atomic<int64_t> next{0};  // first stream that no team has taken
  std::atomic<bool> stop{false};
  std::atomic<int64_t> done{0};  // samples made by all streams

  const Stream* take() {
    const int64_t b = next.fetch_add(1);
    return b < n_streams ? streams + b : nullptr;
  }
};

// Where the threads of a team meet: each leaves `wait` when all have come. Spins, for the others are microseconds away;
// after a while it gives the core away at every look, for then one of them is probably waiting for it.
//
// Each thread writes on lines of its own how often it has come, and looks at those of the others: a meeting takes one
// journey of a line from core to core, where a common counter takes three, one after the other.
class Barrier {
 public:
  explicit Barrier(int most) : arrivals_(new Arrivals[most]) {}
  void wait(int rank, int size);

 private:
  struct alignas(128) Arrivals {  // two lines, which are fetched together
    std::atomic<uint32_t> count{0};
  };
  std::unique_ptr<Arrivals[]> arrivals_;
};

// One aligned block of memory, handed out in pieces: reserve all, allocate, then read the addresses. Zero at first.
class Arena {
 public:
  // A place for n elements of T, whose address `*where` becomes when the block is allocated.
  template <class T>
  void reserve(T** where, int64_t n) {
    pieces_.push_back({reinterpret_cast<void**>(where), used_});
    used_ += round_up(checked_mul(n, sizeof(T)), 64);
    checked_mul(used_, 1);
  }
  void allocate();

 private:
  struct Piece {
    void** where;
    int64_t at;
  };
  std::vector<Piece> pieces_;
  int64_t used_ = 0;
  Memory block_;
};

// The threads that share the rows of every layer, and the streams that they make side by side. What all of them see:
// activations in fp32, row n of each array belonging to the stream in place n.
struct Team {
  Team(const Model& model, int width, int most_threads);

  const int width;  // streams at most
  int size = 1;     // threads
  Barrier barrier;
  void meet(int rank) {
    if (size > 1) barrier.wait(rank, size);
  }

  // Places 0 … n − 1 are taken; changed by rank 0 alone, between two barriers.
  struct Place {
    const Stream* stream = nullptr;
    int64_t made = 0;  // samples
    int seat = 0;      // where every rank keeps what it remembers of the stream from sample to sample
  };
  Place places[kMaxWidth];
  int n = 0;
  bool leave = false;

  float *x, *gate, *skip, *hidden, *logits;  // (width, x_stride) (2, width, half_pad) (width, pad(S)) (… H) (… A)
  float* weights;                            // (width, A and a sixteenth more): the sampler's
  void *taps, *gates;                        // operands, but not in int8: (2, width, K, r_stride), (width, L, …)

 private:
  Arena arena_;
};

// What one thread of a team keeps to itself.
struct Scratch {
  // For so many streams at most, and so many samples whose older taps are made at once.
  Scratch(const Model& model, int width, int samples_ahead);

  struct Columns {          // conditioning columns [first, first + count) of one node
    float* data = nullptr;  // column i at data + i·stride; kGuard zeros before and after the channels
    int64_t first = 0, count = 0, stride = 0, capacity = 0;
    float* at(int64_t column) const { return data + (column - first) * stride + kGuard; }
  };
  // Of the stream in one seat.
  struct Seat {
    const Stream* stream = nullptr;
    std::vector<Columns> columns;  // input of node 0, then the output of each node; the last is what layers read
    int64_t project_capacity = 0, project_first = 0, project_count = 0;
    // (project_capacity, projected_stride): columns in fp32; or words, a column's bf16 in the lower halves and the next
    // column's in the upper ones.
    float* projections;
    float* project_start;  // L · gate_pad: conditioning bias + speaker's share
    int64_t* now;          // L: t mod depth
  };
  // What the older taps of a layer add to the sums of `size` samples, of which `left` are still to be made.
  struct Ahead {
    int64_t size, left;
  };
  std::unique_ptr<Seat[]> seats;

  uint16_t* column_operands;  // of a projection in bf16: (project_capacity of a seat, column_stride)
  float *x, *z;               // (width, x_stride), where a thread makes the whole of x for itself; (width, gate_pad)
  // Operands, taps where x is the thread's own or in int8, gates in int8 alone; and in int8 what a unit of each vector
  // is worth.
  void *taps, *gates, *skip_operand, *hidden_operand;  // (2, width, K, r_stride) (width, L, …) (width, …) (width, …)
  float *tap_scales, *gate_scales, *skip_scale, *hidden_scale;  // (2, width, K) (width, L) (width) (width)
  const int64_t width, ahead_most;
  Ahead* ahead;                      // L
  void* older_taps;                  // operands: (ahead_most · width, K − 1, r_stride)
  float *older_scales, *older_sums;  // (ahead_most · width, K − 1) (L, ahead_most · width, gate_pad)

 private:
  Arena arena_;
};

// Thrown as std::logic_error from inside a kernel.
[[noreturn]] void missing_frames();

// Reads `bytes` bytes at p `times` times over; the sum of what it read.
using ReadLoop = uint64_t (*)(const void* p, int64_t bytes, int64_t times);

struct StageRoom;
enum class Stage { dilated, gate, residual_skip, head, sample };

struct Kernels {
  const char* name;
  Layout layouts[kNumbers];
  // Makes streams of `control` until none is left or control.stop is seen, as thread `rank` of the team. Throws
  // std::logic_error when frames are missing.
  void (*generate)(const Model&, Team&, int rank, Scratch&, Control&);
  // Element-wise, n a multiple of the lanes; for tests of the approximations.
  void (*gate)(const float* a, const float* b, float* out, int64_t n);
  void (*exponential)(const float* x, float* out, int64_t n);
  // For benchmarks: the ceiling of what streams weights, through vector registers and, where the set has them, tiles.
  ReadLoop read_vectors;
  ReadLoop read_tiles;
  // For benchmarks, see stages.h.
  void (*run_stage)(const Model&, StageRoom&, Stage, int64_t times);
};

}  // namespace wavenet
