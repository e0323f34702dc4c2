// A token of one word a thread goes round a ring of blocks; each block adds its number + 1. One block works at a time,
// the others wait. Every wait is bounded by the clock and ended by the word `abort`, whose lowest bit says that a wait
// took too long, the others at which hop.


#ifndef POLLS_PER_LOOK
#define POLLS_PER_LOOK 1
#endif

// Waits until `ready()`, at most `limit` cycles; false once some wait of the launch has taken longer.
template <class Ready>
DEVICE bool wait_for(Ready ready, u64* abort, long long limit, u32 hop) {
  const long long start = clock64();
  for (int poll = 1; !ready(); ++poll) {
    if (poll % POLLS_PER_LOOK) continue;
    if (load_relaxed(abort)) return false;
    if (clock64() - start > limit) {
      claim(abort, 2 * hop + 1);
      return false;
    }
  }
  return true;
}

#if __CUDA_ARCH__ >= 900
// Through shared memory of the next block of the cluster, and an mbarrier that counts warps. Block `stuck` hands on
// nothing.
extern "C" __global__ void ring_of_cluster(u32* out, u64* abort, u32 rounds, long long limit, u32 stuck) {
  __shared__ u32 box[1024];
  __shared__ u64 full;
  const u32 rank = cluster_rank(), size = cluster_size(), next = rank + 1 == size ? 0 : rank + 1;
  if (threadIdx.x == 0) {
    barrier_init(&full, blockDim.x / 32);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster_barrier();
  u32 token = threadIdx.x;
  bool going = true;
  for (u32 round = 0; round < rounds && going; ++round) {
    const bool first = rank == 0 && round == 0;
    if (!first) {
      const u32 parity = (rank == 0 ? round - 1 : round) & 1;
      going = wait_for([&] { return barrier_passed(&full, parity); }, abort, limit, round * size + rank);
      // What another warp has sent lies here too: its arrival was counted.
      if (going) token = box[threadIdx.x ^ 32];
    }
    if (!going || rank == stuck) continue;
    in_block(box, next)[threadIdx.x] = token + rank + 1;
    __syncwarp();
    if (lane() == 0) barrier_arrive(&full, next);
  }
  const auto done = [&] { return barrier_passed(&full, (rounds - 1) & 1); };
  if (rank == 0 && going && wait_for(done, abort, limit, rounds * size))
    out[threadIdx.x] = box[threadIdx.x];
  // No block leaves while another may still write to its shared memory.
  cluster_barrier();
}
#endif

// Through global memory, and a flag of each block to which every warp adds one.
extern "C" __global__ void ring_of_flags(u32* out, u32* boxes, u32* flags, u64* abort, u32 rounds, long long limit,
                                         u32 stuck) {
  const u32 rank = blockIdx.x, size = gridDim.x, next = rank + 1 == size ? 0 : rank + 1, warps = blockDim.x / 32;
  u32 token = threadIdx.x;
  bool going = true;
  for (u32 round = 0; round < rounds + 1 && going; ++round) {
    if (round == rounds && rank) break;
    if (rank || round) {
      const u32 wanted = (rank == 0 ? round : round + 1) * warps;
      going = wait_for([&] { return load_acquire(&flags[rank]) >= wanted; }, abort, limit, round * size + rank);
      if (going) token = boxes[rank * blockDim.x + (threadIdx.x ^ 32)];
    }
    if (round == rounds) {
      if (going) out[threadIdx.x ^ 32] = token;
    } else if (going && rank != stuck) {
      boxes[next * blockDim.x + threadIdx.x] = token + rank + 1;
      __syncwarp();
      if (lane() == 0) add_release(&flags[next]);
    }
  }
}
