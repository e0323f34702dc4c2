// Any CPU: 8 lanes in 16-byte vectors, blocks of 4 vectors, which is what 16 registers hold.
#define WAVENET_ISA portable
#define WAVENET_NAME "portable"
#define WAVENET_VEC "vec_portable.inl"
#define WAVENET_LANES 8
#define WAVENET_ACCUMULATORS 4
#include "kernels.h"
#include "kernels.inl"
