// Number formats: what an activation becomes before it meets a weight, and how 32 bytes of inputs are multiplied.
//
// A *step* of a product is 32 bytes of inputs in every format: 8 inputs in fp32, 16 in bf16 and fp16, 32 in int8. A
// *fragment* is the weights of 16 rows for one step, 512 bytes, laid out as `packing.py` says:
// lane 4g + t's 16 bytes lie at 16·(4g + t):
//   16 bit, int8  as `multiply_bf16` wants them
//   fp32          inputs 2t and 2t + 1 of row g, and the same of row g + 8
// A step's inputs of one stream are 32 bytes in a row; see `Rows`.
#pragma once

#include "math.cuh"
#include "shape.cuh"

enum Format { kFp32, kBf16, kFp16, kInt8 };

constexpr int kStepBytes = 32;
constexpr int kFragmentBytes = 512;
constexpr int kEights = plan::N / 8;  // tiles of 8 streams, the columns of one tensor-core product

template <int FORMAT>
struct Number;

template <>
struct Number<kFp32> {
  using Operand = float;
  static DEVICE Operand operand(float x) { return x; }
  static DEVICE float value(Operand x) { return x; }
};

template <>
struct Number<kBf16> {
  using Operand = u16;
  static DEVICE Operand operand(float x) { return to_bf16(x); }
  static DEVICE float value(Operand x) { return from_bf16(x); }
  static DEVICE void multiply(float (&d)[4], const uint4& a, u32 b0, u32 b1) { multiply_bf16(d, a, b0, b1); }
};

// What is too large for half precision becomes its largest finite number.
template <>
struct Number<kFp16> {
  using Operand = u16;
  static DEVICE Operand operand(float x) { return to_fp16(clamp(x, -65504.0f, 65504.0f)); }
  static DEVICE float value(Operand x) { return from_fp16(x); }
  static DEVICE void multiply(float (&d)[4], const uint4& a, u32 b0, u32 b1) { multiply_fp16(d, a, b0, b1); }
};

// Numbers −127 … 127; a vector has one scale, by its largest value, and so has each row of weights of a tap.
template <>
struct Number<kInt8> {
  using Operand = s8;
  static DEVICE void multiply(int (&d)[4], const uint4& a, u32 b0, u32 b1) { multiply_int8(d, a, b0, b1); }
};

using Numbers = Number<plan::FORMAT>;
using Operand = Numbers::Operand;
constexpr bool kTensorCores = plan::FORMAT != kFp32, kInt = plan::FORMAT == kInt8;
constexpr int kStepInputs = kStepBytes / sizeof(Operand);

DEVICE constexpr int steps_of(int inputs) { return inputs / kStepInputs; }
DEVICE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
