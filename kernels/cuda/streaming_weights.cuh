// `streaming_weights`: one block makes a tile of N streams, sample by sample, and reads all weights from the
// second-level cache for every sample. It runs any model that its buffers fit.
//
// Of the block's warps, CHAIN work on what the next layer waits for (dilated, gate, residual) and SKIP on the rest
// (skip, rings). Every warp has a tape: all fragments that it meets in one sample, in that order, read round and round
// through a ring of copies that run ahead across layers and samples (`FromTape`). Per layer:
//
//   chain  dilated panels, gates → g | chain meets | residual panels → x | chain meets
//   skip                             | waits for g | skip panels, ring of x
//
// In int8 chain warps meet once more before each: numbers wait for the largest of their vector (`Target`).
//
// g and x have two places each, used by turns: chain warps write layer l + 1's while skip warps read layer l's, and
// wait before they write over what skip warps may still read. The past that a layer needs is fetched while the layer
// before it works, that of the first layer while the head does.
//
// Shared memory (namespace at): streams, the rings' table, hearing, memories, x operands (2), gates (2), past (2), skip
// operands, hidden, logits, x as sums, numbers on their way to int8, rings of the tapes.
#include "head.cuh"

namespace {

constexpr int kPanelsD = shape::HALF / 8, kPanelsR = shape::R / 16, kPanelsS = shape::S / 16;
constexpr int kOwnR = ceil_div(kPanelsR, plan::CHAIN), kOwnS = ceil_div(kPanelsS, plan::SKIP);
constexpr int kPastBytes = (shape::K - 1) * Rows<shape::R>::kBytes;

constexpr int kUnrollR = plan::X_IN_REGISTERS ? kOwnR : 1, kUnrollS = plan::SKIP_IN_REGISTERS ? kOwnS : 1;

// A thread's copies of the past ride in the groups of its tape: they have landed when it has used as many fragments as
// the ring is deep. Where there are fewer until the past is needed, it waits.
constexpr int kFragmentsOfLayer = kPanelsD / plan::CHAIN * shape::K * steps_of(shape::R);
constexpr int kFragmentsOfHead =
    shape::H / 16 / kWarps * steps_of(shape::S) + shape::A / 16 / kWarps * steps_of(shape::H);

// Sums that a warp keeps from layer to layer: in registers, or where there are too many of them in memory of its own.
template <int PANELS, bool IN_REGISTERS>
struct Carried {
  Sums sums[PANELS];
  DEVICE Carried(float4*, int, int) {}
  DEVICE Sums get(int own) const { return sums[own]; }
  DEVICE void set(int own, const Sums& value) { sums[own] = value; }
};

template <int PANELS>
struct Carried<PANELS, false> {
  float4* begin;
  int first, step;
  DEVICE Carried(float4* begin, int first, int step) : begin(begin), first(first), step(step) {}
  DEVICE Sums get(int own) const { return load_sums(begin, first + own * step); }
  DEVICE void set(int own, const Sums& value) { store_sums(begin, first + own * step, value); }
};

using Tape = FromTape<plan::STAGES>;

// A warp that has met no fragment since has not closed the group that its copies of the past are in.
DEVICE void wait_for_past() {
  commit_copies();
  wait_copies<0>();
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 1) streaming_weights(const __grid_constant__ Call call) {
  extern __shared__ __align__(128) u8 shared[];
  Stream* const streams = reinterpret_cast<Stream*>(shared + at::streams);
  Ring* const rings = reinterpret_cast<Ring*>(shared + at::ring_table);
  Hearing* const hearing = reinterpret_cast<Hearing*>(shared + at::hearing);
  const Memories memories = {reinterpret_cast<float*>(shared + at::inputs),
                             reinterpret_cast<float*>(shared + at::filters)};
  float* const numbers = reinterpret_cast<float*>(shared + at::numbers);
  float* const skip_numbers = reinterpret_cast<float*>(shared + at::skip_numbers);
  const Target<shape::S> skips = {Rows<shape::S>(shared + at::head_in), skip_numbers};
  const Target<shape::H> hidden = {Rows<shape::H>(shared + at::hidden), skip_numbers};
  float4* const x_sums = reinterpret_cast<float4*>(shared + at::x_sums);
  const Logits logits = {plan::LOGITS_SHARED
                             ? reinterpret_cast<float*>(shared + at::logits)
                             : call.logits_room + static_cast<size_t>(blockIdx.x) * plan::N * Logits::kStride};
  const auto x = [&](int layer) {
    return Rows<shape::R>(shared + at::x + layer % plan::PLACES * Rows<shape::R>::kBytes);
  };
  const auto gates = [&](int layer) {
    return Rows<shape::HALF>(shared + at::gates + layer % plan::PLACES * Rows<shape::HALF>::kBytes);
  };
  const auto past = [&](int i, int layer) {  // by turns, whether or not the number of layers is even
    return shared + at::past + ((i & 1) * shape::LAYERS + layer) % 2 * kPastBytes;
  };
  const Entrance entrance = {x(0), x_sums};

  const int thread = thread_index(), warp = warp_index();
  const bool chain = warp < plan::CHAIN;
  for (int n = thread; n < plan::N; n += kThreads) streams[n] = stream_at(call, blockIdx.x * plan::N + n);
  load_rings(call, rings, 0, shape::LAYERS, thread, kThreads);
  block_barrier();
  load_memories(call, streams, memories, thread, kThreads);
  int steps = 0;
  for (int n = 0; n < plan::N; ++n) steps = max(steps, streams[n].count);
  block_barrier();

  const int tape_start = call.tape_starts[warp];
  Tape tape(call.tapes + static_cast<size_t>(tape_start) * kFragmentWords, call.tape_starts[warp + 1] - tape_start,
            reinterpret_cast<uint4*>(shared + at::rings) + warp * plan::STAGES * kFragmentWords);
  const auto from_tape = [&](int, int) -> Tape& { return tape; };

  float4* const room = reinterpret_cast<float4*>(call.carried_room) +
                       static_cast<size_t>(blockIdx.x) * (kPanelsR + kPanelsS) * kEights * kWarp;
  Carried<kOwnR, plan::X_IN_REGISTERS> residual(room, warp, plan::CHAIN);
  Carried<kOwnS, plan::SKIP_IN_REGISTERS> skip(room + kPanelsR * kEights * kWarp, warp - plan::CHAIN, plan::SKIP);

  if (steps > 0) {
    for (int n = warp; n < plan::N; n += kWarps) {
      embed_first(call, streams[n], memories.of(n), n, entrance);
    }
    if (chain) fetch_past(call, streams, 0, rings[0], past(0, 0), thread, kChainThreads);
    commit_copies();
    wait_copies<0>();
  }

  for (int i = 0; i < steps; ++i) {
    for (int n = thread; n < plan::N; n += kThreads) hearing[n] = column_of_sample(call, streams[n], i);
    block_barrier();

    if (chain) {
#pragma unroll kUnrollR
      for (int own = 0; own < kOwnR; ++own) {
        if (const int m = warp + own * plan::CHAIN; m < kPanelsR) residual.set(own, load_sums(x_sums, m));
      }
      for (int layer = 0; layer < shape::LAYERS; ++layer) {
        const bool last = layer + 1 == shape::LAYERS;
        if (!last) fetch_past(call, streams, i, rings[layer + 1], past(i, layer + 1), thread, kChainThreads);
        for (int m = warp; m < kPanelsD; m += plan::CHAIN) {
          Sums z = heard_panel(call, streams, hearing, i, layer, m);
          for (int tap = 0; tap + 1 < shape::K; ++tap) {
            const Rows<shape::R> then(past(i, layer) + tap * Rows<shape::R>::kBytes);
            add_product(z, tape, then, dilated_units(call, layer, m, tap));
          }
          add_product_by_turns(z, tape, x(layer), dilated_units(call, layer, m, shape::K - 1));
          store_gates(call, streams, i, layer, m, z, Target<shape::HALF>{gates(layer), numbers});
        }
        if (kInt) {
          named_barrier(kChainMeets, kChainThreads);
          Target<shape::HALF>{gates(layer), numbers}.finish(warp, plan::CHAIN);
        }
        if (kFragmentsOfLayer < plan::STAGES) wait_for_past();
        named_arrival(kGatesReady + layer % plan::PLACES, kThreads);
        if (last) break;
        named_barrier(kChainMeets, kChainThreads);
        if (layer + 1 >= plan::PLACES) named_barrier(kSkipDone + (layer + 1) % plan::PLACES, kThreads);
#pragma unroll kUnrollR
        for (int own = 0; own < kOwnR; ++own) {
          const int m = warp + own * plan::CHAIN;
          if (m >= kPanelsR) break;
          Sums next = residual.get(own);
          add_bias(next, Biases(call.b_residual + layer * shape::R, m));
          add_product_by_turns(next, tape, gates(layer), residual_units(call, layer, m));
          scale_x(call, next);
          if (plan::TRACE) trace_x(call, streams, i, layer, m, next);
          const Target<shape::R> to = {x(layer + 1), numbers};
          for_each(next, [&](int row, int n, float& value) { to.put(n, m * 16 + row, value); });
          residual.set(own, next);
        }
        if (kInt) {
          named_barrier(kChainMeets, kChainThreads);
          Target<shape::R>{x(layer + 1), numbers}.finish(warp, plan::CHAIN);
        }
        named_barrier(kChainMeets, kChainThreads);
      }
    } else {
      const int skip_warp = warp - plan::CHAIN;
#pragma unroll kUnrollS
      for (int own = 0; own < kOwnS; ++own) {
        if (const int m = skip_warp + own * plan::SKIP; m < kPanelsS) skip.set(own, first_skip(call, m));
      }
      for (int layer = 0; layer < shape::LAYERS; ++layer) {
        named_barrier(kGatesReady + layer % plan::PLACES, kThreads);
#pragma unroll kUnrollS
        for (int own = 0; own < kOwnS; ++own) {
          const int m = skip_warp + own * plan::SKIP;
          if (m >= kPanelsS) break;
          Sums sums = skip.get(own);
          add_product_by_turns(sums, tape, gates(layer), skip_units(call, layer, m));
          end_skip(call, sums, layer, m);
          skip.set(own, sums);
        }
        remember(call, streams, i, rings[layer], x(layer), thread - kChainThreads, kSkipThreads);
        if (layer + plan::PLACES < shape::LAYERS) named_arrival(kSkipDone + layer % plan::PLACES, kThreads);
      }
#pragma unroll kUnrollS
      for (int own = 0; own < kOwnS; ++own) {
        const int m = skip_warp + own * plan::SKIP;
        if (m >= kPanelsS) break;
        Sums sums = skip.get(own);
        store_skip(call, streams, i, m, sums, skips);
      }
      if (kInt) {
        named_barrier(kSkipMeets, kSkipThreads);
        skips.finish(skip_warp, plan::SKIP);
      }
    }

    const Dice dice(call, streams, memories, i, warp);
    block_barrier();
    if (chain && i + 1 < steps) fetch_past(call, streams, i + 1, rings[0], past(i + 1, 0), thread, kChainThreads);
    hidden_layer<false>(call, call.b_hidden, streams, i, skips.rows, hidden, warp, from_tape);
    if (kInt) {
      block_barrier();
      hidden.finish(warp, kWarps);
    }
    block_barrier();
    output_layer<false>(call, call.b_out, hidden.rows, logits, warp, from_tape);
    block_barrier();
    draw_and_embed(call, streams, i, dice, logits, memories, newest_table(call), entrance, i + 1 < steps, warp);
    if (kFragmentsOfHead < plan::STAGES) wait_for_past();
  }
  wait_copies<0>();
  block_barrier();
  save_memories(call, streams, memories, thread, kThreads);
}
