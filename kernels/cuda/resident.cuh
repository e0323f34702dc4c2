// `resident`: the weights stay on the chip for the whole launch.
//
// A pipeline of BLOCKS blocks holds the model: block b owns the layers first_layers[b] … first_layers[b + 1] − 1, the
// last one also the head (and perhaps no layer). For every sample of a tile of N streams, x passes from block to block;
// the last one draws, embeds what it drew, and hands x to the first. TILES tiles are under way at once: while one tile
// is with one block, another is with the next. Pipelines do not know of each other.
//
// Of a block's warps, CHAIN work on what the next layer waits for and SKIP on the rest, as in streaming_weights.cuh; and
// what does not depend on this sample (conditioning, biases, the older taps) is summed up before x arrives. On the way
// from layer to layer there is then: the newest tap's product, the gate, a barrier, the residual product, a barrier.
// The weights of both products lie in registers where CHAIN_IN_REGISTERS, all others in shared memory.
//
// Handing over. Where the blocks of a pipeline are a cluster, a block writes into the shared memory of the next and
// arrives at a barrier there. Otherwise all blocks of the launch are resident together (a cooperative launch), and the
// mailbox lies in global memory beside a flag that counts arrivals. Each place of a mailbox is written once a sample,
// and never before it was read: a block begins sample i + 1 of a tile only after the head has drawn sample i, for which
// every block has handed on what it read.
//
// Shared memory (namespace at): streams, barriers; of a block with layers: mailboxes, hearing, x operands (2), gates (2),
// weights of its layers, their past; of the block with the head: mailboxes, memories, hidden, logits, weights (or, where
// HEAD_IN_L2, these are read from the second-level cache).
#include "head.cuh"
#include "wait.cuh"

namespace {

constexpr int kPanelsD = shape::HALF / 8, kPanelsR = shape::R / 16, kPanelsS = shape::S / 16;
constexpr int kPanelsH = shape::H / 16, kPanelsA = shape::A / 16;
constexpr int kOwnD = ceil_div(kPanelsD, plan::CHAIN), kOwnR = ceil_div(kPanelsR, plan::CHAIN);
constexpr int kOwnS = ceil_div(kPanelsS, plan::SKIP);
constexpr int kStepsR = steps_of(shape::R), kStepsG = steps_of(shape::HALF);
constexpr int kPastTaps = shape::K - 1;
constexpr int kPastBytes = kPastTaps * Rows<shape::R>::kBytes;
constexpr int kChainThreads = plan::CHAIN * kWarp, kSkipThreads = plan::SKIP * kWarp;
constexpr int kGatesReady = 1, kChainMeets = 2, kSkipMeets = 3;

// --- weights ------------------------------------------------------------------------------------------------------

// Words of a layer's weights in shared memory, and where each matrix begins among them.
constexpr int kPastWords = kPanelsD * kPastTaps * kStepsR * kFragmentWords;
constexpr int kNewestWords = plan::CHAIN_IN_REGISTERS ? 0 : kPanelsD * kStepsR * kFragmentWords;
constexpr int kResidualWords = plan::CHAIN_IN_REGISTERS ? 0 : kPanelsR * kStepsG * kFragmentWords;
constexpr int kSkipWords = kPanelsS * kStepsG * kFragmentWords;
constexpr int kLayerWords = kPastWords + kNewestWords + kResidualWords + kSkipWords;
constexpr int kHiddenWords = kPanelsH * steps_of(shape::S) * kFragmentWords;
constexpr int kOutWords = kPanelsA * steps_of(shape::H) * kFragmentWords;
#if __CUDA_ARCH__ < 900
static_assert(!plan::CLUSTER, "clusters begin with sm_90");
#endif
static_assert(at::weights + plan::OWN * (kLayerWords * 16 + kPastBytes) <= at::total, "layout.py has room for layers");
static_assert(
    plan::HEAD_IN_L2 || at::head_weights + (kHiddenWords + kOutWords) * 16 <= at::total,
    "layout.py has room for the head");

struct LayerWeights {
  const uint4* begin;
  DEVICE FromMemory past(int m) const { return {begin + m * kPastTaps * kStepsR * kFragmentWords}; }
  DEVICE FromMemory newest(int m) const { return {begin + kPastWords + m * kStepsR * kFragmentWords}; }
  DEVICE FromMemory residual(int m) const {
    return {begin + kPastWords + kNewestWords + m * kStepsG * kFragmentWords};
  }
  DEVICE FromMemory skip(int m) const {
    return {begin + kPastWords + kNewestWords + kResidualWords + m * kStepsG * kFragmentWords};
  }
};

DEVICE void copy_words(uint4* to, const uint4* from, int words) {
  for (int i = thread_index(); i < words; i += kThreads) copy_async(to + i, from + i);
}

DEVICE void fetch_layer(const Call& call, int layer, uint4* to) {
  constexpr int kTap = kStepsR * kFragmentWords;
  for (int m = 0; m < kPanelsD; ++m) {
    const uint4* from = call.dilated + static_cast<size_t>(layer * kPanelsD + m) * shape::K * kTap;
    copy_words(to + m * kPastTaps * kTap, from, kPastTaps * kTap);
    if (!plan::CHAIN_IN_REGISTERS) copy_words(to + kPastWords + m * kTap, from + kPastTaps * kTap, kTap);
  }
  const size_t residual = static_cast<size_t>(layer) * kPanelsR * kStepsG * kFragmentWords;
  if (!plan::CHAIN_IN_REGISTERS) copy_words(to + kPastWords + kNewestWords, call.residual + residual, kResidualWords);
  const size_t skip = static_cast<size_t>(layer) * kSkipWords;
  copy_words(to + kPastWords + kNewestWords + kResidualWords, call.skip + skip, kSkipWords);
}

// What a chain warp holds of the layers of its block.
template <bool IN_REGISTERS>
struct ChainWeights {
  uint4 newest_fragments[plan::OWN][kOwnD][kStepsR];
  uint4 residual_fragments[plan::OWN][kOwnR][kStepsG];

  DEVICE ChainWeights(const Call& call, int first, int own, int warp) {
#pragma unroll
    for (int o = 0; o < plan::OWN; ++o) {
      if (o >= own) break;
#pragma unroll
      for (int k = 0; k < kOwnD; ++k) {
        const int m = warp + k * plan::CHAIN;
        if (m >= kPanelsD) break;
        const uint4* from = call.dilated +
            (static_cast<size_t>((first + o) * kPanelsD + m) * shape::K + kPastTaps) * kStepsR * kFragmentWords;
#pragma unroll
        for (int step = 0; step < kStepsR; ++step) {
          newest_fragments[o][k][step] = Fragments::read(from + step * kFragmentWords);
        }
      }
#pragma unroll
      for (int k = 0; k < kOwnR; ++k) {
        const int m = warp + k * plan::CHAIN;
        if (m >= kPanelsR) break;
        const uint4* from =
            call.residual + static_cast<size_t>((first + o) * kPanelsR + m) * kStepsG * kFragmentWords;
#pragma unroll
        for (int step = 0; step < kStepsG; ++step) {
          residual_fragments[o][k][step] = Fragments::read(from + step * kFragmentWords);
        }
      }
    }
  }

  DEVICE FromRegisters<kStepsR> newest(const LayerWeights&, int o, int k, int) const {
    return {newest_fragments[o][k]};
  }
  DEVICE FromRegisters<kStepsG> residual(const LayerWeights&, int o, int k, int) const {
    return {residual_fragments[o][k]};
  }
};

template <>
struct ChainWeights<false> {
  DEVICE ChainWeights(const Call&, int, int, int) {}
  DEVICE FromMemory newest(const LayerWeights& shared, int, int, int m) const { return shared.newest(m); }
  DEVICE FromMemory residual(const LayerWeights& shared, int, int, int m) const { return shared.residual(m); }
};

// --- handing over -------------------------------------------------------------------------------------------------

// Where the numbers of one tile are put for a block. Only the block with the head has a place for `skips`, and only
// blocks with layers have the others.
struct Mailbox {
  u8* layers;
  u8* head;
  DEVICE Rows<shape::R> x() const { return Rows<shape::R>(layers + mail::x); }
  DEVICE float4* x_sums() const { return reinterpret_cast<float4*>(layers + mail::x_sums); }
  DEVICE float4* skip_sums() const { return reinterpret_cast<float4*>(layers + mail::skip_sums); }
  DEVICE Rows<shape::S> skips() const { return Rows<shape::S>(head); }
};

// Who arrives, of how many warps: the layers' for each other, the head's for the first block.
enum Mail { kX, kSkip, kHead, kMails };

struct Post {
  const Call& call;
  u8* shared;
  int pipeline, block;

  // Of block `to`, as this block reaches it.
  DEVICE Mailbox mailbox(int to, int tile) const {
    if (plan::CLUSTER) {
      const Mailbox own = own_mailbox(tile);
#if __CUDA_ARCH__ >= 900
      return {in_block(own.layers, to), in_block(own.head, to)};
#endif
    }
    u8* const begin =
        call.mailboxes + static_cast<size_t>((pipeline * plan::BLOCKS + to) * plan::TILES + tile) * mail::bytes;
    return {begin, begin + mail::skips};
  }

  // Where a block of a cluster finds its own.
  DEVICE Mailbox own_mailbox(int tile) const {
    return {shared + at::mail + tile * mail::skips, shared + at::head_mail + tile * Rows<shape::S>::kBytes};
  }

  DEVICE u64* barrier(Mail mail, int tile) const {
    return reinterpret_cast<u64*>(shared + at::barriers) + tile * kMails + mail;
  }

  DEVICE u32* flag(int to, Mail mail, int tile) const {
    return call.flags + ((pipeline * plan::BLOCKS + to) * plan::TILES + tile) * kMails + mail;
  }

  // How many warps arrive for one sample.
  DEVICE int arrivals(Mail mail, int to) const {
    if (mail == kX) return to == 0 ? kWarps : plan::CHAIN;
    return plan::SKIP;
  }

  DEVICE void open() const {
#if __CUDA_ARCH__ >= 900
    if (plan::CLUSTER && thread_index() == 0) {
      for (int tile = 0; tile < plan::TILES; ++tile) {
        for (int mail = 0; mail < kMails; ++mail) {
          barrier_init(barrier(Mail(mail), tile), arrivals(Mail(mail), block));
        }
      }
      barriers_initialised();
    }
#endif
  }

  // By all lanes of a warp that have written their part.
  DEVICE void send(int to, Mail mail, int tile) const {
    warp_barrier();
    if (lane_index()) return;
#if __CUDA_ARCH__ >= 900
    if (plan::CLUSTER) return barrier_arrive(barrier(mail, tile), to);
#endif
    add_release(flag(to, mail, tile));
  }

  // By all lanes of a warp that will read.
  DEVICE void receive(Mail mail, Waiting what, int tile, int i, Watch& watch) const {
#if __CUDA_ARCH__ >= 900
    if (plan::CLUSTER) {
      u64* const here = barrier(mail, tile);
      return wait_until([&] { return barrier_passed(here, i & 1); }, watch, what, tile);
    }
#endif
    const u32* const here = flag(block, mail, tile);
    const u32 wanted = static_cast<u32>(i + 1) * arrivals(mail, block);
    if (lane_index() == 0) wait_until([&] { return load_acquire(here) >= wanted; }, watch, what, tile);
    warp_barrier();
  }
};

// Operands from a mailbox in global memory to where products can read them; by `threads` threads.
DEVICE void take_operands(u8* to, const u8* from, int bytes, int thread, int threads) {
  for (int word = thread; word < bytes / 16; word += threads) copy_async(to + word * 16, from + word * 16);
  commit_copies();
  wait_copies<0>();
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 1) resident(const __grid_constant__ Call call) {
  extern __shared__ __align__(128) u8 shared[];
  const int pipeline = blockIdx.x / plan::BLOCKS, block = blockIdx.x % plan::BLOCKS;
  const int thread = thread_index(), warp = warp_index();
  const int first = call.first_layers[block], own = call.first_layers[block + 1] - first;
  const bool head = block + 1 == plan::BLOCKS, chain = warp < plan::CHAIN;
  const Post post = {call, shared, pipeline, block};
  Watch watch = {call.abort, call.patience, false};

  Stream* const all_streams = reinterpret_cast<Stream*>(shared + at::streams);
  int* const steps = reinterpret_cast<int*>(shared + at::steps);
  Hearing* const hearing = reinterpret_cast<Hearing*>(shared + at::hearing);
  uint4* const layer_weights = reinterpret_cast<uint4*>(shared + at::weights);
  uint4* const hidden_weights = reinterpret_cast<uint4*>(shared + at::head_weights);
  const uint4* const hidden_from = plan::HEAD_IN_L2 ? call.hidden : hidden_weights;
  const uint4* const out_from = plan::HEAD_IN_L2 ? call.out : hidden_weights + kHiddenWords;
  u8* const past = shared + at::weights + own * kLayerWords * 16;
  const auto own_layer = [&](int o) { return LayerWeights{layer_weights + o * kLayerWords}; };
  const auto own_x = [&](int o) { return Rows<shape::R>(shared + at::x + o % 2 * Rows<shape::R>::kBytes); };
  const auto gates = [&](int o) { return Rows<shape::HALF>(shared + at::gates + o % 2 * Rows<shape::HALF>::kBytes); };
  float* const numbers = reinterpret_cast<float*>(shared + at::numbers);
  float* const skip_numbers = reinterpret_cast<float*>(shared + at::skip_numbers);
  const Target<shape::H> hidden = {
      Rows<shape::H>(shared + at::hidden), reinterpret_cast<float*>(shared + at::head_numbers)};
  const Logits logits = {
      plan::LOGITS_SHARED ? reinterpret_cast<float*>(shared + at::logits)
                          : call.logits_room + static_cast<size_t>(pipeline) * plan::N * Logits::kStride};
  const auto memories = [&](int tile) {
    return Memories{
        reinterpret_cast<float*>(shared + at::inputs) + tile * plan::N * shape::IN_DEPTH,
        reinterpret_cast<float*>(shared + at::filters) + tile * plan::N};
  };

  // --- what stays for the whole launch ---
  for (int n = thread; n < plan::TILES * plan::N; n += kThreads) {
    all_streams[n] = stream_at(call, pipeline * plan::TILES * plan::N + n);
  }
  post.open();
  for (int o = 0; o < own; ++o) fetch_layer(call, first + o, layer_weights + o * kLayerWords);
  if (head && !plan::HEAD_IN_L2) {
    copy_words(hidden_weights, call.hidden, kHiddenWords);
    copy_words(hidden_weights + kHiddenWords, call.out, kOutWords);
  }
  const ChainWeights<plan::CHAIN_IN_REGISTERS> chain_weights(call, first, chain ? own : 0, warp);
  commit_copies();
  wait_copies<0>();
  block_barrier();
  for (int tile = thread; tile < plan::TILES; tile += kThreads) {
    steps[tile] = 0;
    for (int n = 0; n < plan::N; ++n) steps[tile] = max(steps[tile], all_streams[tile * plan::N + n].count);
  }
  block_barrier();
#if __CUDA_ARCH__ >= 900
  if (plan::CLUSTER) cluster_barrier();  // nobody writes into a mailbox before its barriers are there
#endif

  int longest = 0;
  for (int n = 0; n < plan::TILES * plan::N; ++n) longest = max(longest, all_streams[n].count);

  // --- the first input of every stream ---
  if (head) {
    for (int tile = 0; tile < plan::TILES; ++tile) {
      load_memories(call, all_streams + tile * plan::N, memories(tile), thread, kThreads);
    }
    block_barrier();
    for (int tile = 0; tile < plan::TILES; ++tile) {
      const Mailbox to = post.mailbox(0, tile);
      for (int n = warp; n < plan::N; n += kWarps) {
        embed_stream(call, all_streams[tile * plan::N + n], memories(tile).of(n).inputs, 0, n, {to.x(), to.x_sums()});
      }
      post.send(0, kX, tile);
    }
  }

  // --- sample by sample ---
  bool stopped = false;
  for (int i = 0; i < longest && !stopped; ++i) {
    for (int tile = 0; tile < plan::TILES && !stopped; ++tile) {
      const Stream* const streams = all_streams + tile * plan::N;
      const int tile_steps = steps[tile];
      if (i >= tile_steps) continue;
      const Mailbox mine = plan::CLUSTER ? post.own_mailbox(tile) : post.mailbox(block, tile);
      // In a grid operands are taken from global memory first.
      const Rows<shape::R> x_in = plan::CLUSTER ? mine.x() : Rows<shape::R>(shared + at::x_in);
      const Rows<shape::S> skips = plan::CLUSTER ? mine.skips() : Rows<shape::S>(shared + at::head_in);
      const auto layer_x = [&](int o) { return o == 0 ? x_in : own_x(o); };

      if (own > 0 && chain) {
        // What this sample does not change: conditioning, biases, older taps.
        for (int n = thread; n < plan::N; n += kChainThreads) hearing[n] = column_of_sample(call, streams[n], i);
        for (int o = 0; o < own; ++o) {
          fetch_past(call, streams, i, first + o, past + o * kPastBytes, thread, kChainThreads);
        }
        commit_copies();
        wait_copies<0>();
        named_barrier(kChainMeets, kChainThreads);
        Sums z[plan::OWN][kOwnD];
#pragma unroll
        for (int o = 0; o < plan::OWN; ++o) {
          if (o >= own) break;
#pragma unroll
          for (int k = 0; k < kOwnD; ++k) {
            const int m = warp + k * plan::CHAIN;
            if (m >= kPanelsD) break;
            z[o][k] = heard_panel(call, streams, hearing, i, first + o, m);
            FromMemory weights = own_layer(o).past(m);
            for (int tap = 0; tap < kPastTaps; ++tap) {
              const Rows<shape::R> then(past + o * kPastBytes + tap * Rows<shape::R>::kBytes);
              add_product(z[o][k], weights, then, dilated_units(call, first + o, m, tap));
            }
          }
        }

        // x arrives.
        post.receive(kX, kForX, tile, i, watch);
        Sums x[kOwnR];
#pragma unroll
        for (int k = 0; k < kOwnR; ++k) {
          if (const int m = warp + k * plan::CHAIN; m < kPanelsR) x[k] = load_sums(mine.x_sums(), m);
        }
        if (!plan::CLUSTER) {
          take_operands(x_in.begin, mine.x().begin, Rows<shape::R>::kBytes, thread, kChainThreads);
          named_barrier(kChainMeets, kChainThreads);
        }

#pragma unroll
        for (int o = 0; o < plan::OWN; ++o) {
          if (o >= own) break;
          const int layer = first + o;
#pragma unroll
          for (int k = 0; k < kOwnD; ++k) {
            const int m = warp + k * plan::CHAIN;
            if (m >= kPanelsD) break;
            auto weights = chain_weights.newest(own_layer(o), o, k, m);
            add_product_by_turns(z[o][k], weights, layer_x(o), dilated_units(call, layer, m, kPastTaps));
            store_gates(call, streams, i, layer, m, z[o][k], {gates(o), numbers});
          }
          if (kInt) {
            named_barrier(kChainMeets, kChainThreads);
            Target<shape::HALF>{gates(o), numbers}.finish(warp, plan::CHAIN);
          }
          named_barrier(kGatesReady, kThreads);
          if (layer + 1 == shape::LAYERS) break;  // nothing follows

          const bool leaves = o + 1 == own;
          const Mailbox next = post.mailbox(block + 1 < plan::BLOCKS ? block + 1 : 0, tile);
          const Target<shape::R> to = {leaves ? next.x() : own_x(o + 1), numbers};
#pragma unroll
          for (int k = 0; k < kOwnR; ++k) {
            const int m = warp + k * plan::CHAIN;
            if (m >= kPanelsR) break;
            Sums update = bias_panel(call.b_residual + layer * shape::R, m);
            auto weights = chain_weights.residual(own_layer(o), o, k, m);
            add_product_by_turns(update, weights, gates(o), residual_units(call, layer, m));
            add_update(call, x[k], update);
            if (plan::TRACE) trace_x(call, streams, i, layer, m, x[k]);
            for_each(x[k], [&](int row, int n, float& value) { to.put(n, m * 16 + row, value); });
            if (leaves) store_sums(next.x_sums(), m, x[k]);
          }
          if (kInt) {
            named_barrier(kChainMeets, kChainThreads);
            to.finish(warp, plan::CHAIN);
          }
          if (leaves) {
            post.send(block + 1, kX, tile);
          } else {
            named_barrier(kChainMeets, kChainThreads);
          }
        }
      }

      if (own > 0 && !chain) {
        const int skip_warp = warp - plan::CHAIN;
        Sums skip[kOwnS];
        for (int o = 0; o < own; ++o) {
          const int layer = first + o;
          named_barrier(kGatesReady, kThreads);
          remember(call, streams, i, layer, layer_x(o), thread - kChainThreads, kSkipThreads);
          if (o == 0 && first > 0) post.receive(kSkip, kForSkip, tile, i, watch);
#pragma unroll
          for (int k = 0; k < kOwnS; ++k) {
            const int m = skip_warp + k * plan::SKIP;
            if (m >= kPanelsS) break;
            if (o == 0) skip[k] = first == 0 ? first_skip(call, m) : load_sums(mine.skip_sums(), m);
            FromMemory weights = own_layer(o).skip(m);
            add_product(skip[k], weights, gates(o), skip_units(call, layer, m));
            end_skip(call, skip[k], layer, m);
          }
        }
        const bool last = first + own == shape::LAYERS;
        const Mailbox next = post.mailbox(last ? plan::BLOCKS - 1 : block + 1, tile);
#pragma unroll
        for (int k = 0; k < kOwnS; ++k) {
          const int m = skip_warp + k * plan::SKIP;
          if (m >= kPanelsS) break;
          if (last) {
            store_skip(call, streams, i, m, skip[k], {next.skips(), skip_numbers});
          } else {
            store_sums(next.skip_sums(), m, skip[k]);
          }
        }
        if (kInt && last) {
          named_barrier(kSkipMeets, kSkipThreads);
          Target<shape::S>{next.skips(), skip_numbers}.finish(skip_warp, plan::SKIP);
        }
        post.send(last ? plan::BLOCKS - 1 : block + 1, last ? kHead : kSkip, tile);
      }

      if (head) {
        const Dice dice(streams, i, warp);
        post.receive(kHead, kForHead, tile, i, watch);
        if (!plan::CLUSTER) {
          take_operands(skips.begin, mine.skips().begin, Rows<shape::S>::kBytes, thread, kThreads);
          block_barrier();
        }
        hidden_layer(call, streams, i, skips, hidden, warp, [&](int m) {
          return FromMemory{hidden_from + m * steps_of(shape::S) * kFragmentWords};
        });
        if (kInt) {
          block_barrier();
          hidden.finish(warp, kWarps);
        }
        block_barrier();
        output_layer(call, hidden.rows, logits, warp, [&](int m) {
          return FromMemory{out_from + m * steps_of(shape::H) * kFragmentWords};
        });
        block_barrier();
        const bool more = i + 1 < tile_steps;
        const Mailbox to = post.mailbox(0, tile);
        draw_and_embed(call, streams, i, dice, logits, memories(tile), {to.x(), to.x_sums()}, more, warp);
        if (more) post.send(0, kX, tile);
      }

      // The rings, and what a block keeps in places used by turns, are now those of the next sample.
      stopped = block_barrier_any(watch.given_up);
    }
  }

  if (head) {
    for (int tile = 0; tile < plan::TILES; ++tile) {
      save_memories(call, all_streams + tile * plan::N, memories(tile), thread, kThreads);
    }
  }
#if __CUDA_ARCH__ >= 900
  if (plan::CLUSTER) cluster_barrier();  // nobody leaves while others may write into its shared memory
#endif
}
