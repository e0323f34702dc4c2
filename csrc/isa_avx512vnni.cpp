// x86-64 with AVX-512 and its int8 dot product.
#if defined(__x86_64__)
#define WAVENET_ISA avx512vnni
#define WAVENET_NAME "avx512vnni"
#define WAVENET_VEC "vec_avx512.inl"
#define WAVENET_DPBF16 0
#define WAVENET_VNNI 1
#include "kernels.h"
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"))), \
                             apply_to = function)
#include "kernels.inl"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#include "kernels.inl"
#pragma GCC pop_options
#endif
#endif
