// Everything that a launch of the sample loop is given. The launch layer reads names, order and types from this text:
// one field per line.
//
// B streams, T samples, F columns of conditioning; the letters of padded sizes are those of shapes.py. `Operand` is the
// number format in which activations meet weights.
#pragma once

#include "numbers.cuh"

struct Call {
  // State, changed in place.
  Operand* rings;  // (B, SLOTS, R): per layer a ring of its past inputs; in int8 (B, SLOTS, R + 16), see `Rows`
  float* inputs;   // (B, IN_DEPTH): x[t] at slot t mod IN_DEPTH
  float* filters;  // (B): last de-emphasised value

  // Streams.
  const long long* positions;  // (B): samples made before
  const u64* seeds;            // (B)
  const int* counts;           // (B): samples to make
  const int* places;           // (pipelines, TILES, N): which stream is where; −1 for none

  // Conditioning.
  const float* projected;  // (B, F, LAYERS, HALF, 2): of each gate the one for tanh and the one for σ
  const int* first_q;      // (B): place of the first sample, in samples since the stream's first column
  const int* last_column;  // (B)
  const float* fraction;   // (HOP): see `column_of_sample`
  const int* shift;        // (HOP)
  int n_columns;           // F

  // Weights as fragments: (LAYERS, HALF/8, K, R/step) (LAYERS, R/16, HALF/step) (LAYERS, S/16, HALF/step)
  // (H/16, S/step) (A/16, H/step); or, for `streaming_weights`, all of them as one tape per warp.
  const uint4* dilated;    // row j of panel m: tanh of gate 8m + j for j < 8, σ of gate 8m + j − 8 otherwise
  const uint4* residual;   // the last layer's are zeros
  const uint4* skip;       //
  const uint4* hidden;     //
  const uint4* out;        //
  const uint4* tapes;      // all warps' tapes
  const int* tape_starts;  // (warps + 1): first fragment of each warp

  // int8: what a unit of each row is worth. (LAYERS, HALF/8, K, 16) (LAYERS, R) (LAYERS, S) (H) (A)
  const float* dilated_units;
  const float* residual_units;
  const float* skip_units;
  const float* hidden_units;
  const float* out_units;

  // Other weights, fp32.
  const float* w_input;     // (IN_TAPS, classes or 1, R)
  const float* b_input;     // (R)
  const float* b_dilated;   // (LAYERS, HALF, 2)
  const float* b_residual;  // (LAYERS, R)
  const float* b_skip;      // (LAYERS, S), or (S), summed, where skips are simply added
  const float* b_hidden;    // (H)
  const float* b_out;       // (A)

  // Tables.
  const int* layers;        // (LAYERS, 3): dilation, first slot of its ring, slots of its ring (a power of two)
  const int* first_layers;  // (TEAMS + 1): which layers a team of a pipeline owns
  const float* sound;       // (CLASSES): class → linear sound
  const float* feedback;    // (CLASSES): class → what a scalar input is fed

  // Out, and what is heard instead of the draws.
  float* audio;         // (B, stride)
  float* draws;         // (B, stride)
  float* logits;        // (B, stride, logits_width) where LOGITS
  const float* forced;  // (B, stride) where FORCED
  int stride;           // samples of a row
  int logits_width;     // at most A

  // Where TRACE, every stage: (B, stride, …)
  float* conditioning_trace;  // (LAYERS, HALF, 2)
  float* embed_trace;         // (R)
  float* gate_trace;          // (LAYERS, HALF)
  float* x_trace;             // (LAYERS, R)
  float* skip_trace;          // (S)
  float* hidden_trace;        // (H)

  // Room in global memory for what does not fit on the chip, and for what blocks of a grid hand over.
  float* logits_room;   // (pipelines, N, A + 4): see `Logits`
  float* carried_room;  // (pipelines, (R + S) · N): sums of x and of the skips
  u8* mailboxes;        // (pipelines, TEAMS, TILES, bytes): see handover.cuh
  u32* flags;           // (pipelines, TEAMS, TILES)
                        // both zero before the launch

  // Numbers.
  float temperature;     //
  float sharpness;       // log2(e)/temperature
  float log_scale_min;   // −∞ where there is none
  float preemphasis;     //
  float gain;            //
  float mu;              //
  float residual_scale;  //
  float skip_scale;      //

  // Waiting. See wait.cuh.
  u64* abort;          // one word, zero before the launch
  long long patience;  // clock cycles
};
