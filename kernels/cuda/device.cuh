// The only file in which the kernels speak PTX: one function per instruction, named after what it does.
//
// Nothing here includes a header, so that NVRTC needs none: not CUDA's, and not the C++ library's.
#pragma once

#define DEVICE __device__ __forceinline__

using u8 = unsigned char;
using s8 = signed char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

constexpr int kWarp = 32;
constexpr u32 kAllLanes = 0xffffffffu;

// --- where a thread is --------------------------------------------------------------------------------------------

DEVICE int thread_index() { return threadIdx.x; }
DEVICE int lane_index() { return threadIdx.x & (kWarp - 1); }

// The warp's number, told to the compiler as the same in all lanes.
DEVICE int warp_index() { return __shfl_sync(kAllLanes, threadIdx.x / kWarp, 0); }

// --- arithmetic ---------------------------------------------------------------------------------------------------

DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of(u32 bits) { return __uint_as_float(bits); }

DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

DEVICE float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

DEVICE float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// A NaN becomes the other operand, as in IEEE 754's minNum and maxNum.
DEVICE float smaller(float a, float b) {
  float y;
  asm("min.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

DEVICE float larger(float a, float b) {
  float y;
  asm("max.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

DEVICE float clamp(float x, float low, float high) { return smaller(larger(x, low), high); }

// Round to nearest, ties to even: bits of a 16-bit number.
DEVICE u16 to_bf16(float x) {
  u16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}

DEVICE u16 to_fp16(float x) {
  u16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}

DEVICE float from_fp16(u16 bits) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
  return y;
}

DEVICE float from_bf16(u16 bits) { return float_of(static_cast<u32>(bits) << 16); }

// Round to nearest, ties to even.
DEVICE int to_int(float x) {
  int y;
  asm("cvt.rni.s32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

// --- exchange within a warp ---------------------------------------------------------------------------------------

template <class T>
DEVICE T from_lane(T x, int lane) {
  return __shfl_sync(kAllLanes, x, lane);
}

// The value of the lane `distance` below; lanes without one keep theirs.
template <class T>
DEVICE T from_below(T x, int distance) {
  return __shfl_up_sync(kAllLanes, x, distance);
}

template <class T>
DEVICE T across(T x, int mask) {
  return __shfl_xor_sync(kAllLanes, x, mask);
}

DEVICE void warp_barrier() { __syncwarp(); }

// Answers that all lanes share.
DEVICE bool in_all_lanes(bool mine) { return __all_sync(kAllLanes, mine); }
DEVICE bool in_any_lane(bool mine) { return __any_sync(kAllLanes, mine); }
DEVICE int sum_of_lanes(int x) { return __reduce_add_sync(kAllLanes, x); }
DEVICE int largest_of_lanes(int x) { return __reduce_max_sync(kAllLanes, x); }

// --- barriers of a block ------------------------------------------------------------------------------------------

DEVICE void block_barrier() { __syncthreads(); }

// A barrier that tells whether any thread came with `true`.
DEVICE bool block_barrier_any(bool mine) { return __syncthreads_or(mine); }

// Barrier `number` (1 … 15) of `threads` threads, whole warps.
DEVICE void named_barrier(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// Counts towards that barrier without waiting at it.
DEVICE void named_arrival(int number, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// --- shared memory ------------------------------------------------------------------------------------------------

DEVICE u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

// Four 8 × 8 matrices of 16-bit words: lane l names row l % 8 of matrix l / 8; register i of lane l receives words
// 2·(l % 4) and the next of row l / 4 of matrix i.
DEVICE void load_matrices(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Two of them, named by lanes 0 … 15.
DEVICE void load_matrices(u32 (&r)[2], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}

// --- asynchronous copies from global to shared memory -------------------------------------------------------------

// 16 bytes; where not `wanted`, zeros, and nothing is read.
DEVICE void copy_async(void* to, const void* from, bool wanted = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(wanted ? 16 : 0)
               : "memory");
}

DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until of this thread's groups of copies at most `LEFT` are under way.
template <int LEFT>
DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// --- products -----------------------------------------------------------------------------------------------------

// D (16 × 8) += A (16 × k) · B (k × 8) with 32 bytes of k. Of lane 4g + t, A's registers hold, in words of 4 bytes,
// (row g, word t), (row g + 8, word t), (row g, word t + 4), (row g + 8, word t + 4); B's (word t, column g),
// (word t + 4, column g); D's (row g, column 2t), (row g, 2t + 1), (row g + 8, 2t), (row g + 8, 2t + 1).
DEVICE void multiply_bf16(float (&d)[4], const uint4& a, const u32 b0, const u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

DEVICE void multiply_fp16(float (&d)[4], const uint4& a, const u32 b0, const u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

DEVICE void multiply_int8(int (&d)[4], const uint4& a, const u32 b0, const u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// --- order between blocks -----------------------------------------------------------------------------------------

DEVICE u32 load_acquire(const u32* flag) {
  u32 value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

// Adds one to a flag, behind everything that this thread has written or knows to be written.
DEVICE void add_release(u32* flag) { asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(flag) : "memory"); }

DEVICE u64 load_relaxed(const u64* word) {
  u64 value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
  return value;
}

// Writes `wanted` where the word is zero.
DEVICE void claim(u64* word, u64 wanted) {
  u64 before;
  asm volatile("atom.relaxed.gpu.global.cas.b64 %0, [%1], 0, %2;" : "=l"(before) : "l"(word), "l"(wanted) : "memory");
}

DEVICE long long clock_now() { return clock64(); }

// Words of 8 bytes in global memory, each written and read as a whole. Nothing else is ordered by that.
DEVICE void store_word_in_gpu(u64* to, u64 word) {
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}

DEVICE void store_words_in_gpu(u64* to, u64 a, u64 b) {
  asm volatile("st.relaxed.gpu.global.v2.b64 [%0], {%1, %2};" ::"l"(to), "l"(a), "l"(b) : "memory");
}

DEVICE void load_words_in_gpu(const u64* from, u64& a, u64& b) {
  asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];" : "=l"(a), "=l"(b) : "l"(from) : "memory");
}

// --- clusters -----------------------------------------------------------------------------------------------------

#if __CUDA_ARCH__ >= 900

// All threads of all blocks of the cluster, and everything that they wrote before.
DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The same place in the shared memory of block `rank`.
template <class T>
DEVICE T* in_block(T* here, int rank) {
  u64 there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(here), "r"(rank));
  return reinterpret_cast<T*>(there);
}

// Words to and from shared memory: `store_word` takes addresses of any block of the cluster, `load_words` of its own.
DEVICE void store_word_in_cluster(u64* to, u64 word) {
  asm volatile("st.relaxed.cluster.b64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}

DEVICE void store_words_in_cluster(u64* to, u64 a, u64 b) {
  asm volatile("st.relaxed.cluster.v2.b64 [%0], {%1, %2};" ::"l"(to), "l"(a), "l"(b) : "memory");
}

DEVICE void load_words_here(const u64* from, u64& a, u64& b) {
  asm volatile("ld.relaxed.cluster.shared::cta.v2.b64 {%0, %1}, [%2];"
               : "=l"(a), "=l"(b)
               : "r"(shared_address(from))
               : "memory");
}

#endif
