// One kernel for each group of instructions that the engine's kernels are made of.

// ---- a block of 32 threads and more: copies, matrix fragments, products

DEVICE void copy_async(void* to, const void* from, u32 bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}
DEVICE void copy_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
DEVICE void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
DEVICE void wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

DEVICE void load_matrices(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
DEVICE void load_matrices(u32 (&r)[2], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}

#define PRODUCT(NAME, SHAPE, TYPES, T, C)                                                                        \
  DEVICE void NAME(T(&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {                                             \
    asm volatile("mma.sync.aligned." SHAPE ".row.col." TYPES                                                     \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                              \
                 : "+" C(d[0]), "+" C(d[1]), "+" C(d[2]), "+" C(d[3])                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                            \
  }
PRODUCT(multiply_bf16, "m16n8k16", "f32.bf16.bf16.f32", float, "f")
PRODUCT(multiply_f16, "m16n8k16", "f32.f16.f16.f32", float, "f")
PRODUCT(multiply_s8, "m16n8k32", "s32.s8.s8.s32", int, "r")

// D [16, 8] = Σ A [steps, 16 rows of 32 bytes] · B [steps, 8 columns of 32 bytes]: the operands of a step come through
// a ring of `kStages` stages, and of the last step only the first 8 rows of A, the others being zeros.
template <class T, class Multiply>
DEVICE void product(const char* a, const char* b, T* d, int steps, Multiply multiply) {
  constexpr int kStages = 3;
  __shared__ __align__(16) char ring[kStages][24 * 32];
  auto request = [&](int step) {
    if (step < steps) {
      const u32 row = lane() / 2, half = lane() % 2 * 16;
      char* to = ring[step % kStages] + row * 32 + half;
      copy_async(to, a + step * 512 + row * 32 + half, step == steps - 1 && row >= 8 ? 0 : 16);
      if (lane() < 16) copy_async(ring[step % kStages] + 512 + lane() * 16, b + step * 256 + lane() * 16);
    }
    commit();
  };
  request(0);
  request(1);
  T sum[4] = {};
  for (int step = 0; step < steps; ++step) {
    wait_group<1>();
    __syncwarp();  // every lane's copies are there, and what lay in the next stage has been read
    request(step + 2);
    u32 left[4], right[2];
    load_matrices(left, shared_address(ring[step % kStages]) + (lane() % 16) * 32 + lane() / 16 * 16);
    load_matrices(right, shared_address(ring[step % kStages]) + 512 + (lane() % 8) * 32 + lane() / 8 % 2 * 16);
    multiply(sum, left, right);
  }
  const u32 row = lane() / 4, column = lane() % 4 * 2;
  for (int i = 0; i < 4; ++i) d[(row + i / 2 * 8) * 8 + column + i % 2] = sum[i];
}
extern "C" __global__ void products(const char* a, const char* b, float* bf16, float* f16, int* s8, int steps) {
  product(a, b, bf16, steps, [](auto&... operands) { multiply_bf16(operands...); });
  __syncwarp();
  product(a, b, f16, steps, [](auto&... operands) { multiply_f16(operands...); });
  __syncwarp();
  product(a, b, s8, steps, [](auto&... operands) { multiply_s8(operands...); });
}

// ---- one number a thread

#define UNARY(NAME, PTX)                                          \
  DEVICE float NAME(float x) {                                    \
    float y;                                                      \
    asm volatile(PTX " %0, %1;" : "=f"(y) : "f"(x));              \
    return y;                                                     \
  }
UNARY(exp2_fast, "ex2.approx.ftz.f32")
UNARY(log2_fast, "lg2.approx.ftz.f32")
UNARY(reciprocal, "rcp.approx.ftz.f32")
UNARY(tanh_fast, "tanh.approx.f32")
UNARY(root, "sqrt.rn.f32")
UNARY(root_fast, "sqrt.approx.f32")
UNARY(inverse_root, "rsqrt.approx.f32")

extern "C" __global__ void functions(const float* x, float* y) {
  const float a = x[threadIdx.x], b = x[threadIdx.x ^ 1];
  float* out = y + threadIdx.x * 16;
  out[0] = exp2_fast(a);
  out[1] = log2_fast(a);
  out[2] = reciprocal(a);
  out[3] = tanh_fast(a);
  out[4] = root(a);
  out[5] = root_fast(a);
  out[6] = inverse_root(a);
  out[7] = __fdividef(a, b);
  out[8] = a / b;
  out[9] = __expf(a);
  out[10] = __logf(a);
  out[11] = sqrtf(a);
  out[12] = __fmaf_rn(a, b, a);
  out[13] = fmaxf(fminf(a, 1.5f), -1.5f);
  out[14] = rintf(a);
  out[15] = __frcp_rn(a);
}

extern "C" __global__ void conversions(const float* x, u32* y) {
  const float a = x[2 * threadIdx.x], b = x[2 * threadIdx.x + 1];
  u32* out = y + threadIdx.x * 8;
  asm volatile("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out[0]) : "f"(a), "f"(b));
  asm volatile("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out[1]) : "f"(a), "f"(b));
  asm volatile("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(out[2]) : "f"(a), "f"(b));
  asm volatile("cvt.rni.s32.f32 %0, %1;" : "=r"(out[3]) : "f"(a));
  asm volatile("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(out[4]) : "f"(a));
  u16 half, brain;
  asm volatile("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(a));
  asm volatile("cvt.rn.bf16.f32 %0, %1;" : "=h"(brain) : "f"(a));
  out[5] = half | u32(brain) << 16;
  float wide;
  asm volatile("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(half));
  out[6] = __float_as_uint(wide);
#if __CUDA_ARCH__ >= 890
  u16 eight;
  asm volatile("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(eight) : "f"(a), "f"(b));
  out[7] = eight;
#else
  out[7] = 0;
#endif
}

extern "C" __global__ void whole_numbers(const u32* x, u32* y, const u64* wide, u64* wide_out) {
  const u32 a = x[2 * threadIdx.x], b = x[2 * threadIdx.x + 1];
  u32* out = y + threadIdx.x * 10;
  out[0] = __byte_perm(a, b, 0x5140);
  asm volatile("bfe.u32 %0, %1, 5, 9;" : "=r"(out[1]) : "r"(a));
  asm volatile("bfe.s32 %0, %1, 3, 7;" : "=r"(out[2]) : "r"(a));
  asm volatile("bfi.b32 %0, %1, %2, 4, 12;" : "=r"(out[3]) : "r"(a), "r"(b));
  out[4] = __umulhi(a, b);
  out[5] = __mulhi(s32(a), s32(b));
  out[6] = __dp4a(s32(a), s32(b), 7);
  out[7] = __popc(a) + __clz(b) + __ffs(a);
  out[8] = __funnelshift_l(a, b, 11);
  out[9] = static_cast<u32>(static_cast<float>(s32(a)) * 4.6566127342e-10f * 1000.0f + 3000.0f);
  wide_out[threadIdx.x] = u64(a) * b + wide[threadIdx.x] / (b | 1);
}

// ---- a warp

extern "C" __global__ void exchanges(const u32* x, u32* y) {
  const u32 a = x[threadIdx.x];
  u32* out = y + threadIdx.x * 8;
  out[0] = __shfl_up_sync(~0u, a, 3);
  out[1] = __shfl_xor_sync(~0u, a, 5);
  out[2] = __shfl_sync(~0u, a, a & 31);
  out[3] = __reduce_add_sync(~0u, a);
  out[4] = __reduce_max_sync(~0u, s32(a));
  out[5] = __ballot_sync(~0u, a & 1);
  out[6] = __any_sync(~0u, a == 77) + 2 * __all_sync(~0u, a < 1000);
  out[7] = __reduce_or_sync(~0u, a);
}

// ---- memory: tables, spilled arrays, parameters by value

__constant__ u32 table[8] = {1, 1, 2, 3, 5, 8, 13, 21};
struct Call {
  const u32* x;  // one number a thread
  u32* y;
  int count;
  float scale;
  u32 offsets[4];
};
// Not inlined: it reads the parameter by a generic address.
__device__ __noinline__ u32 chosen(const Call& call, u32 number) { return call.offsets[number & 3]; }

extern "C" __global__ void places(const __grid_constant__ Call call) {
  u32 scratch[24];
  const u32 mine = __ldg(call.x + threadIdx.x);
  for (int i = 0; i < 24; ++i) scratch[i] = mine * i;
#pragma unroll 1
  for (int i = 0; i < call.count; ++i) scratch[(mine + i) % 24] += table[(mine + i) & 7];
  u32 sum = 0;
#pragma unroll 1
  for (int i = 0; i < 24; ++i) sum += scratch[(i * 7 + mine) % 24] * (i + 1);
  asm volatile("prefetch.global.L2 [%0];" ::"l"(call.y));
  call.y[threadIdx.x] = sum + chosen(call, mine) + static_cast<u32>(call.scale);
}

// ---- barriers of a block: warp 0 gives, warp 1 takes, and all say whether any of them is odd

extern "C" __global__ void barriers(const u32* x, u32* y) {
  __shared__ u32 box[32];
  const u32 mine = x[threadIdx.x];
  if (warp() == 0) {
    box[lane()] = mine;
    asm volatile("bar.arrive 2, 64;" ::: "memory");
  } else if (warp() == 1) {
    asm volatile("bar.sync 2, 64;" ::: "memory");
    y[lane()] = box[31 - lane()];
  }
  if (warp() < 2) asm volatile("bar.sync %0, %1;" ::"r"(3), "r"(64) : "memory");
  if (warp() == 0) box[lane()] = mine + 1;
  const bool any = __syncthreads_or(mine == 1000);
  y[32 + threadIdx.x] = box[(lane() + 1) & 31] + 100000 * any;
  const bool all = __syncthreads_and(mine < 500);
  if (warp() == 0) box[lane()] = __syncthreads_count(mine & 1) + 1000 * all;
  else __syncthreads_count(mine & 1);
  __syncthreads();
  y[32 + blockDim.x + threadIdx.x] = box[lane() ^ 3];
}

// ---- time

extern "C" __global__ void times(u64* y) {
  u64 global, later;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(global)::"memory");
  const long long start = clock64();
  __nanosleep(100);
  const unsigned low = clock();
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(later)::"memory");
  y[0] = clock64() - start;
  y[1] = later - global;
  y[2] = low;
}

// ---- messages through global memory: every warp but the last writes, and adds one to a flag; the last warp waits for
// the sum, locks a word, and reads. Variants say with which instructions.

#ifndef VARIANT
#define VARIANT 0
#endif
extern "C" __global__ void messages(u32* data, u32* flag, u32* lock, u32* y) {
  const u32 writers = blockDim.x / 32 - 1;
  if (warp() < writers) {
    data[threadIdx.x] = threadIdx.x + 7;
    __syncwarp();
    if (lane() == 0) {
#if VARIANT == 0
      add_release(flag);
#elif VARIANT == 1
      __threadfence();
      atomicAdd(flag, 1u);
#else
      u32 before;
      asm volatile("fence.acq_rel.gpu;" ::: "memory");
      do {
        before = *reinterpret_cast<volatile u32*>(flag);
      } while (atomicCAS(flag, before, before + 1) != before);
#endif
    }
    return;
  }
#if VARIANT == 0
  while (load_acquire(flag) != writers) {
  }
#elif VARIANT == 1
  if (lane() == 0)
    while (*reinterpret_cast<volatile u32*>(flag) != writers) __nanosleep(20);
  __threadfence();
  __syncwarp();
#else
  if (lane() == 0) {
    while (*reinterpret_cast<volatile u32*>(flag) != writers) {
    }
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
  }
  __syncwarp();
#endif
  // A lock by compare and swap, held by one lane at a time.
  for (bool done = false; !done;) {
    u32 before;
    asm volatile("atom.acquire.gpu.global.cas.b32 %0, [%1], 0, 1;" : "=r"(before) : "l"(lock) : "memory");
    if (before == 0) {
      for (u32 w = 0; w < writers; ++w) y[0] += data[w * 32 + lane()];
      asm volatile("st.release.gpu.global.u32 [%0], 0;" ::"l"(lock) : "memory");
      done = true;
    }
  }
}

#if __CUDA_ARCH__ >= 900
// ---- a cluster: each block writes into the next one in two ways, and arrives at its mbarrier

#if VARIANT == 0
#define TRY "acquire"
#else
#define TRY "relaxed"
#endif
extern "C" __global__ void clusters(const u32* x, u32* y) {
  __shared__ u32 one[64], two[64];
  __shared__ u64 full;
  const u32 rank = cluster_rank(), next = (rank + 1) % cluster_size();
  if (threadIdx.x == 0) {
    barrier_init(&full, blockDim.x / 32);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncwarp();
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  const u32 mine = x[blockIdx.x * blockDim.x + threadIdx.x];
  in_block(one, next)[threadIdx.x] = mine;
  u32 there;
  const u32 here = shared_address(two + threadIdx.x);
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(next));
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(there), "r"(mine + 1) : "memory");
  __syncwarp();
#if VARIANT == 0
  if (lane() == 0) barrier_arrive(&full, next);
#else
  if (lane() == 0) {
    asm volatile(
        "{\n\t.reg .b32 there;\n\tmapa.shared::cluster.u32 there, %0, %1;\n\tfence.acq_rel.cluster;\n\t"
        "mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [there];\n\t}" ::"r"(shared_address(&full)),
        "r"(next)
        : "memory");
  }
#endif
  u32 passed = 0;
  while (!passed)
    asm volatile(
        "{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity." TRY ".cluster.shared::cta.b64 p, [%1], 0, 10000;\n\t"
        "selp.u32 %0, 1, 0, p;\n\t}"
        : "=r"(passed)
        : "r"(shared_address(&full))
        : "memory");
#if VARIANT != 0
  asm volatile("fence.acq_rel.cluster;" ::: "memory");
#endif
  y[blockIdx.x * blockDim.x + threadIdx.x] = one[threadIdx.x ^ 32] + 1000 * two[threadIdx.x ^ 33];
  cluster_barrier();
}
#endif
