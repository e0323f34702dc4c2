// 64-bit ARM: NEON is part of it, so no instruction set is switched on.
#if defined(__aarch64__)
#define WAVENET_ISA neon
#define WAVENET_NAME "neon"
#define WAVENET_VEC "vec_neon.inl"
#define WAVENET_SDOT 0
#include "kernels.h"
#include <arm_neon.h>
#if defined(__clang__)
#include "kernels.inl"
#else
// GCC's first scheduling pass moves all loads of a bf16 block to its front and has no registers left for the sums.
#pragma GCC push_options
#pragma GCC optimize("no-schedule-insns")
#include "kernels.inl"
#pragma GCC pop_options
#endif
#endif
