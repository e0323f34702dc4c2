// `resident`: the weights stay on the chip for the whole launch.
//
// A pipeline of TEAMS teams holds the model: team b owns the layers first_layers[b] … first_layers[b + 1] − 1, the last
// one also the head (and perhaps no layer). For every sample of a tile of N streams, x passes from team to team; the
// last one draws, embeds what it drew, and hands x to the first. TILES tiles are under way at once: while one tile is
// with one team, another is with the next. Pipelines do not know of each other.
//
// A team is one block, or TEAM blocks, where one layer does not fit a block: then each has a share of the rows of every
// matrix, and gates and x are exchanged within the team. The head's team is always one block.
//
// Of a block's warps, CHAIN make the gates of a layer, RESIDUAL the next layer's x, and SKIP what no other layer waits
// for: skip sums and rings. So each keeps the weights of one matrix: those of the first two lie in registers where
// there is room, because reading shared memory is what a layer has most of, and what is read for one product is in the
// way of the next. What does not depend on this sample (conditioning, biases, the older taps) is summed up before x
// arrives. On the way from layer to layer there is then: the newest tap's product, the gate, a barrier, the residual
// product, a barrier:
//
//   chain     wait [XReady l] → g(l) → [GatesReady l], [GatesToAdd l]
//   residual  x(l) → [XReady l], wait [GatesToAdd l] → x(l + 1)
//   skip      wait [GatesReady l] → skip product of g(l), ring of x(l) → [SkipDone l]
//
// Shared memory (namespace at): streams; of a block with layers: mailboxes, hearing, x operands and gates (PLACES of
// each), weights of its layers, their past; of the block with the head: mailboxes, memories, hidden, logits, weights
// (or, where HEAD_IN_L2, these are read from the second-level cache, or OUT_IN_L2 steps of the second matrix are), the
// newest input's table where there is room.
#include "handover.cuh"
#include "head.cuh"

namespace {

constexpr int kPanelsD = shape::HALF / 8, kPanelsR = shape::R / 16, kPanelsS = shape::S / 16;
constexpr int kPanelsH = shape::H / 16, kPanelsA = shape::A / 16;
constexpr int kStepsR = steps_of(shape::R), kStepsG = steps_of(shape::HALF);
constexpr int kStepsS = steps_of(shape::S), kStepsH = steps_of(shape::H);
constexpr int kPastTaps = shape::K - 1;
constexpr int kPastBytes = kPastTaps * Rows<shape::R>::kBytes;
constexpr int kPasts = plan::TILES > 1 ? 2 : 1;  // of the tile at hand and of the next one

// --- who does what ------------------------------------------------------------------------------------------------

// Panels of the block that has most of a matrix, and of its warp that has most of those.
constexpr int kShareD = ceil_div(kPanelsD, plan::TEAM), kOwnD = ceil_div(kShareD, plan::CHAIN);
constexpr int kShareR = ceil_div(kPanelsR, plan::TEAM), kOwnR = ceil_div(kShareR, plan::RESIDUAL);
constexpr int kShareS = ceil_div(kPanelsS, plan::TEAM), kOwnS = ceil_div(kShareS, plan::SKIP);

// The panels first … end − 1 of a matrix. Shares differ by one at most; the larger ones come first.
struct Share {
  int first, end;

  DEVICE explicit Share(int panels) : first(0), end(panels) {}
  DEVICE Share(int panels, int member) {
    const int each = panels / plan::TEAM, more = panels % plan::TEAM;
    first = member * each + min(member, more);
    end = first + each + (member < more);
  }
};

// Calls work(k, m) for the k-th panel m of a share that is warp `warp`'s, one of `WARPS`; at most OWN of them.
template <int OWN, int WARPS, class Work>
DEVICE void for_panels(const Share& share, int warp, Work work) {
#pragma unroll
  for (int k = 0; k < OWN; ++k) {
    const int m = share.first + warp + k * WARPS;
    if (m < share.end) work(k, m);
  }
}

// --- weights ------------------------------------------------------------------------------------------------------

// Words of a layer's weights in shared memory, and where each matrix begins among them.
constexpr int kPastWords = kShareD * kPastTaps * kStepsR * kFragmentWords;
constexpr int kNewestWords = plan::NEWEST_IN_REGISTERS ? 0 : kShareD * kStepsR * kFragmentWords;
constexpr int kResidualWords = plan::RESIDUAL_IN_REGISTERS ? 0 : kShareR * kStepsG * kFragmentWords;
constexpr int kSkipWords = kShareS * kStepsG * kFragmentWords;
constexpr int kLayerWords = kPastWords + kNewestWords + kResidualWords + kSkipWords;
constexpr int kHiddenWords = plan::HIDDEN_IN_REGISTERS ? 0 : kPanelsH * kStepsS * kFragmentWords;
constexpr int kOutPanel = (kStepsH - plan::OUT_IN_L2) * kFragmentWords;  // in shared memory
constexpr int kOutWords = kPanelsA * kOutPanel;
#if __CUDA_ARCH__ < 900
static_assert(!plan::CLUSTER, "clusters begin with sm_90");
#endif
static_assert(plan::TEAM == 1 || !plan::CLUSTER, "the blocks of a team reach each other through global memory");
static_assert(at::weights + plan::OWN * (kLayerWords * 16 + kPasts * kPastBytes + shape::R * 4) <= at::total,
              "layout.py has room for layers");
static_assert(plan::HEAD_IN_L2 || at::head_weights + (kHiddenWords + kOutWords) * 16 <= at::total,
              "layout.py has room for the head");
static_assert(!plan::INPUT_SHARED || at::input_table + shape::INPUT_ROWS * shape::R * 4 <= at::total,
              "layout.py has room for the newest input's table");

// Fragments of a layer's matrices in global memory.
DEVICE const uint4* dilated_panel(const Call& call, int layer, int m, int tap) {
  return call.dilated + (static_cast<size_t>(layer * kPanelsD + m) * shape::K + tap) * kStepsR * kFragmentWords;
}
DEVICE const uint4* residual_panel(const Call& call, int layer, int m) {
  return call.residual + static_cast<size_t>(layer * kPanelsR + m) * kStepsG * kFragmentWords;
}
DEVICE const uint4* skip_panel(const Call& call, int layer, int m) {
  return call.skip + static_cast<size_t>(layer * kPanelsS + m) * kStepsG * kFragmentWords;
}

// A layer's weights in shared memory; m counts from the first panel of the block's share.
struct LayerWeights {
  uint4* begin;
  DEVICE uint4* past(int m) const { return begin + m * kPastTaps * kStepsR * kFragmentWords; }
  DEVICE uint4* newest(int m) const { return begin + kPastWords + m * kStepsR * kFragmentWords; }
  DEVICE uint4* residual(int m) const { return begin + kPastWords + kNewestWords + m * kStepsG * kFragmentWords; }
  DEVICE uint4* skip(int m) const {
    return begin + kPastWords + kNewestWords + kResidualWords + m * kStepsG * kFragmentWords;
  }
};

DEVICE void copy_words(uint4* to, const uint4* from, int words) {
  for (int i = thread_index(); i < words; i += kThreads) copy_async(to + i, from + i);
}

// The weights of one matrix that a warp, one of WARPS, meets: PANELS panels of each layer of its block, STEPS fragments
// of each. They should not stand between a barrier and the product behind it: they lie in registers for the whole
// launch, all of them or (kPartly) the first steps of each panel, or are read into registers before the barrier
// (`read_ahead`), or, where they are too many, are not; kDivided, where only the first steps of a panel are nearby.
enum Home { kRegisters, kAhead, kPartly, kInPlace, kDivided };
DEVICE constexpr bool held(Home home) { return home != kInPlace && home != kDivided; }

DEVICE constexpr Home home_of(bool in_registers, int panels, int steps) {
  if (in_registers) return kRegisters;
  return panels * steps <= plan::MOST_AHEAD ? kAhead : kInPlace;
}

// Steps of each panel of the head that lie in registers where not all can: half as many where a wide tile's sums need
// those. The rest has no index either, and is unrolled.
DEVICE constexpr int steps_held(int panels) {
  return (plan::N > 8 ? plan::MOST_AHEAD / 2 : plan::MOST_AHEAD) / panels / 4 * 4;
}
constexpr int kMostUnrolled = 32;

// A block with layers has no registers to spare for the head.
DEVICE constexpr Home home_of_head(int panels, int steps) {
  if (!plan::HEAD_ALONE) return kInPlace;
  const Home home = home_of(false, panels, steps);
  const bool partly = steps_held(panels) > 0 && panels * steps <= kMostUnrolled;
  return home == kInPlace && partly ? kPartly : home;
}

constexpr Home kHomeOfOut = plan::OUT_IN_L2 > 0 ? kDivided : home_of_head(kOwnOut, kStepsH);
constexpr Home kHomeOfHidden = plan::HIDDEN_IN_REGISTERS ? kRegisters : home_of_head(kOwnHidden, kStepsS);

template <Home HOME, int WARPS, int PANELS, int STEPS, int LAYERS = 1>
struct WarpWeights;

template <int WARPS, int PANELS, int STEPS, int LAYERS>
struct WarpWeights<kRegisters, WARPS, PANELS, STEPS, LAYERS> {
  uint4 fragments[LAYERS][PANELS][STEPS];

  // Once. `panel(o, m)` is where panel m of the block's layer o lies in global memory.
  template <class Panel>
  DEVICE void load(int own, const Share& share, int warp, Panel panel) {
#pragma unroll
    for (int o = 0; o < LAYERS; ++o) {
      if (o >= own) break;
      for_panels<PANELS, WARPS>(share, warp, [&](int k, int m) {
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
          fragments[o][k][step] = share_of(panel(o, m) + step * kFragmentWords);
        }
      });
    }
  }

  // For each product. `panel(m)` is where panel m of this layer lies.
  template <class Panel>
  DEVICE void read_ahead(const Share&, int, Panel) {}
  template <class Panel>
  DEVICE FromRegisters<STEPS> panel(int o, int k, int, Panel) const {
    return {fragments[o][k]};
  }
};

template <int WARPS, int PANELS, int STEPS, int LAYERS>
struct WarpWeights<kAhead, WARPS, PANELS, STEPS, LAYERS> {
  uint4 fragments[PANELS][STEPS];

  template <class Panel>
  DEVICE void load(int, const Share&, int, Panel) {}
  template <class Panel>
  DEVICE void read_ahead(const Share& share, int warp, Panel panel) {
    for_panels<PANELS, WARPS>(share, warp, [&](int k, int m) {
#pragma unroll
      for (int step = 0; step < STEPS; ++step) fragments[k][step] = share_of(panel(m) + step * kFragmentWords);
    });
  }
  template <class Panel>
  DEVICE FromRegisters<STEPS> panel(int, int k, int, Panel) const {
    return {fragments[k]};
  }
};

template <int WARPS, int PANELS, int STEPS, int LAYERS>
struct WarpWeights<kPartly, WARPS, PANELS, STEPS, LAYERS> {
  static constexpr int kFirst = steps_held(PANELS);
  uint4 fragments[PANELS][kFirst];

  template <class Panel>
  DEVICE void load(int, const Share& share, int warp, Panel panel) {
    for_panels<PANELS, WARPS>(share, warp, [&](int k, int m) {
#pragma unroll
      for (int step = 0; step < kFirst; ++step) fragments[k][step] = share_of(panel(0, m) + step * kFragmentWords);
    });
  }
  template <class Panel>
  DEVICE void read_ahead(const Share&, int, Panel) {}
  template <class Panel>
  DEVICE FromBoth<kFirst> panel(int, int k, int m, Panel panel) const {
    return {fragments[k], panel(m) + kFirst * kFragmentWords};
  }
};

template <int WARPS, int PANELS, int STEPS, int LAYERS>
struct WarpWeights<kInPlace, WARPS, PANELS, STEPS, LAYERS> {
  template <class Panel>
  DEVICE void load(int, const Share&, int, Panel) {}
  template <class Panel>
  DEVICE void read_ahead(const Share&, int, Panel) {}
  template <class Panel>
  DEVICE FromMemory panel(int, int, int m, Panel panel) const {
    return {panel(m)};
  }
};

// Panels of the head's second matrix: where they begin, and where the steps of each that lie far away do.
struct OutPanels {
  const uint4* near;
  const uint4* all;

  DEVICE const uint4* operator()(int m) const { return near + m * kOutPanel; }
  DEVICE const uint4* far(int m) const { return all + m * kStepsH * kFragmentWords + kOutPanel; }
};

template <int WARPS, int PANELS, int STEPS, int LAYERS>
struct WarpWeights<kDivided, WARPS, PANELS, STEPS, LAYERS> {
  template <class Panel>
  DEVICE void load(int, const Share&, int, Panel) {}
  DEVICE void read_ahead(const Share&, int, const OutPanels&) {}
  static constexpr bool kUnrolled = plan::USED <= 2 && PANELS * STEPS <= kMostUnrolled;  // more need the registers
  DEVICE FromTwo<STEPS - plan::OUT_IN_L2, kUnrolled> panel(int, int, int m, const OutPanels& panel) const {
    return {panel(m), panel.far(m)};
  }
};

// --- samples ------------------------------------------------------------------------------------------------------

// Calls work(i, tile) for every sample i of every tile; all threads of the block, each with the work of its role.
template <class Work>
DEVICE void for_samples(int longest, const int* steps, Watch& watch, Work work) {
  bool stopped = false;
  for (int i = 0; i < longest && !stopped; ++i) {
    for (int tile = 0; tile < plan::TILES && !stopped; ++tile) {
      if (i >= steps[tile]) continue;
      work(i, tile);
      // The rings, and what a block keeps in places used by turns, are now those of the next sample.
      stopped = block_barrier_any(watch.given_up);
    }
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 1) resident(const __grid_constant__ Call call) {
  extern __shared__ __align__(128) u8 shared[];
  const int thread = thread_index(), warp = warp_index();
  const Post post(call, shared);
  const int team = post.team, first = call.first_layers[team], own = call.first_layers[team + 1] - first;
  const bool head = team + 1 == plan::TEAMS, chain = warp < plan::CHAIN;
  const int residual_warp = warp - plan::CHAIN, skip_warp = residual_warp - plan::RESIDUAL;
  const Share dilated_share(kPanelsD, post.member), residual_share(kPanelsR, post.member);
  const Share skip_share(kPanelsS, post.member);
  Watch watch = {call.abort, call.patience, false};

  Stream* const all_streams = reinterpret_cast<Stream*>(shared + at::streams);
  int* const steps = reinterpret_cast<int*>(shared + at::steps);
  Hearing* const hearing = reinterpret_cast<Hearing*>(shared + at::hearing);
  Ring* const rings = reinterpret_cast<Ring*>(shared + at::ring_table);
  float* const hidden_bias = reinterpret_cast<float*>(shared + at::head_biases);
  float* const out_bias = hidden_bias + shape::H;
  uint4* const head_weights = reinterpret_cast<uint4*>(shared + at::head_weights);
  const uint4* const hidden_from = plan::HEAD_IN_L2 ? call.hidden : head_weights;
  const uint4* const out_from = plan::HEAD_IN_L2 ? call.out : head_weights + kHiddenWords;
  float* const numbers = reinterpret_cast<float*>(shared + at::numbers);
  u8* const past = shared + at::weights + own * kLayerWords * 16;
  float* const residual_bias = reinterpret_cast<float*>(past + own * kPasts * kPastBytes);
  const auto weights = [&](int o) {
    return LayerWeights{reinterpret_cast<uint4*>(shared + at::weights) + o * kLayerWords};
  };
  int turn = 0;  // which of the places for the past is this tile's
  bool fetched = false;
  const auto past_of_layer = [&](int o) { return past + (turn * own + o) * kPastBytes; };
  const auto fetch_pasts = [&](int i, int tile) {
    if (plan::TEAM > 1) post.rings_ready(i, tile, watch);
#pragma unroll 1
    for (int o = 0; o < own; ++o) {
      fetch_past(call, all_streams + tile * plan::N, i, rings[o], past_of_layer(o), thread, kChainThreads);
    }
    commit_copies();
  };
  // What the next tile needs of its past comes while this one is worked on, unless it is this tile again, whose newest
  // inputs are not in the rings yet.
  const auto fetch_next = [&](int i, int tile) {
    turn = (turn + 1) % kPasts;
    fetched = false;
#pragma unroll 1
    for (int ahead = 1; ahead < plan::TILES && !fetched; ++ahead) {
      const int next = (tile + ahead) % plan::TILES, sample = i + (tile + ahead) / plan::TILES;
      fetched = sample < steps[next];
      if (fetched) fetch_pasts(sample, next);
    }
  };
  const auto own_x = [&](int o) { return Rows<shape::R>(shared + at::x + o % plan::PLACES * Rows<shape::R>::kBytes); };
  const auto gates = [&](int o) {
    return Rows<shape::HALF>(shared + at::gates + o % plan::PLACES * Rows<shape::HALF>::kBytes);
  };
  float* const head_numbers = reinterpret_cast<float*>(shared + at::head_numbers);
  const Target<shape::S> skips = {Rows<shape::S>(shared + at::head_in), head_numbers};
  const Target<shape::H> hidden = {Rows<shape::H>(shared + at::hidden), head_numbers};
  const Logits logits = {plan::LOGITS_SHARED
                             ? reinterpret_cast<float*>(shared + at::logits)
                             : call.logits_room + static_cast<size_t>(post.pipeline) * plan::N * Logits::kStride};
  float* const input_table = reinterpret_cast<float*>(shared + at::input_table);
  const auto memories = [&](int tile) {
    return Memories{reinterpret_cast<float*>(shared + at::inputs) + tile * plan::N * shape::IN_DEPTH,
                    reinterpret_cast<float*>(shared + at::filters) + tile * plan::N};
  };

  // --- what stays for the whole launch ---
  for (int n = thread; n < plan::TILES * plan::N; n += kThreads) {
    all_streams[n] = stream_at(call, post.pipeline * plan::TILES * plan::N + n);
  }
  for (int o = 0; o < own; ++o) {
    const LayerWeights to = weights(o);
    for (int m = dilated_share.first; m < dilated_share.end; ++m) {
      const int k = m - dilated_share.first;
      copy_words(to.past(k), dilated_panel(call, first + o, m, 0), kPastTaps * kStepsR * kFragmentWords);
      if (plan::NEWEST_IN_REGISTERS) continue;
      copy_words(to.newest(k), dilated_panel(call, first + o, m, kPastTaps), kStepsR * kFragmentWords);
    }
    const int residuals = residual_share.end - residual_share.first, skips = skip_share.end - skip_share.first;
    if (!plan::RESIDUAL_IN_REGISTERS) {
      const uint4* const from = residual_panel(call, first + o, residual_share.first);
      copy_words(to.residual(0), from, residuals * kStepsG * kFragmentWords);
    }
    copy_words(to.skip(0), skip_panel(call, first + o, skip_share.first), skips * kStepsG * kFragmentWords);
  }
  if (head && !plan::HEAD_IN_L2) {
    copy_words(head_weights, call.hidden, kHiddenWords);
    for (int m = 0; m < kPanelsA; ++m) {
      copy_words(head_weights + kHiddenWords + m * kOutPanel, call.out + m * kStepsH * kFragmentWords, kOutPanel);
    }
  }
  if (head && plan::INPUT_SHARED) {
    copy_words(reinterpret_cast<uint4*>(input_table), reinterpret_cast<const uint4*>(newest_table(call)),
               shape::INPUT_ROWS * shape::R / 4);
  }
  commit_copies();
  load_rings(call, rings, first, own, thread, kThreads);
  for (int r = thread; r < own * shape::R; r += kThreads) residual_bias[r] = call.b_residual[first * shape::R + r];
  if (head) {
    for (int h = thread; h < shape::H; h += kThreads) hidden_bias[h] = call.b_hidden[h];
    for (int a = thread; a < shape::A; a += kThreads) out_bias[a] = call.b_out[a];
  }
  wait_copies<0>();
  block_barrier();
  for (int tile = thread; tile < plan::TILES; tile += kThreads) {
    steps[tile] = 0;
    for (int n = 0; n < plan::N; ++n) steps[tile] = max(steps[tile], all_streams[tile * plan::N + n].count);
  }
  if (head) {
    for (int tile = 0; tile < plan::TILES; ++tile) {
      load_memories(call, all_streams + tile * plan::N, memories(tile), thread, kThreads);
    }
  }
  post.open(own > 0, head);
  int longest = 0;
  for (int tile = 0; tile < plan::TILES; ++tile) longest = max(longest, steps[tile]);

  // --- the first input of every stream ---
  if (head) {
    for (int tile = 0; tile < plan::TILES; ++tile) {
      if (steps[tile] == 0) continue;
      const Posted to = {post, post.mailbox(0, tile).x(), of_layer(0, 0)};
      for (int n = warp; n < plan::N; n += kWarps) {
        embed_first(call, all_streams[tile * plan::N + n], memories(tile).of(n), n, to);
      }
    }
  }

  // --- weights of a role, which are loaded, where they live in registers, by the role's warps ---
  WarpWeights<home_of(plan::NEWEST_IN_REGISTERS, kOwnD, kStepsR), plan::CHAIN, kOwnD, kStepsR, plan::OWN> newest;
  WarpWeights<home_of(plan::RESIDUAL_IN_REGISTERS, kOwnR, kStepsG), plan::RESIDUAL, kOwnR, kStepsG, plan::OWN> residual;
  WarpWeights<kHomeOfHidden, kWarps, kOwnHidden, kStepsS> hidden_weights;
  WarpWeights<kHomeOfOut, kWarps, kOwnOut, kStepsH> out_weights;

  // --- a sample ---
  const auto meet = [](int barrier, int warps) { named_barrier(barrier, warps * kWarp); };

  const auto make_gates = [&](int i, int tile) {
    const Stream* const streams = all_streams + tile * plan::N;
    const Mailbox mine = post.mine(tile);
    // What this sample does not change: conditioning, biases, older taps.
    if (!fetched) fetch_pasts(i, tile);
    for (int n = thread; n < plan::N; n += kChainThreads) hearing[n] = column_of_sample(call, streams[n], i);
    meet(kChainMeets, plan::CHAIN);
    Sums z[plan::OWN][kOwnD];
#pragma unroll
    for (int o = 0; o < plan::OWN; ++o) {
      if (o >= own) break;
      for_panels<kOwnD, plan::CHAIN>(
          dilated_share, warp, [&](int k, int m) { z[o][k] = heard_panel(call, streams, hearing, i, first + o, m); });
    }
    wait_copies<0>();
    meet(kChainMeets, plan::CHAIN);
#pragma unroll
    for (int o = 0; o < plan::OWN; ++o) {
      if (o >= own) break;
      for_panels<kOwnD, plan::CHAIN>(dilated_share, warp, [&](int k, int m) {
        FromMemory source = {weights(o).past(m - dilated_share.first)};
        for (int tap = 0; tap < kPastTaps; ++tap) {
          const Rows<shape::R> then(past_of_layer(o) + tap * Rows<shape::R>::kBytes);
          add_product(z[o][k], source, then, dilated_units(call, first + o, m, tap));
        }
      });
    }
    if (plan::TEAM == 1) fetch_next(i, tile);

    const auto newest_of = [&](int o) { return [&, o](int m) { return weights(o).newest(m - dilated_share.first); }; };
    newest.read_ahead(dilated_share, warp, newest_of(0));
#pragma unroll
    for (int o = 0; o < plan::OWN; ++o) {
      if (o >= own) break;
      const int layer = first + o;
      const Target<shape::HALF> gated = {gates(o), numbers};
      meet(kXReady, plan::CHAIN + plan::RESIDUAL);
      for_panels<kOwnD, plan::CHAIN>(dilated_share, warp, [&](int k, int m) {
        auto source = newest.panel(o, k, m, newest_of(o));
        add_product_by_turns(z[o][k], source, own_x(o), dilated_units(call, layer, m, kPastTaps));
        if (plan::TEAM == 1) {
          store_gates(call, streams, i, layer, m, z[o][k], gated);
        } else {
          store_gates(call, streams, i, layer, m, z[o][k], PostedGates{post, mine.gates(), of_layer(i, layer)});
        }
      });
      if (plan::TEAM > 1) {
        for (int m = warp; m < kPanelsD; m += plan::CHAIN) {
          post.receive_gates(mine.gates(), m, of_layer(i, layer), tile, watch, gated);
        }
      }
      if (kInt) {
        meet(kChainMeets, plan::CHAIN);
        gated.finish(warp, plan::CHAIN);
      }
      if (layer + 1 < shape::LAYERS) named_arrival(kGatesToAdd, (plan::CHAIN + plan::RESIDUAL) * kWarp);
      named_arrival(kGatesReady + o % plan::PLACES, (plan::CHAIN + plan::SKIP) * kWarp);
      if (o + 1 < own) newest.read_ahead(dilated_share, warp, newest_of(o + 1));
      if (o == 0 && plan::TEAM > 1) fetch_next(i, tile);  // now, so that no gate waits for the others' rings
    }
  };

  const auto make_x = [&](int i, int tile) {
    const Stream* const streams = all_streams + tile * plan::N;
    const Mailbox mine = post.mine(tile);
    const Letters next_x = post.mailbox(min(team + 1, plan::TEAMS - 1), tile).x();
    Sums x[kOwnR];
    const auto put = [&](const Sums& sums, int m, int o) {
      const Target<shape::R> to = {own_x(o), numbers};
      for_each(sums, [&](int row, int n, float value) { to.put(n, m * 16 + row, value); });
    };
    // All residual warps have put their part of the operands of layer o.
    const auto x_is_ready = [&](int o) {
      if (kInt) {
        meet(kResidualMeets, plan::RESIDUAL);
        Target<shape::R>{own_x(o), numbers}.finish(residual_warp, plan::RESIDUAL);
      }
      named_arrival(kXReady, (plan::CHAIN + plan::RESIDUAL) * kWarp);
    };
    // x of layer o arrives: all of it as operands, this warp's share as sums too.
    const auto receive_x = [&](int o, Mail mail) {
      const u32 postmark = of_layer(i, first + o);
      if (plan::TEAM > 1) {
        for (int m = residual_warp; m < kPanelsR; m += plan::RESIDUAL) {
          put(post.receive_sums(mine.x(), m, postmark, mail, tile, watch), m, o);
        }
      }
      for_panels<kOwnR, plan::RESIDUAL>(residual_share, residual_warp, [&](int k, int m) {
        x[k] = post.receive_sums(mine.x(), m, postmark, mail, tile, watch);
        if (plan::TEAM == 1) put(x[k], m, o);
      });
      x_is_ready(o);
    };
    receive_x(0, kX);
#pragma unroll
    for (int o = 0; o < plan::OWN; ++o) {
      const int layer = first + o;
      if (o >= own || layer + 1 == shape::LAYERS) break;  // nothing follows the last
      const auto residual_of = [&](int m) { return weights(o).residual(m - residual_share.first); };
      for_panels<kOwnR, plan::RESIDUAL>(residual_share, residual_warp,
                                        [&](int k, int m) { add_bias(x[k], Biases(residual_bias + o * shape::R, m)); });
      residual.read_ahead(residual_share, residual_warp, residual_of);
      meet(kGatesToAdd, plan::CHAIN + plan::RESIDUAL);
      const bool send = o + 1 == plan::OWN || o + 1 == own;
      for_panels<kOwnR, plan::RESIDUAL>(residual_share, residual_warp, [&](int k, int m) {
        auto source = residual.panel(o, k, m, residual_of);
        add_product_by_turns(x[k], source, gates(o), residual_units(call, layer, m));
        scale_x(call, x[k]);
        if (plan::TRACE) trace_x(call, streams, i, layer, m, x[k]);
        if (send) post.send_sums(next_x, m, x[k], of_layer(i, layer + 1));
      });
      if (send) break;
      // Skip warps have read what lay in these places, and will lie in those of the next gates.
      if (o + 1 >= plan::PLACES) meet(kSkipDone + (o + 1) % plan::PLACES, plan::RESIDUAL + plan::SKIP);
      for_panels<kOwnR, plan::RESIDUAL>(residual_share, residual_warp, [&](int k, int m) {
        if (plan::TEAM > 1) {
          post.send_sums(mine.x(), m, x[k], of_layer(i, layer + 1));
        } else {
          put(x[k], m, o + 1);
        }
      });
      if (plan::TEAM > 1) {
        receive_x(o + 1, kInner);
      } else {
        x_is_ready(o + 1);
      }
    }
  };

  const auto add_skips = [&](int i, int tile) {
    const Stream* const streams = all_streams + tile * plan::N;
    const Mailbox mine = post.mine(tile);
    const bool last = first + own == shape::LAYERS;
    const Mailbox next = post.mailbox(last ? plan::TEAMS - 1 : team + 1, tile);
    const Letters to = last ? next.all_skips() : next.skips();
    const int member_thread = post.member * kSkipThreads + skip_warp * kWarp + lane_index();
    WarpWeights<home_of(false, kOwnS, kStepsG), plan::SKIP, kOwnS, kStepsG> ahead;
    Sums skip[kOwnS];
#pragma unroll
    for (int o = 0; o < plan::OWN; ++o) {
      if (o >= own) break;
      const int layer = first + o;
      const auto skip_of = [&](int m) { return weights(o).skip(m - skip_share.first); };
      ahead.read_ahead(skip_share, skip_warp, skip_of);
      meet(kGatesReady + o % plan::PLACES, plan::CHAIN + plan::SKIP);
      for_panels<kOwnS, plan::SKIP>(skip_share, skip_warp, [&](int k, int m) {
        if (o == 0) {
          skip[k] =
              first == 0 ? first_skip(call, m) : post.receive_sums(mine.skips(), m, of_sample(i), kSkip, tile, watch);
        }
        auto source = ahead.panel(0, k, m, skip_of);
        add_product_by_turns(skip[k], source, gates(o), skip_units(call, layer, m));
        end_skip(call, skip[k], layer, m);
        if (o + 1 == own) post.send_sums(to, m, skip[k], of_sample(i));
      });
      remember(call, streams, i, rings[o], own_x(o), member_thread, plan::TEAM * kSkipThreads);
      if (o + plan::PLACES < own) named_arrival(kSkipDone + o % plan::PLACES, (plan::RESIDUAL + plan::SKIP) * kWarp);
    }
    if (plan::TEAM > 1) post.rings_written(tile);
  };

  const auto draw_next = [&](int i, int tile) {
    const Stream* const streams = all_streams + tile * plan::N;
    const Mailbox mine = post.mine(tile);
    const Posted to = {post, post.mailbox(0, tile).x(), of_layer(i + 1, 0)};
    const Dice dice(call, streams, memories(tile), i, warp);
    const auto hidden_of = [&](int m) { return hidden_from + m * kStepsS * kFragmentWords; };
    const OutPanels out_of = {out_from, call.out};
    hidden_weights.read_ahead(Share(kPanelsH), warp, hidden_of);
    out_weights.read_ahead(Share(kPanelsA), warp, out_of);
    for (int m = warp; m < kPanelsS; m += kWarps) {
      Sums sums = post.receive_sums(mine.all_skips(), m, of_sample(i), kHead, tile, watch);
      store_skip(call, streams, i, m, sums, skips);
    }
    block_barrier();
    if (kInt) {
      skips.finish(warp, kWarps);
      block_barrier();
    }
    hidden_layer<held(kHomeOfHidden)>(call, hidden_bias, streams, i, skips.rows, hidden, warp,
                                      [&](int k, int m) { return hidden_weights.panel(0, k, m, hidden_of); });
    if (kInt) {
      block_barrier();
      hidden.finish(warp, kWarps);
    }
    block_barrier();
    output_layer<held(kHomeOfOut)>(call, out_bias, hidden.rows, logits, warp,
                                   [&](int k, int m) { return out_weights.panel(0, k, m, out_of); });
    block_barrier();
    const float* const table = plan::INPUT_SHARED ? input_table : newest_table(call);
    draw_and_embed(call, streams, i, dice, logits, memories(tile), table, to, i + 1 < steps[tile], warp);
  };

  // --- sample by sample: each role its own loop, so that it keeps nothing in registers for the others ---
  const auto head_beside = [&](int i, int tile) {
    if (!plan::HEAD_ALONE && head) draw_next(i, tile);
  };
  if (plan::HEAD_ALONE && head) {
    hidden_weights.load(1, Share(kPanelsH), warp,
                        [&](int, int m) { return call.hidden + m * kStepsS * kFragmentWords; });
    out_weights.load(1, Share(kPanelsA), warp, [&](int, int m) { return call.out + m * kStepsH * kFragmentWords; });
    for_samples(longest, steps, watch, draw_next);
  } else if (chain) {
    newest.load(own, dilated_share, warp, [&](int o, int m) { return dilated_panel(call, first + o, m, kPastTaps); });
    for_samples(longest, steps, watch, [&](int i, int tile) {
      if (own > 0) make_gates(i, tile);
      head_beside(i, tile);
    });
  } else if (skip_warp < 0) {
    residual.load(own, residual_share, residual_warp, [&](int o, int m) { return residual_panel(call, first + o, m); });
    for_samples(longest, steps, watch, [&](int i, int tile) {
      if (own > 0) make_x(i, tile);
      head_beside(i, tile);
    });
  } else {
    for_samples(longest, steps, watch, [&](int i, int tile) {
      if (own > 0) add_skips(i, tile);
      head_beside(i, tile);
    });
  }
  wait_copies<0>();  // of a block that has stopped, the next tile's past is on its way yet

  if (head) {
    for (int tile = 0; tile < plan::TILES; ++tile) {
      save_memories(call, all_streams + tile * plan::N, memories(tile), thread, kThreads);
    }
  }
  post.close();
}
