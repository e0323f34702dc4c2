// How the blocks of `resident` hand numbers to each other.
//
// Every number travels in a word of 8 bytes, with a postmark in its upper half: which layer of which sample it belongs
// to. Words are written and read as a whole, and a reader looks at the words that it needs until they bear the postmark
// that it waits for. So nothing has to be ordered: no fence, no flag, no barrier between blocks is on the way, and a
// number is there as soon as its word is.
//
// Every team has a mailbox for each tile. Where the blocks of a pipeline are a cluster, it lies in the shared memory of
// the team's block, and others write there. Otherwise all blocks of the launch are resident together (a cooperative
// launch), and it lies in global memory. It begins with zeros; postmarks begin with 1.
//
// Each place of a mailbox is written once a sample (those of x and of gates within a team once a layer), and never
// before it was read: the head draws sample i only after every block has handed on what it read for it, and no block is
// given anything of sample i + 1 before that; within a team, gates of a layer arrive only from blocks that have read
// its x, and x of the next layer only from blocks that have read these gates.
#pragma once

#include "head.cuh"
#include "wait.cuh"

namespace {

// --- words --------------------------------------------------------------------------------------------------------

DEVICE u64 word_of(float number, u32 postmark) { return static_cast<u64>(postmark) << 32 | bits_of(number); }
DEVICE float number_in(u64 word) { return float_of(static_cast<u32>(word)); }
DEVICE u32 postmark_of(u64 word) { return static_cast<u32>(word >> 32); }

// Postmarks: of x that layer `layer` of sample i hears and of its gates; of what is once a sample.
DEVICE u32 of_layer(int i, int layer) { return static_cast<u32>(i) * shape::LAYERS + layer + 1; }
DEVICE u32 of_sample(int i) { return static_cast<u32>(i) + 1; }

// Words of a vector in a mailbox, in pairs of neighbours that one lane writes and reads.
struct Letters {
  u64* begin;
  DEVICE u64* pair(int index, int lane) const { return begin + (index * kWarp + lane) * 2; }
};

// Sums of panel m: for each eight streams, of a lane's four numbers first two, then two.
DEVICE int pair_of_sums(int m, int e, int half) { return (m * kEights + e) * 2 + half; }
// Gates of panel m: for each eight streams two of a lane.
DEVICE int pair_of_gates(int m, int e) { return m * kEights + e; }

struct Mailbox {
  u8* layers;  // of a team with layers
  u8* head;    // of the team with the head

  DEVICE Letters x() const { return {reinterpret_cast<u64*>(layers + mail::x)}; }
  DEVICE Letters skips() const { return {reinterpret_cast<u64*>(layers + mail::skips)}; }
  DEVICE Letters gates() const { return {reinterpret_cast<u64*>(layers + mail::gates)}; }
  DEVICE Letters all_skips() const { return {reinterpret_cast<u64*>(head)}; }
};

// What arrives: x, skip sums of the teams before, the sum of all skips at the head; within a team x of its next layer,
// gates, and that all have written their share of the rings.
enum Mail { kX, kSkip, kHead, kInner, kGates, kRing };

// --- the post -----------------------------------------------------------------------------------------------------

struct Post {
  const Call& call;
  u8* shared;
  int pipeline, team, member;

  DEVICE Post(const Call& call, u8* shared) : call(call), shared(shared) {
    const int block = blockIdx.x % plan::BLOCKS;
    pipeline = blockIdx.x / plan::BLOCKS;
    team = min(block / plan::TEAM, plan::TEAMS - 1);
    member = block - team * plan::TEAM;
  }

  // Of team `to`, as this block writes to it.
  DEVICE Mailbox mailbox(int to, int tile) const {
#if __CUDA_ARCH__ >= 900
    if (plan::CLUSTER) {
      const Mailbox own = mine(tile);
      return {in_block(own.layers, to), in_block(own.head, to)};
    }
#endif
    u8* const begin =
        call.mailboxes + static_cast<size_t>((pipeline * plan::TEAMS + to) * plan::TILES + tile) * mail::bytes;
    return {begin, begin + mail::all_skips};
  }

  // This team's own, as it reads there.
  DEVICE Mailbox mine(int tile) const {
    if (!plan::CLUSTER) return mailbox(team, tile);
    return {shared + at::mail + tile * mail::all_skips,
            shared + at::head_mail + tile * (mail::bytes - mail::all_skips)};
  }

  // --- begin and end ---

  // By all threads, a barrier of the block, before the first mail: nobody writes into a mailbox that is not empty yet.
  DEVICE void open(bool layers, bool head) const {
#if __CUDA_ARCH__ >= 900
    if (plan::CLUSTER) {
      if (layers) clear(shared + at::mail, plan::TILES * mail::all_skips);
      if (head) clear(shared + at::head_mail, plan::TILES * (mail::bytes - mail::all_skips));
      return cluster_barrier();
    }
#endif
    block_barrier();
  }

  // By all threads at the end: nobody leaves while others may write into its shared memory.
  DEVICE void close() const {
#if __CUDA_ARCH__ >= 900
    if (plan::CLUSTER) cluster_barrier();
#endif
  }

  // --- sending, by a warp ---

  DEVICE void send_number(const Letters& to, int pair, int lane, int which, float number, u32 postmark) const {
    u64* const place = to.pair(pair, lane) + which;
#if __CUDA_ARCH__ >= 900
    if (plan::CLUSTER) return store_word_in_cluster(place, word_of(number, postmark));
#endif
    store_word_in_gpu(place, word_of(number, postmark));
  }

  DEVICE void send_sums(const Letters& to, int m, const Sums& sums, u32 postmark) const {
#pragma unroll
    for (int e = 0; e < kEights; ++e) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        u64* const place = to.pair(pair_of_sums(m, e, half), lane_index());
        const u64 a = word_of(sums.v[e][half * 2], postmark), b = word_of(sums.v[e][half * 2 + 1], postmark);
#if __CUDA_ARCH__ >= 900
        if (plan::CLUSTER) {
          store_words_in_cluster(place, a, b);
          continue;
        }
#endif
        store_words_in_gpu(place, a, b);
      }
    }
  }

  // --- receiving, by a warp ---

  DEVICE Sums receive_sums(const Letters& from, int m, u32 postmark, Mail mail, int tile, Watch& watch) const {
    Sums sums;
#pragma unroll
    for (int e = 0; e < kEights; ++e) receive<2>(sums.v[e], from, pair_of_sums(m, e, 0), postmark, mail, tile, watch);
    return sums;
  }

  // Gates of panel m of a layer, which another block of the team computed, or this one.
  template <class To>
  DEVICE void receive_gates(const Letters& from, int m, u32 postmark, int tile, Watch& watch, const To& to) const {
#pragma unroll
    for (int e = 0; e < kEights; ++e) {
      float gates[2];
      receive<1>(gates, from, pair_of_gates(m, e), postmark, kGates, tile, watch);
#pragma unroll
      for (int c = 0; c < 2; ++c) to.put(e * 8 + pair_in_eight() + c, m * 8 + row_in_panel(), gates[c]);
    }
  }

  // --- the rings, which the blocks of a team write together ---

  DEVICE u32* ring_flag(int tile) const { return call.flags + (pipeline * plan::TEAMS + team) * plan::TILES + tile; }

  // What this warp has written there is for all to read.
  DEVICE void rings_written(int tile) const {
    warp_barrier();
    if (lane_index() == 0) add_release(ring_flag(tile));
  }

  // Waits until all skip warps of the team have written the rings of all samples before i.
  DEVICE void rings_ready(int i, int tile, Watch& watch) const {
    const u32 arrivals = static_cast<u32>(i) * plan::TEAM * plan::SKIP;
    const u32* const flag = ring_flag(tile);
    const auto arrived = [&] { return in_all_lanes(static_cast<int>(load_acquire(flag) - arrivals) >= 0); };
    wait_until(arrived, watch, kRing, tile);
  }

 private:
  // PAIRS neighbouring pairs of words, whose numbers a lane receives.
  template <int PAIRS>
  DEVICE void receive(float (&numbers)[2 * PAIRS], const Letters& from, int pair, u32 postmark, Mail mail, int tile,
                      Watch& watch) const {
    u64 words[2 * PAIRS] = {};
    const auto arrived = [&] {
#pragma unroll
      for (int k = 0; k < PAIRS; ++k) {
        const u64* const place = from.pair(pair + k, lane_index());
#if __CUDA_ARCH__ >= 900
        if (plan::CLUSTER) {
          load_words_here(place, words[2 * k], words[2 * k + 1]);
          continue;
        }
#endif
        load_words_in_gpu(place, words[2 * k], words[2 * k + 1]);
      }
      bool all = true;
#pragma unroll
      for (int k = 0; k < 2 * PAIRS; ++k) all &= postmark_of(words[k]) == postmark;
      return in_all_lanes(all);
    };
    wait_until(arrived, watch, mail, tile);
#pragma unroll
    for (int k = 0; k < 2 * PAIRS; ++k) numbers[k] = number_in(words[k]);
  }

  DEVICE static void clear(u8* begin, int bytes) {
    for (int word = thread_index(); word < bytes / 16; word += kThreads) {
      reinterpret_cast<uint4*>(begin)[word] = {0, 0, 0, 0};
    }
  }
};

// Where x of the first layer of a sample is written, number by number.
struct Posted {
  static constexpr bool kQuantises = false;
  const Post& post;
  Letters to;
  u32 postmark;

  DEVICE void put(int n, int r, float x, const OperandOf<false>&) const {
    const int lane = r % 8 * 4 + n % 8 / 2;
    post.send_number(to, pair_of_sums(r / 16, n / 8, r % 16 / 8), lane, n % 2, x, postmark);
  }
  DEVICE void end(int, float) const {}
};

// Where a lane writes the gates of its own panels for a whole team, which waits for all words.
struct PostedGates {
  static constexpr int kStreams = 2;
  const Post& post;
  Letters to;
  u32 postmark;

  DEVICE void put(int n, int j, float gate) const {
    post.send_number(to, pair_of_gates(j / 8, n / 8), lane_index(), n % 2, gate, postmark);
  }
};

}  // namespace
