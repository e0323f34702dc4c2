// The kernels of one instruction set: included once per ISA, inside `namespace wavenet::<isa>` and inside that ISA's
// target region, after one of the vec_*.inl files, which define (kLanes lanes of 32 bits):
//
//   Floats, Words            a vector of float / uint32_t;  bits(), floats() reinterpret one as the other
//   splat, load, store       unaligned;  splat_word, load_words
//   add sub mul div fma      fma(a, b, c) = a·b + c
//   max, min                 max(a, b) = a > b ? a : b, so that a NaN in `a` yields b
//   bit_and, shift_left<n>, shift_right<n>, add (Words)
//   store_low_halves         the low 16 bits of every word, in order
//   dot_pair(acc, w, x)      acc + the products of both bf16 halves of w and x, in an order of the ISA's own
//
// No STL code that stays out of line is instantiated below: a template of the standard library compiled in a target
// region would carry its instructions into code shared with other ISAs.

#define WAVENET_INLINE static inline __attribute__((always_inline))

namespace wavenet {
namespace WAVENET_ISA {

#include WAVENET_VEC
#include "math.inl"
#include "matvec.inl"
#include "conditioning.inl"
#include "sample.inl"
#include "step.inl"
#include "bandwidth.inl"

extern const Kernels kernels;
const Kernels kernels = {WAVENET_NAME, {kLanes, kAccumulators}, generate, gate_array, exponential_array, read_bytes};

}  // namespace WAVENET_ISA
}  // namespace wavenet
