// Arithmetic of single PTX instructions. A register is an unsigned word; `raw` and `as` move between it and its typed
// value. Each helper is named after its instruction and takes the instruction's type as first template argument.
#pragma once
#include <algorithm>
#include <cfenv>
#include <cmath>
#include <limits>
#include <type_traits>

#include "simt.h"

namespace ptx {

using f32 = float;
using f64 = double;
#if defined(__aarch64__) && !defined(__clang__) && __GNUC__ < 13
using f16 = __fp16;  // _Float16 came to C++ later there
#else
using f16 = _Float16;
#endif

// To float with round-to-odd, so that rounding once more, to a narrower format, is exact.
inline float to_odd(double x) {
  float near = static_cast<float>(x);
  if (static_cast<double>(near) == x || std::isnan(x)) return near;
  u32 bits = __builtin_bit_cast(u32, near);
  if (std::fabs(static_cast<double>(near)) > std::fabs(x)) bits--;
  return __builtin_bit_cast(float, bits | 1);
}

struct bf16 {
  u16 bits;
  bf16() = default;
  explicit bf16(float x) {
    u32 b = __builtin_bit_cast(u32, x);
    bits = std::isnan(x) ? 0x7fff : static_cast<u16>((b + 0x7fff + (b >> 16 & 1)) >> 16);
  }
  explicit bf16(double x) : bf16(to_odd(x)) {}
  operator float() const { return __builtin_bit_cast(float, u32(bits) << 16); }
};

template <class T>
struct pair {
  T low, high;
};
using f16x2 = pair<f16>;
using bf16x2 = pair<bf16>;
using f32x2 = pair<f32>;
using s16x2 = pair<s16>;
using u16x2 = pair<u16>;

template <int bytes>
struct word;
template <>
struct word<1> {
  using type = u8;
};
template <>
struct word<2> {
  using type = u16;
};
template <>
struct word<4> {
  using type = u32;
};
template <>
struct word<8> {
  using type = u64;
};
template <class T>
using raw_t = typename word<sizeof(T)>::type;

template <class T>
inline raw_t<T> raw(T v) {
  return __builtin_bit_cast(raw_t<T>, v);
}
template <class T>
inline T as(raw_t<T> v) {
  return __builtin_bit_cast(T, v);
}

template <class T>
constexpr bool is_pair = false;
template <class T>
constexpr bool is_pair<pair<T>> = true;
template <class T>
constexpr bool is_real =
    std::is_same_v<T, f32> || std::is_same_v<T, f64> || std::is_same_v<T, f16> || std::is_same_v<T, bf16>;

// Modifiers of an instruction, and how it rounds.
enum Flags : unsigned { kFtz = 1, kSat = 2, kNan = 4, kRelu = 8, kAbs = 16, kXorSign = 32, kSatFinite = 64 };
enum Rounding { kNear, kZero, kDown, kUp, kAway };

inline float flush(float x) { return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.f, x) : x; }

// The type a real instruction is computed in: halves in float, where one operation rounded twice is rounded right.
template <class T>
using wide_t = std::conditional_t<std::is_same_v<T, f64>, f64, f32>;

template <class T, unsigned flags>
inline wide_t<T> in(raw_t<T> v) {
  if constexpr (std::is_same_v<T, f32> && (flags & kFtz))
    return flush(as<f32>(v));
  else
    return static_cast<wide_t<T>>(as<T>(v));
}

template <class T, unsigned flags, class W>
inline raw_t<T> out(W x) {
  if constexpr (flags & kSat) x = x > W(0) ? (x < W(1) ? x : W(1)) : W(0);  // NaN and −0 become +0
  if constexpr (flags & kRelu) x = std::isnan(x) ? x : x > W(0) ? x : W(0);
  if constexpr (std::is_same_v<T, f32>) {
    if (std::isnan(x)) return 0x7fffffffu;  // the canonical NaN of PTX
    if constexpr (flags & kFtz) x = flush(static_cast<float>(x));
  } else if constexpr (std::is_same_v<T, f16>) {
    if (std::isnan(x)) return 0x7fff;
    if constexpr (std::is_same_v<W, double>) return raw(static_cast<f16>(to_odd(x)));
  }
  return raw(static_cast<T>(x));
}

// Computes `f` under another rounding mode of the processor; volatile, because the compiler assumes to-nearest.
template <Rounding how, class F>
inline auto rounded(F f) {
  if constexpr (how == kNear) {
    return f();
  } else {
    int old = fegetround();
    fesetround(how == kZero ? FE_TOWARDZERO : how == kDown ? FE_DOWNWARD : FE_UPWARD);
    volatile auto result = f();
    fesetround(old);
    return static_cast<decltype(f())>(result);
  }
}
template <Rounding how, class W>
inline W opaque(W x) {
  if constexpr (how != kNear) asm volatile("" : "+m"(x));
  return x;
}

// ---- real arithmetic, also on packed pairs

#define WF_PAIRWISE1(name)                                                                          \
  if constexpr (is_pair<T>) {                                                                       \
    using E = decltype(T::low);                                                                     \
    T x = as<T>(a);                                                                                 \
    return raw(T{as<E>(name<E, flags, how>(raw(x.low))), as<E>(name<E, flags, how>(raw(x.high)))}); \
  } else
#define WF_PAIRWISE2(name)                                                                                            \
  if constexpr (is_pair<T>) {                                                                                         \
    using E = decltype(T::low);                                                                                       \
    T x = as<T>(a), y = as<T>(b);                                                                                     \
    return raw(                                                                                                       \
        T{as<E>(name<E, flags, how>(raw(x.low), raw(y.low))), as<E>(name<E, flags, how>(raw(x.high), raw(y.high)))}); \
  } else
#define WF_PAIRWISE3(name)                                                            \
  if constexpr (is_pair<T>) {                                                         \
    using E = decltype(T::low);                                                       \
    T x = as<T>(a), y = as<T>(b), z = as<T>(c);                                       \
    return raw(T{as<E>(name<E, flags, how>(raw(x.low), raw(y.low), raw(z.low))),      \
                 as<E>(name<E, flags, how>(raw(x.high), raw(y.high), raw(z.high)))}); \
  } else

#define WF_REAL2(name, expression)                                             \
  template <class T, unsigned flags, Rounding how>                             \
  inline raw_t<T> name(raw_t<T> a, raw_t<T> b) {                               \
    WF_PAIRWISE2(name) {                                                       \
      auto x = opaque<how>(in<T, flags>(a)), y = opaque<how>(in<T, flags>(b)); \
      return out<T, flags>(rounded<how>([&] { return expression; }));          \
    }                                                                          \
  }
#define WF_REAL1(name, expression)                                    \
  template <class T, unsigned flags, Rounding how>                    \
  inline raw_t<T> name(raw_t<T> a) {                                  \
    WF_PAIRWISE1(name) {                                              \
      auto x = opaque<how>(in<T, flags>(a));                          \
      return out<T, flags>(rounded<how>([&] { return expression; })); \
    }                                                                 \
  }

WF_REAL2(add_real, x + y)
WF_REAL2(sub_real, x - y)
WF_REAL2(mul_real, x* y)
WF_REAL2(div_real, x / y)
WF_REAL1(sqrt_real, std::sqrt(x))
WF_REAL1(rcp_real, 1 / x)
WF_REAL1(rsqrt_real, 1 / std::sqrt(x))
WF_REAL1(ex2_real, std::exp2(x))
WF_REAL1(lg2_real, std::log2(x))
WF_REAL1(sin_real, std::sin(x))
WF_REAL1(cos_real, std::cos(x))
WF_REAL1(tanh_real, std::tanh(x))

template <class T, unsigned flags, Rounding how>
inline raw_t<T> fma_real(raw_t<T> a, raw_t<T> b, raw_t<T> c) {
  WF_PAIRWISE3(fma_real) if constexpr (std::is_same_v<T, f16> || std::is_same_v<T, bf16>) {
    return out<T, flags>(std::fma(double(as<T>(a)), double(as<T>(b)), double(as<T>(c))));
  }
  else {
    auto x = opaque<how>(in<T, flags>(a)), y = opaque<how>(in<T, flags>(b)), z = opaque<how>(in<T, flags>(c));
    return out<T, flags>(rounded<how>([&] { return std::fma(x, y, z); }));
  }
}

// Sign operations touch the sign bit only, also of a NaN.
template <class T>
constexpr raw_t<T> kSign = raw_t<T>(raw_t<T>(1) << (8 * sizeof(T) - 1));
template <class T, unsigned flags, Rounding how>
inline raw_t<T> neg_real(raw_t<T> a) {
  WF_PAIRWISE1(neg_real) {
    if constexpr (flags & kFtz) a = raw(flush(as<f32>(a)));
    return a ^ kSign<T>;
  }
}
template <class T, unsigned flags, Rounding how>
inline raw_t<T> abs_real(raw_t<T> a) {
  WF_PAIRWISE1(abs_real) {
    if constexpr (flags & kFtz) a = raw(flush(as<f32>(a)));
    return a & raw_t<T>(~kSign<T>);
  }
}
template <class T, unsigned flags, Rounding how>
inline raw_t<T> copysign_real(raw_t<T> a, raw_t<T> b) {
  return (b & raw_t<T>(~kSign<T>)) | (a & kSign<T>);  // the sign of a, the rest of b
}

template <class T, unsigned flags, Rounding how, bool larger>
inline raw_t<T> extreme(raw_t<T> a, raw_t<T> b) {
  if constexpr (flags & kFtz) a = raw(flush(as<f32>(a))), b = raw(flush(as<f32>(b)));
  raw_t<T> sign = (a ^ b) & kSign<T>;
  if constexpr (flags & kXorSign) a &= raw_t<T>(~kSign<T>), b &= raw_t<T>(~kSign<T>);
  auto x = static_cast<wide_t<T>>(as<T>(a)), y = static_cast<wide_t<T>>(as<T>(b));
  raw_t<T> nan = sizeof(T) == 2   ? raw_t<T>(0x7fff)
                 : sizeof(T) == 4 ? raw_t<T>(0x7fffffff)
                                  : raw_t<T>(0x7fffffffffffffff);
  raw_t<T> result;
  if (std::isnan(x) || std::isnan(y)) {
    result = (flags & kNan) || (std::isnan(x) && std::isnan(y)) ? nan : std::isnan(x) ? b : a;
    if (result == nan) return nan;
  } else if (x == y) {  // +0 is larger than −0
    result = larger ? (std::signbit(x) ? b : a) : (std::signbit(x) ? a : b);
  } else {
    result = (x > y) == larger ? a : b;
  }
  if constexpr (flags & kXorSign) result |= sign;
  return result;
}
template <class T, unsigned flags, Rounding how>
inline raw_t<T> min_real(raw_t<T> a, raw_t<T> b) {
  WF_PAIRWISE2(min_real) return extreme<T, flags, how, false>(a, b);
}
template <class T, unsigned flags, Rounding how>
inline raw_t<T> max_real(raw_t<T> a, raw_t<T> b) {
  WF_PAIRWISE2(max_real) return extreme<T, flags, how, true>(a, b);
}
template <class T, unsigned flags, Rounding how>
inline raw_t<T> min3_real(raw_t<T> a, raw_t<T> b, raw_t<T> c) {
  return min_real<T, flags, how>(min_real<T, flags, how>(a, b), c);
}
template <class T, unsigned flags, Rounding how>
inline raw_t<T> max3_real(raw_t<T> a, raw_t<T> b, raw_t<T> c) {
  return max_real<T, flags, how>(max_real<T, flags, how>(a, b), c);
}

// testp: 'f'inite, 'i'nfinite, 'n'umber, 'N'ot a number, 's'ubnormal, 'o' normal
template <class T>
inline bool testp(char what, raw_t<T> a) {
  auto x = as<T>(a);
  switch (what) {
    case 'f':
      return std::isfinite(x);
    case 'i':
      return std::isinf(x);
    case 'n':
      return !std::isnan(x);
    case 'N':
      return std::isnan(x);
    case 's':
      return x != 0 && std::fabs(x) < std::numeric_limits<T>::min();
    default:
      return std::isnormal(x);
  }
}

// ---- integers: wrap-around in unsigned words, so that nothing is undefined

template <class T>
inline raw_t<T> add(raw_t<T> a, raw_t<T> b) {
  return raw_t<T>(a + b);
}
template <class T>
inline raw_t<T> sub(raw_t<T> a, raw_t<T> b) {
  return raw_t<T>(a - b);
}
template <class T>
inline raw_t<T> mul_lo(raw_t<T> a, raw_t<T> b) {
  return raw_t<T>(u64(a) * u64(b));
}
template <class T>
inline raw_t<T> neg(raw_t<T> a) {
  return raw_t<T>(0 - a);
}
template <class T>
inline raw_t<T> abs(raw_t<T> a) {
  return as<T>(a) < 0 ? raw_t<T>(0 - a) : a;
}
template <class T>
inline raw_t<T> min(raw_t<T> a, raw_t<T> b) {
  return as<T>(a) < as<T>(b) ? a : b;
}
template <class T>
inline raw_t<T> max(raw_t<T> a, raw_t<T> b) {
  return as<T>(a) > as<T>(b) ? a : b;
}

// Two whole numbers in a word, each on its own.
template <raw_t<u16> (*f)(raw_t<u16>, raw_t<u16>)>
inline u32 halves(u32 a, u32 b) {
  return u32(f(static_cast<u16>(a), static_cast<u16>(b))) | u32(f(static_cast<u16>(a >> 16), static_cast<u16>(b >> 16)))
                                                                << 16;
}

template <class T>
inline raw_t<T> clamp(__int128 x) {
  __int128 low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
  return raw(static_cast<T>(x < low ? low : x > high ? high : x));
}
template <class T>
inline raw_t<T> add_sat(raw_t<T> a, raw_t<T> b) {
  return clamp<T>(__int128(as<T>(a)) + as<T>(b));
}
template <class T>
inline raw_t<T> sub_sat(raw_t<T> a, raw_t<T> b) {
  return clamp<T>(__int128(as<T>(a)) - as<T>(b));
}

// Division by zero is unspecified in PTX; processors of NVIDIA give all ones.
template <class T>
inline raw_t<T> div(raw_t<T> a, raw_t<T> b) {
  if (!b) return raw_t<T>(~raw_t<T>(0));
  if (std::is_signed_v<T> && b == raw_t<T>(~raw_t<T>(0))) return raw_t<T>(0 - a);
  return raw(static_cast<T>(as<T>(a) / as<T>(b)));
}
template <class T>
inline raw_t<T> rem(raw_t<T> a, raw_t<T> b) {
  if (!b) return a;
  if (std::is_signed_v<T> && b == raw_t<T>(~raw_t<T>(0))) return 0;
  return raw(static_cast<T>(as<T>(a) % as<T>(b)));
}

template <class T>
struct twice;
template <>
struct twice<u16> {
  using type = u32;
};
template <>
struct twice<s16> {
  using type = s32;
};
template <>
struct twice<u32> {
  using type = u64;
};
template <>
struct twice<s32> {
  using type = s64;
};
template <>
struct twice<u64> {
  using type = unsigned __int128;
};
template <>
struct twice<s64> {
  using type = __int128;
};
template <class T>
inline auto product(raw_t<T> a, raw_t<T> b) {
  using W = typename twice<T>::type;
  return static_cast<W>(as<T>(a)) * static_cast<W>(as<T>(b));
}
template <class T>
inline raw_t<T> mul_hi(raw_t<T> a, raw_t<T> b) {
  return raw_t<T>(product<T>(a, b) >> 8 * sizeof(T));
}
template <class T>
inline raw_t<typename twice<T>::type> mul_wide(raw_t<T> a, raw_t<T> b) {
  return static_cast<raw_t<typename twice<T>::type>>(product<T>(a, b));
}
template <class T>
inline raw_t<T> mad_lo(raw_t<T> a, raw_t<T> b, raw_t<T> c) {
  return raw_t<T>(mul_lo<T>(a, b) + c);
}
template <class T>
inline raw_t<T> mad_hi(raw_t<T> a, raw_t<T> b, raw_t<T> c) {
  return raw_t<T>(mul_hi<T>(a, b) + c);
}
template <class T>
inline auto mad_wide(raw_t<T> a, raw_t<T> b, raw_t<typename twice<T>::type> c) {
  return mul_wide<T>(a, b) + c;
}
template <class T>
inline u64 product24(u32 a, u32 b) {
  if constexpr (std::is_signed_v<T>)
    return u64(s64(s32(a << 8) >> 8) * s64(s32(b << 8) >> 8));
  else
    return u64(a & 0xffffff) * (b & 0xffffff);
}
template <class T>
inline u32 mul24_lo(u32 a, u32 b) {
  return u32(product24<T>(a, b));
}
template <class T>
inline u32 mul24_hi(u32 a, u32 b) {
  return u32(product24<T>(a, b) >> 16);
}
template <class T>
inline u32 mad24_lo(u32 a, u32 b, u32 c) {
  return u32(product24<T>(a, b)) + c;
}
template <class T>
inline u32 mad24_hi(u32 a, u32 b, u32 c) {
  return u32(product24<T>(a, b) >> 16) + c;
}
template <class T>
inline raw_t<T> sad(raw_t<T> a, raw_t<T> b, raw_t<T> c) {
  return raw_t<T>(c + (as<T>(a) > as<T>(b) ? a - b : b - a));
}

// With a carry in and out (CC.CF). A subtraction is an addition of the complement: its carry means that nothing was
// borrowed, which compilers rely on where they ask for it with addc.
template <class T>
inline raw_t<T> add_carry(raw_t<T> a, raw_t<T> b, bool in, bool* carry) {
  raw_t<T> partial = raw_t<T>(a + b), sum = raw_t<T>(partial + in);
  if (carry) *carry = partial < a || sum < partial;
  return sum;
}
template <class T>
inline raw_t<T> sub_carry(raw_t<T> a, raw_t<T> b, bool in, bool* carry) {
  return add_carry<T>(a, raw_t<T>(~b), in, carry);
}

template <class T>
inline raw_t<T> shl(raw_t<T> a, u32 n) {
  return n >= 8 * sizeof(T) ? 0 : raw_t<T>(a << n);
}
template <class T>
inline raw_t<T> shr(raw_t<T> a, u32 n) {
  constexpr u32 width = 8 * sizeof(T);
  if (std::is_signed_v<T>) return raw(static_cast<T>(as<T>(a) >> (n < width ? n : width - 1)));
  return n >= width ? 0 : raw_t<T>(a >> n);
}
inline u32 funnel_left(u32 a, u32 b, u32 n) { return u32((u64(b) << 32 | a) << n >> 32); }
inline u32 funnel_right(u32 a, u32 b, u32 n) { return u32((u64(b) << 32 | a) >> n); }
inline u32 at_most_32(u32 n) { return n < 32 ? n : 32; }

template <class T>
inline u32 popc(raw_t<T> a) {
  return u32(__builtin_popcountll(a));
}
template <class T>
inline u32 clz(raw_t<T> a) {
  return a ? u32(__builtin_clzll(a)) - (64 - 8 * u32(sizeof(T))) : 8 * u32(sizeof(T));
}
template <class T>
inline raw_t<T> brev(raw_t<T> a) {
  raw_t<T> r = 0;
  for (u32 i = 0; i < 8 * sizeof(T); i++) r |= (a >> i & 1) << (8 * sizeof(T) - 1 - i);
  return r;
}
// Position of the highest bit that differs from the sign, or ~0; with shift amount: distance from the top.
template <class T>
inline u32 bfind(raw_t<T> a, bool shift) {
  if (std::is_signed_v<T> && as<T>(a) < 0) a = raw_t<T>(~a);
  if (!a) return ~0u;
  u32 position = 63 - u32(__builtin_clzll(a));
  return shift ? 8 * u32(sizeof(T)) - 1 - position : position;
}
// fns: the n-th set bit of mask from position `base`, upwards (n > 0) or downwards
inline u32 fns(u32 mask, u32 base, s32 n) {
  s32 step = n < 0 ? -1 : 1, left = n == 0 ? 1 : n < 0 ? -n : n;
  if (n == 0) return mask >> (base & 31) & 1 ? base & 31 : ~0u;
  for (s32 i = s32(base & 31); i >= 0 && i < 32; i += step)
    if (mask >> i & 1 && !--left) return u32(i);
  return ~0u;
}
template <class T>
inline raw_t<T> bfe(raw_t<T> a, u32 position, u32 length) {
  constexpr u32 width = 8 * sizeof(T);
  position &= 255, length &= 255;
  bool negative =
      std::is_signed_v<T> && length && a >> (position + length - 1 < width - 1 ? position + length - 1 : width - 1) & 1;
  raw_t<T> r = 0;
  for (u32 i = 0; i < width; i++)
    r |= raw_t<T>(i < length && position + i < width ? a >> (position + i) & 1 : negative) << i;
  return r;
}
template <class T>
inline raw_t<T> bfi(raw_t<T> a, raw_t<T> b, u32 position, u32 length) {
  constexpr u32 width = 8 * sizeof(T);
  position &= 255, length &= 255;
  if (position >= width || !length) return b;
  raw_t<T> mask =
      raw_t<T>((length >= width ? raw_t<T>(~raw_t<T>(0)) : raw_t<T>((raw_t<T>(1) << length) - 1)) << position);
  return (b & raw_t<T>(~mask)) | (raw_t<T>(a << position) & mask);
}
inline u32 bmsk(u32 position, u32 length, bool wrap) {
  if (wrap) position &= 31, length &= 31;
  u32 r = 0;
  for (u32 i = 0; i < 32; i++) r |= u32(i >= position && i - position < length) << i;
  return r;
}
inline u32 lop3(u32 a, u32 b, u32 c, u32 table) {
  u32 r = 0;
  for (u32 i = 0; i < 8; i++)
    if (table >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return r;
}
// prmt: mode 0 takes four selectors, the others (f4e b4e rc8 ecl ecr rc16 as 1 … 6) one.
inline u32 prmt(u32 a, u32 b, u32 selector, int mode) {
  u64 bytes = u64(b) << 32 | a;
  u32 s = selector & 3;
  switch (mode) {
    case 1:
      selector = 0x3210 + 0x1111 * s;
      break;
    case 2:
      selector = (s & 7) | ((s - 1) & 7) << 4 | ((s - 2) & 7) << 8 | ((s - 3) & 7) << 12;
      break;
    case 3:
      selector = 0x1111 * s;
      break;
    case 4:
      selector = (s > 0 ? s : 0) | (s > 1 ? s : 1) << 4 | (s > 2 ? s : 2) << 8 | 3 << 12;
      break;
    case 5:
      selector = 0 | (s < 1 ? s : 1) << 4 | (s < 2 ? s : 2) << 8 | (s < 3 ? s : 3) << 12;
      break;
    case 6:
      selector = s & 1 ? 0x3232 : 0x1010;
      break;
    default:
      break;
  }
  u32 r = 0;
  for (int i = 0; i < 4; i++) {
    u32 pick = selector >> 4 * i & 15, byte = bytes >> 8 * (pick & 7) & 255;
    if (pick & 8) byte = byte & 128 ? 255 : 0;
    r |= byte << 8 * i;
  }
  return r;
}
template <class A, class B>
inline u32 dp4a(u32 a, u32 b, u32 c) {
  for (int i = 0; i < 4; i++) {
    s64 x = std::is_signed_v<A> ? s64(s8(a >> 8 * i)) : s64(u8(a >> 8 * i));
    s64 y = std::is_signed_v<B> ? s64(s8(b >> 8 * i)) : s64(u8(b >> 8 * i));
    c += u32(x * y);
  }
  return c;
}
template <class A, class B>
inline u32 dp2a(u32 a, u32 b, u32 c, bool high) {
  for (int i = 0; i < 2; i++) {
    s64 x = std::is_signed_v<A> ? s64(s16(a >> 16 * i)) : s64(u16(a >> 16 * i));
    u32 byte = b >> 8 * (i + 2 * high);
    s64 y = std::is_signed_v<B> ? s64(s8(byte)) : s64(u8(byte));
    c += u32(x * y);
  }
  return c;
}

// ---- comparison: eq ne lt le gt ge, and for reals their unordered forms, num and nan

enum Compare { kEq, kNe, kLt, kLe, kGt, kGe, kEqu, kNeu, kLtu, kLeu, kGtu, kGeu, kNum, kIsNan };
template <class T, Compare how, unsigned flags = 0>
inline bool compare(raw_t<T> a, raw_t<T> b) {
  if constexpr (is_real<T>) {
    auto x = in<T, flags>(a), y = in<T, flags>(b);
    bool unordered = std::isnan(x) || std::isnan(y);
    if constexpr (how == kNum) return !unordered;
    if constexpr (how == kIsNan) return unordered;
    if (unordered) return how >= kEqu;
    constexpr int base = how % kEqu;
    return base == kEq   ? x == y
           : base == kNe ? x != y
           : base == kLt ? x < y
           : base == kLe ? x <= y
           : base == kGt ? x > y
                         : x >= y;
  } else {
    T x = as<T>(a), y = as<T>(b);
    return how == kEq   ? x == y
           : how == kNe ? x != y
           : how == kLt ? x < y
           : how == kLe ? x <= y
           : how == kGt ? x > y
                        : x >= y;
  }
}

// ---- conversion

// To a half format in any rounding: to nearest, then one step back where that went the wrong way.
template <class H, Rounding how>
inline u16 to_half(float x) {
  if (std::isnan(x)) return 0x7fff;
  u16 near = raw(static_cast<H>(x));
  float got = static_cast<float>(as<H>(near));
  bool too_large = std::fabs(got) > std::fabs(x), too_small = std::fabs(got) < std::fabs(x), negative = std::signbit(x);
  if (how == kZero || (how == kDown && !negative) || (how == kUp && negative)) return too_large ? u16(near - 1) : near;
  if (how == kDown || how == kUp) return too_small ? u16(near + 1) : near;
  return near;
}
inline u32 to_tf32(float x, Rounding how, bool relu) {
  if (std::isnan(x)) return 0x7fffffff;
  if (relu && x < 0) x = 0;
  u32 b = __builtin_bit_cast(u32, x);
  if (std::isinf(x)) return b;
  if (how == kAway) b += 0x1000;
  if (how == kNear) b += 0xfff + (b >> 13 & 1);
  return b & 0xffffe000;
}

// The 8-bit formats: e4m3 (no infinity; NaN is all ones) and e5m2 (the upper half of an f16).
struct e4m3 {
  static constexpr int mantissa = 3, lowest = -6;
  static constexpr double largest = 448;
};
struct e5m2 {
  static constexpr int mantissa = 2, lowest = -14;
  static constexpr double largest = 57344;
};
// To the nearest, even on ties; what is too large, and infinity, become the largest (.satfinite).
template <class F>
inline u32 to_8bit(float x, bool relu) {
  if (std::isnan(x)) return 0x7f;
  if (relu && !(x > 0)) x = 0;
  u32 sign = std::signbit(x) ? 0x80 : 0;
  double size = std::fmin(std::fabs(double(x)), F::largest);
  if (size == 0) return sign;
  int exponent = std::max(std::ilogb(size), F::lowest);
  auto steps = u32(std::nearbyint(std::ldexp(size, F::mantissa - exponent)));
  // Steps of the exponent's range continue the code below it: a carry, and a subnormal number, come out right.
  return sign | (u32(exponent - F::lowest) * (1u << F::mantissa) + steps);
}
template <class F>
inline float from_8bit(u8 code) {
  u32 exponent = (code & 0x7fu) >> F::mantissa, rest = code & ((1u << F::mantissa) - 1);
  float sign = code & 0x80 ? -1.f : 1.f;
  if (std::is_same_v<F, e4m3> ? (code & 0x7f) == 0x7f : (code & 0x7f) > 0x7c) return std::nanf("");
  if (std::is_same_v<F, e5m2> && (code & 0x7f) == 0x7c) return sign * std::numeric_limits<float>::infinity();
  if (!exponent) return sign * std::ldexp(float(rest), F::lowest - F::mantissa);
  return sign * std::ldexp(float(rest + (1u << F::mantissa)), int(exponent) - 1 + F::lowest - F::mantissa);
}
template <class F>
inline u16 to_8bit_pair(float high, float low, bool relu) {
  return u16(to_8bit<F>(high, relu) << 8 | to_8bit<F>(low, relu));
}
template <class F>
inline u32 from_8bit_pair(u16 codes, bool relu) {
  auto half = [&](u8 code) {
    float x = from_8bit<F>(code);
    return u32(raw(static_cast<f16>(relu && !(x > 0) && !std::isnan(x) ? 0.f : x)));
  };
  return half(u8(codes >> 8)) << 16 | half(u8(codes));
}

template <class T, Rounding how, class W>
inline W to_whole(W x) {
  if constexpr (how == kNear)
    return std::nearbyint(x);
  else if constexpr (how == kZero)
    return std::trunc(x);
  else if constexpr (how == kDown)
    return std::floor(x);
  else
    return std::ceil(x);
}

template <class D, unsigned flags, Rounding how, class W>
inline raw_t<D> narrow(W x) {
  if constexpr (flags & kSat) x = x > W(0) ? (x < W(1) ? x : W(1)) : W(0);  // NaN and −0 become +0
  if constexpr (flags & kRelu) x = std::isnan(x) ? x : x > W(0) ? x : W(0);
  raw_t<D> result;
  if constexpr (std::is_same_v<D, f16> || std::is_same_v<D, bf16>) {
    float narrow = std::is_same_v<W, double> ? to_odd(x) : static_cast<float>(x);
    result = to_half<D, how>(narrow);
    constexpr u16 infinity = std::is_same_v<D, f16> ? 0x7c00 : 0x7f80;
    if constexpr (flags & kSatFinite)
      if ((result & 0x7fff) == infinity) result = u16((result & 0x8000) | (infinity - 1));
    return result;
  } else {
    W held = opaque<how>(x);
    D value = rounded<how>([&] { return static_cast<D>(held); });
    return out<D, flags & kFtz>(value);
  }
}

// From `S` to `D`: `whole` says that a rounding to a whole number was asked for (.rni and so on).
template <class D, class S, unsigned flags, Rounding how, bool whole>
inline raw_t<D> convert(raw_t<S> a) {
  if constexpr (is_real<S> && is_real<D>) {
    auto x = in<S, flags>(a);
    if constexpr (whole) x = to_whole<D, how>(x);
    return narrow<D, flags, whole ? kNear : how>(x);
  } else if constexpr (is_real<S>) {
    double x = static_cast<double>(in<S, flags>(a));
    if (std::isnan(x))
      return std::is_same_v<S, f64> || sizeof(D) == 8 ? raw_t<D>(raw_t<D>(1) << (8 * sizeof(D) - 1)) : raw_t<D>(0);
    x = to_whole<D, how>(x);
    D low = std::numeric_limits<D>::min(), high = std::numeric_limits<D>::max();
    return raw(x <= static_cast<double>(low) ? low : x >= static_cast<double>(high) ? high : static_cast<D>(x));
  } else if constexpr (is_real<D>) {
    if constexpr (std::is_same_v<D, f16> || std::is_same_v<D, bf16>) {
      return narrow<D, flags, how>(static_cast<double>(as<S>(a)));
    } else {
      S held = opaque<how>(as<S>(a));
      return out<D, flags>(rounded<how>([&] { return static_cast<D>(held); }));
    }
  } else {
    if constexpr (flags & kSat) return clamp<D>(as<S>(a));
    return raw(static_cast<D>(as<S>(a)));
  }
}

}  // namespace ptx
