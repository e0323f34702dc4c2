// What a kernel is given for one stream and one call, and the scratch memory of one thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "model.h"

namespace wavenet {

// Where a traced call leaves every stage, one row per sample, channels unpadded. Null pointers are skipped.
struct Trace {
  float *conditioning, *embed, *gate, *x, *skip, *hidden, *logits;  // (T, L, G) (T, R) (T, L, G/2) (T, L−1, R) (T, S) …
};

struct Stream {
  // State, changed in place.
  void* rings;       // ring_elements of float or bf16: [layer][slot][r_stride]; slot t mod depth holds input t
  float* inputs;     // in_taps past inputs, oldest first, newest is x[t−1]; classes as numbers, −1 for none
  float* filter;     // last de-emphasised value
  int64_t position;  // t of the first sample to make
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
  const Trace* trace;   // or null
};

// Shared between the calling thread and the workers of one call.
struct Control {
  std::atomic<bool> stop{false};
  std::atomic<int64_t> done{0};  // samples made by all streams
};

// All memory that one thread needs between samples, allocated before the first.
struct Scratch {
  explicit Scratch(const Model& model);

  struct Columns {          // conditioning columns [first, first + count) of one node
    float* data = nullptr;  // column i at data + i·stride; kGuard zeros before and after the channels
    int64_t first = 0, count = 0, stride = 0, capacity = 0;
    float* at(int64_t column) const { return data + (column - first) * stride + kGuard; }
  };
  std::unique_ptr<Columns[]> columns;  // input of node 0, then the output of each node; the last is what layers read
  int64_t n_columns;

  int64_t project_capacity, project_first = 0, project_count = 0;
  float* projections;    // (project_capacity, L · gate_pad)
  float* project_start;  // L · gate_pad: conditioning bias + speaker's share
  float* interpolated;   // L · gate_pad

  float *x, *z, *skip, *hidden, *logits, *weights;
  void* newest;  // x as an operand of the products
  void* gates;   // (L, half padded): every layer's gate as an operand
  void *skip_operand, *hidden_operand;
  float* gate;        // fp32 gate of one layer
  const void** taps;  // K pointers
  int64_t* slots;     // L: t mod depth

  int64_t gate_stride;

 private:
  struct Free {
    void operator()(void* p) const;
  };
  std::unique_ptr<char, Free> block_;
};

// Thrown as std::logic_error from inside a kernel.
[[noreturn]] void missing_frames();

// Reads `bytes` bytes at p `times` times over; the sum of what it read.
using ReadLoop = uint64_t (*)(const void* p, int64_t bytes, int64_t times);

struct Kernels {
  const char* name;
  Layout layout;
  // Makes stream.samples samples; false when control.stop was seen. Throws std::logic_error when frames are missing.
  bool (*generate)(const Model&, const Stream&, Scratch&, Control&);
  // Element-wise, n a multiple of the lanes; for tests of the approximations.
  void (*gate)(const float* a, const float* b, float* out, int64_t n);
  void (*exponential)(const float* x, float* out, int64_t n);
  // For benchmarks: the ceiling of what streams weights, through vector registers and, where the set has them, tiles.
  ReadLoop read_vectors;
  ReadLoop read_tiles = nullptr;
};

}  // namespace wavenet
