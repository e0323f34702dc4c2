// The layout and logic of the 16-lane instruction sets on any CPU, so that tests reach them everywhere.
#define WAVENET_ISA portable16
#define WAVENET_NAME "portable16"
#define WAVENET_VEC "vec_portable.inl"
#define WAVENET_LANES 16
#define WAVENET_ACCUMULATORS 8
#include "kernels.h"
#include "kernels.inl"
