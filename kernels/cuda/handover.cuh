// How the blocks of `resident` hand numbers to each other.
//
// Every team has a mailbox for each tile. Where the blocks of a pipeline are a cluster, a block writes into the shared
// memory of the next and arrives at a barrier there. Otherwise all blocks of the launch are resident together (a
// cooperative launch), and the mailbox lies in global memory beside flags that count arrivals.
//
// Each place of a mailbox is written once a sample (those of a team's own exchange once a layer), and never before it
// was read: the head draws sample i only after every block has handed on what it read for it, and no block is given
// anything of sample i + 1 before that; within a team, gates of a layer arrive only from blocks that have read its x,
// and x of the next layer only from blocks that have read these gates.
#pragma once

#include "head.cuh"
#include "wait.cuh"

namespace {

constexpr int kTeamChain = plan::TEAM * plan::CHAIN, kTeamSkip = plan::TEAM * plan::SKIP;  // warps

// In int8 the blocks of a team exchange numbers: none of them has a whole vector to find its largest.
constexpr bool kSendsNumbers = kInt && plan::TEAM > 1;

struct Mailbox {
  u8* layers;  // of a team with layers
  u8* head;    // of the team with the head

  DEVICE Rows<shape::R> x() const { return Rows<shape::R>(layers + mail::x); }
  DEVICE float4* x_sums() const { return reinterpret_cast<float4*>(layers + mail::x_sums); }
  DEVICE float4* skip_sums() const { return reinterpret_cast<float4*>(layers + mail::skip_sums); }
  DEVICE Rows<shape::HALF> gates() const { return Rows<shape::HALF>(layers + mail::gates); }
  DEVICE Rows<shape::S> skips() const { return Rows<shape::S>(head); }

  // Where a vector is put that this mailbox's team needs, `rows` and `numbers` being what the writer proposes:
  //
  //                  team of one block                      of several
  //   int8           put: numbers, finish: rows             put: the mailbox's numbers, finish by each reader: rows
  //   other formats  put: rows                              put: the mailbox's rows, taken by each reader
  DEVICE Target<shape::R> x_target(const Rows<shape::R>& rows, float* numbers) const {
    return target(rows, x(), layers + mail::x_numbers, numbers);
  }
  DEVICE Target<shape::HALF> gate_target(const Rows<shape::HALF>& rows, float* numbers) const {
    return target(rows, gates(), layers + mail::gate_numbers, numbers);
  }
  DEVICE Target<shape::S> skip_target(const Rows<shape::S>& rows, float* numbers) const {
    return target(rows, skips(), head + mail::skip_numbers, numbers);
  }

  // What others have put there, on its way to `rows` of a block's own.
  DEVICE Target<shape::R> arrived_x(const Rows<shape::R>& rows) const {
    return x_target(own_if_numbers(rows, x()), {});
  }
  DEVICE Target<shape::S> arrived_skips(const Rows<shape::S>& rows) const {
    return skip_target(own_if_numbers(rows, skips()), {});
  }

  // For the head's draws.
  DEVICE Entrance entrance() const {
    return {x(), x_sums(), kSendsNumbers ? reinterpret_cast<float*>(layers + mail::x_numbers) : nullptr};
  }

 private:
  template <int CHANNELS>
  DEVICE static Rows<CHANNELS> own_if_numbers(const Rows<CHANNELS>& own, const Rows<CHANNELS>& place) {
    return kSendsNumbers ? own : place;
  }

  template <int CHANNELS>
  DEVICE Target<CHANNELS> target(const Rows<CHANNELS>& rows, const Rows<CHANNELS>& place, u8* mailed,
                                 float* numbers) const {
    if (kSendsNumbers) return {rows, reinterpret_cast<float*>(mailed)};
    return {plan::TEAM > 1 ? place : rows, numbers};
  }
};

// What arrives: x from the team before, skip sums from it, all skips at the head; within a team x of its next layer,
// gates, and that all have written their share of the rings.
enum Mail { kX, kSkip, kHead, kInner, kGates, kRing, kMails };

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

  // --- where ---

  // Of team `to`, as this block reaches it.
  DEVICE Mailbox mailbox(int to, int tile) const {
    if (plan::CLUSTER) {
      const Mailbox own = mine(tile);
#if __CUDA_ARCH__ >= 900
      return {in_block(own.layers, to), in_block(own.head, to)};
#endif
    }
    u8* const begin =
        call.mailboxes + static_cast<size_t>((pipeline * plan::TEAMS + to) * plan::TILES + tile) * mail::bytes;
    return {begin, begin + mail::skips};
  }

  // This team's own.
  DEVICE Mailbox mine(int tile) const {
    if (!plan::CLUSTER) return mailbox(team, tile);
    return {shared + at::mail + tile * mail::skips, shared + at::head_mail + tile * Rows<shape::S>::kBytes};
  }

  DEVICE u64* barrier(Mail mail, int tile) const {
    return reinterpret_cast<u64*>(shared + at::barriers) + tile * kInner + mail;
  }

  DEVICE u32* flag(int to, Mail mail, int tile) const {
    return call.flags + ((pipeline * plan::TEAMS + to) * plan::TILES + tile) * kMails + mail;
  }

  // --- begin and end ---

  // By all threads, before their block's first barrier.
  DEVICE void open() const {
#if __CUDA_ARCH__ >= 900
    if (plan::CLUSTER && thread_index() == 0) {
      for (int tile = 0; tile < plan::TILES; ++tile) {
        barrier_init(barrier(kX, tile), team == 0 ? kWarps : plan::CHAIN);
        barrier_init(barrier(kSkip, tile), plan::SKIP);
        barrier_init(barrier(kHead, tile), plan::SKIP);
      }
      barriers_initialised();
    }
#endif
  }

  // By all threads, a barrier of the block, before the first mail: nobody writes into a mailbox before its barriers are
  // there.
  DEVICE void opened() const {
#if __CUDA_ARCH__ >= 900
    if (plan::CLUSTER) return cluster_barrier();
#endif
    block_barrier();
  }

  // By all threads at the end: nobody leaves while others may write into its shared memory.
  DEVICE void close() const {
#if __CUDA_ARCH__ >= 900
    if (plan::CLUSTER) cluster_barrier();
#endif
  }

  // --- sending and receiving, by all lanes of a warp ---

  // What the warp has written is there.
  DEVICE void send(int to, Mail mail, int tile) const {
    warp_barrier();
    if (lane_index()) return;
#if __CUDA_ARCH__ >= 900
    if (plan::CLUSTER) return barrier_arrive(barrier(mail, tile), to);
#endif
    add_release(flag(to, mail, tile));
  }

  // Waits until for sample i, and for all before it, as many warps as `arrivals` have sent.
  DEVICE void receive(Mail mail, u32 arrivals, int tile, int i, Watch& watch) const {
#if __CUDA_ARCH__ >= 900
    if (plan::CLUSTER) {
      u64* const here = barrier(mail, tile);
      wait_until([&] { return barrier_passed(here, i & 1); }, watch, mail, tile);
      return warp_barrier();  // lanes may have left the loop apart
    }
#endif
    const u32* const here = flag(team, mail, tile);
    const auto arrived = [&] { return static_cast<int>(load_acquire(here) - arrivals) >= 0; };
    if (lane_index() == 0) wait_until(arrived, watch, mail, tile);
    warp_barrier();
  }

  // Within a team: sends what a chain warp has put into the team's mailbox, and waits for the others'.
  DEVICE void exchange(Mail mail, u32 arrivals, int tile, int i, Watch& watch) const {
    send(team, mail, tile);
    receive(mail, arrivals, tile, i, watch);
  }

  // --- taking: from a mailbox in global memory to where products can read it ---

  // By all chain warps, which have yet to meet.
  template <int CHANNELS>
  DEVICE void take_unmet(const Rows<CHANNELS>& to, const Target<CHANNELS>& from, int warp, int thread) const {
    take_part(to, from, warp, plan::CHAIN, thread, kChainThreads);
  }

  // By all chain warps, which meet at the end.
  template <int CHANNELS>
  DEVICE void take(const Rows<CHANNELS>& to, const Target<CHANNELS>& from, int warp, int thread) const {
    if (plan::CLUSTER) return;
    take_part(to, from, warp, plan::CHAIN, thread, kChainThreads);
    named_barrier(kChainMeets, kChainThreads);
  }

  // By all warps.
  template <int CHANNELS>
  DEVICE void take_all(const Rows<CHANNELS>& to, const Target<CHANNELS>& from, int warp, int thread) const {
    if (plan::CLUSTER) return;
    take_part(to, from, warp, kWarps, thread, kThreads);
    block_barrier();
  }

 private:
  template <int CHANNELS>
  DEVICE static void take_part(const Rows<CHANNELS>& to, const Target<CHANNELS>& from, int warp, int warps, int thread,
                               int threads) {
    if (kSendsNumbers) return from.finish(warp, warps);
    for (int word = thread; word < Rows<CHANNELS>::kBytes / 16; word += threads) {
      copy_async(to.begin + word * 16, from.rows.begin + word * 16);
    }
    commit_copies();
    wait_copies<0>();
  }
};

}  // namespace
