// The kernels of one instruction set: included once per ISA, inside `namespace wavenet::<isa>` and inside that ISA's
// target region, after one of the vec_*.inl files, which define (kLanes lanes of 32 bits):
//
//   Floats, Words            a vector of float / uint32_t;  bits(), floats() reinterpret one as the other
//   splat, load, store       unaligned;  splat_word, load_words
//   add sub mul div fma      fma(a, b, c) = a·b + c
//   quotient                 a / b to within 1e-7 of it, for 1 ≤ b < 1e38
//   max, min                 max(a, b) = a > b ? a : b, so that a NaN in `a` yields b
//   highest, sum             the largest lane; all lanes added, halves onto halves
//   bit_and, shift_left<n>, shift_right<n>, add (Words)
//   convert                  Words as int32 → Floats
//   load_halves              kLanes fp16 numbers → Floats, exactly
//   store_low_halves, store_low_bytes   the low 16 or 8 bits of every word, in order
//   store_bf16               rounded to nearest, ties to even; only where WAVENET_DPBF16 says that the set can itself
//   dot_pair(acc, w, x)      acc + the products of both bf16 halves of w and x, in an order of the ISA's own
//   Quads, splat_quad        four int8 operands in every lane, made ready for:
//   dot_quad(acc, w, x)      acc + the four products of the int8 bytes of w and x, exact in int32
//   kUnsignedQuads           whether dot_quad takes x + 128 for x, so that sums must begin at −128 · Σ w
//   kAccumulators, kStreams  vectors of rows that one stream keeps in registers; streams worked on together, with half
//                            as many vectors each
//
// With WAVENET_TILES, bf16 and int8 products run on AMX tiles.
// No STL code that stays out of line is instantiated below: a template of the standard library compiled in a target
// region would carry its instructions into code shared with other ISAs.

#ifndef WAVENET_DPBF16
#define WAVENET_DPBF16 0
#endif
#ifndef WAVENET_TILES
#define WAVENET_TILES 0
#endif
#define WAVENET_INLINE inline __attribute__((always_inline))

namespace wavenet {
namespace WAVENET_ISA {

#include WAVENET_VEC
#include "math.inl"
#include "formats.inl"
#include "products.inl"

// Vectors of rows that tiles work on together. Two sums are enough, for products into the same tile follow each other
// without a pause, and the fewer sums are stored at a time, the better their stores hide behind products.
constexpr int kTileVectors = 2;
template <class F>
constexpr bool kTiled = WAVENET_TILES && (F::kNumber == Number::bf16 || F::kNumber == Number::int8);
#if WAVENET_TILES
#include "tiles.inl"
#else
struct Tiles {
  void serve(int) {}
};
#endif

// out[b] (+)= Σ_s W[s]·x[b][s] for n streams, the rows of `vectors` and the segments of `segments`.
template <class F>
static void multiply(const Matrix& m, const Layout& layout, Range vectors, Range segments, const Operands<F>& x,
                     int64_t n, Sums out) {
#if WAVENET_TILES
  if constexpr (kTiled<F>) return multiply_by_tiles(m, layout, vectors, segments, x, n, out);
#endif
  multiply_by_vectors<F>(m, layout, vectors, segments, x, n, out);
}

#include "conditioning.inl"
#include "sample.inl"
#include "older_taps.inl"
#include "step.inl"
#include "bandwidth.inl"
#include "stages.inl"

#if WAVENET_TILES
#define WAVENET_NARROW(run, pack) {kLanes, kTileVectors, run, pack}
#define WAVENET_READ_TILES read_tiles
#else
#define WAVENET_READ_TILES nullptr
#define WAVENET_NARROW(run, pack) {kLanes, kAccumulators, pack, pack}
#endif

extern const Kernels kernels;
const Kernels kernels = {
    WAVENET_NAME,
    {{kLanes, kAccumulators, 1, 1}, WAVENET_NARROW(32, 2), {kLanes, kAccumulators, 1, 1}, WAVENET_NARROW(64, 4)},
    generate,
    gate_array,
    exponential_array,
    read_vectors,
    WAVENET_READ_TILES,
    run_stage,
};

}  // namespace WAVENET_ISA
}  // namespace wavenet
