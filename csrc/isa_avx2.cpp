// x86-64 with AVX2, FMA and F16C.
#if defined(__x86_64__)
#define WAVENET_ISA avx2
#define WAVENET_NAME "avx2"
#define WAVENET_VEC "vec_avx2.inl"
#include "kernels.h"
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#include "kernels.inl"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#include "kernels.inl"
#pragma GCC pop_options
#endif
#endif
