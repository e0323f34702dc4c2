// 64-bit ARM with its int8 dot product, an option from ARMv8.2 on.
#if defined(__aarch64__)
#define WAVENET_ISA neondot
#define WAVENET_NAME "neondot"
#define WAVENET_VEC "vec_neon.inl"
#define WAVENET_SDOT 1
#include "kernels.h"
#include <arm_neon.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#include "kernels.inl"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#pragma GCC optimize("no-schedule-insns")  // as in isa_neon.cpp
#include "kernels.inl"
#pragma GCC pop_options
#endif
#endif
