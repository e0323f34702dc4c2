#include "warp.h"

#include <cmath>
#include <cstring>

#include "numeric.h"

namespace simt {
namespace {

using namespace ptx;

template <class T>
T take(const Exchange& all, u32 lane) {
  T value;
  memcpy(&value, all.in[lane], sizeof value);
  return value;
}
template <class T>
void give(const Exchange& all, u32 lane, const T& value) {
  memcpy(all.out[lane], &value, sizeof value);
}

template <class F>
void each_lane(const Exchange& all, F f) {
  for (u32 lane = 0; lane < 32; lane++)
    if (all.mask >> lane & 1) f(lane);
}

}  // namespace

Flagged shuffle(Thread& t, char mode, u32 value, u32 b, u32 c, u32 mask, int line) {
  u32 lane = t.lane, clamp = c & 31, segments = c >> 8 & 31;
  u32 last = (lane & segments) | (clamp & ~segments & 31), first = lane & segments, from;
  bool inside;
  b &= 31;
  switch (mode) {
    case 'u':
      from = lane - b, inside = static_cast<s32>(from) >= static_cast<s32>(last);
      break;
    case 'd':
      from = lane + b, inside = from <= last;
      break;
    case 'b':
      from = lane ^ b, inside = from <= last;
      break;
    default:
      from = first | (b & ~segments), inside = from <= last;
      break;
  }
  if (!inside) from = lane;
  if (!(mask >> from & 1)) fail(t, line, "shfl reads lane %u, which is not in its mask 0x%08x", from, mask);
  struct In {
    u32 value, from;
  } in{value, from};
  struct Out {
    u32 value, present;
  } out;
  collective(
      t, mask, "shfl",
      [](const Thread&, const Exchange& all) {
        each_lane(all, [&](u32 lane) {
          u32 from = take<In>(all, lane).from;
          bool present = all.mask >> from & 1;
          give(all, lane, Out{present ? take<In>(all, from).value : 0, present});
        });
      },
      &in, sizeof in, &out, sizeof out, line);
  if (!out.present) fail(t, line, "shfl reads lane %u, which has exited or does not exist", from);
  return {out.value, inside};
}

u32 vote(Thread& t, char mode, bool predicate, u32 mask, int line) {
  struct Out {
    u32 ballot, mask;
  } out;
  collective(
      t, mask, "vote",
      [](const Thread&, const Exchange& all) {
        u32 ballot = 0;
        each_lane(all, [&](u32 lane) { ballot |= u32(take<bool>(all, lane)) << lane; });
        each_lane(all, [&](u32 lane) { give(all, lane, Out{ballot, all.mask}); });
      },
      &predicate, sizeof predicate, &out, sizeof out, line);
  switch (mode) {
    case 'b':
      return out.ballot;
    case 'a':
      return out.ballot == out.mask;
    case 'n':
      return out.ballot != 0;
    default:
      return out.ballot == 0 || out.ballot == out.mask;
  }
}

Flagged match(Thread& t, bool every, u64 value, u32 mask, int line) {
  struct Out {
    u32 equal, mask;
  } out;
  collective(
      t, mask, every ? "match.all" : "match.any",
      [](const Thread&, const Exchange& all) {
        each_lane(all, [&](u32 lane) {
          u32 equal = 0;
          each_lane(all, [&](u32 other) { equal |= u32(take<u64>(all, other) == take<u64>(all, lane)) << other; });
          give(all, lane, Out{equal, all.mask});
        });
      },
      &value, sizeof value, &out, sizeof out, line);
  if (!every) return {out.equal, true};
  bool same = out.equal == out.mask;
  return {same ? out.mask : 0, same};
}

Flagged elect(Thread& t, u32 mask, int line) {
  u32 leader;
  collective(
      t, mask, "elect",
      [](const Thread&, const Exchange& all) {
        u32 leader = static_cast<u32>(__builtin_ctz(all.mask));
        each_lane(all, [&](u32 lane) { give(all, lane, leader); });
      },
      nullptr, 0, &leader, sizeof leader, line);
  return {leader, leader == t.lane};
}

u32 reduce(Thread& t, char operation, u32 value, u32 mask, int line) {
  struct In {
    u32 value;
    char operation;
  } in{value, operation};
  u32 result;
  collective(
      t, mask, "redux",
      [](const Thread&, const Exchange& all) {
        bool first = true;
        u32 result = 0;
        each_lane(all, [&](u32 lane) {
          In one = take<In>(all, lane);
          u32 a = result, b = one.value;
          if (first) {
            result = b;
          } else {
            switch (one.operation) {
              case 'a':
                result = a + b;
                break;
              case 'm':
                result = static_cast<s32>(b) < static_cast<s32>(a) ? b : a;
                break;
              case 'M':
                result = static_cast<s32>(b) > static_cast<s32>(a) ? b : a;
                break;
              case 'n':
                result = b < a ? b : a;
                break;
              case 'x':
                result = b > a ? b : a;
                break;
              case '&':
                result = a & b;
                break;
              case '|':
                result = a | b;
                break;
              default:
                result = a ^ b;
                break;
            }
          }
          first = false;
        });
        each_lane(all, [&](u32 lane) { give(all, lane, result); });
      },
      &in, sizeof in, &result, sizeof result, line);
  return result;
}

float reduce_float(Thread& t, bool max, bool absolute, bool nan, float value, u32 mask, int line) {
  struct In {
    float value;
    bool max, nan;
  } in{absolute ? std::fabs(value) : value, max, nan};
  float result;
  collective(
      t, mask, "redux",
      [](const Thread&, const Exchange& all) {
        u32 result = 0x7fffffff;
        bool first = true;
        each_lane(all, [&](u32 lane) {
          In one = take<In>(all, lane);
          u32 b = raw(one.value);
          if (first)
            result = b;
          else if (one.nan)
            result = one.max ? max_real<f32, kNan, kNear>(result, b) : min_real<f32, kNan, kNear>(result, b);
          else
            result = one.max ? max_real<f32, 0, kNear>(result, b) : min_real<f32, 0, kNear>(result, b);
          first = false;
        });
        each_lane(all, [&](u32 lane) { give(all, lane, result); });
      },
      &in, sizeof in, &result, sizeof result, line);
  return result;
}

u32 move_matrix(Thread& t, u32 value, int line) {
  u32 result;
  whole_warp(
      t, "movmatrix",
      [](const Thread&, const Exchange& all) {
        u16 matrix[8][8];
        for (u32 lane = 0; lane < 32; lane++) memcpy(&matrix[lane / 4][lane % 4 * 2], all.in[lane], 4);
        for (u32 lane = 0; lane < 32; lane++) {
          u32 row = lane / 4, column = lane % 4 * 2;
          give(all, lane, u32(matrix[column][row]) | u32(matrix[column + 1][row]) << 16);
        }
      },
      &value, sizeof value, &result, sizeof result, line);
  return result;
}

Rows matrix_rows(Thread& t, u64 address, bool transposed, int line) {
  Rows rows;
  Combine straight = [](const Thread&, const Exchange& all) {
    each_lane(all, [&](u32 lane) {
      Rows rows{};
      for (u32 j = 0; j < 4; j++) rows.at[j] = take<u64>(all, j * 8 + lane / 4);
      give(all, lane, rows);
    });
  };
  Combine turned = [](const Thread&, const Exchange& all) {
    each_lane(all, [&](u32 lane) {
      Rows rows{};
      for (u32 j = 0; j < 4; j++)
        for (u32 h = 0; h < 2; h++) rows.at[2 * j + h] = take<u64>(all, j * 8 + lane % 4 * 2 + h);
      give(all, lane, rows);
    });
  };
  whole_warp(t, transposed ? "ldmatrix or stmatrix (trans)" : "ldmatrix or stmatrix", transposed ? turned : straight,
             &address, sizeof address, &rows, sizeof rows, line);
  return rows;
}

// ---- mma

namespace {

struct Fragments {
  u32 a[4], b[2], c[4];
  u8 element_a, element_b, k, half, saturate;
};

// How many elements of this width lie in a 32-bit register.
int per_register(Element e) { return e == kTF32 ? 1 : e == kF16 || e == kBF16 ? 2 : 4; }

template <class Number>
Number element(u32 word, int i, u8 type) {
  switch (type) {
    case kF16:
      return static_cast<Number>(static_cast<float>(as<f16>(u16(word >> 16 * i))));
    case kBF16:
      return static_cast<Number>(static_cast<float>(as<bf16>(u16(word >> 16 * i))));
    case kTF32:
      return static_cast<Number>(as<f32>(word & 0xffffe000));  // the hardware does not read the low 13 bits
    case kE4M3:
      return static_cast<Number>(from_8bit<e4m3>(u8(word >> 8 * i)));
    case kE5M2:
      return static_cast<Number>(from_8bit<e5m2>(u8(word >> 8 * i)));
    case kS8:
      return static_cast<Number>(s8(word >> 8 * i));
    default:
      return static_cast<Number>(u8(word >> 8 * i));
  }
}

// Lane 4·g + t holds: of A [16, K] rows g and g+8, of B [K, 8] and C [16, 8] column g and columns 2t, 2t+1. One
// register holds `e` neighbours along K, four lanes side by side make a group of 4·e.
template <class Number>
void multiply(const Exchange& all) {
  static Number a[16][32], b[32][8], c[16][8];
  Fragments one = take<Fragments>(all, 0);
  int k = one.k, e = per_register(static_cast<Element>(one.element_a)), groups = k / (4 * e);
  for (u32 lane = 0; lane < 32; lane++) {
    Fragments mine = take<Fragments>(all, lane);
    int g = lane >> 2, t = lane & 3;
    for (int r = 0; r < groups; r++)
      for (int i = 0; i < e; i++) {
        int column = r * 4 * e + t * e + i;
        a[g][column] = element<Number>(mine.a[2 * r], i, one.element_a);
        a[g + 8][column] = element<Number>(mine.a[2 * r + 1], i, one.element_a);
        b[column][g] = element<Number>(mine.b[r], i, one.element_b);
      }
    for (int r = 0; r < 4; r++) {
      Number& x = c[g + 8 * (r >> 1)][2 * t + (r & 1)];
      if (one.half)
        x = static_cast<Number>(static_cast<float>(as<f16>(u16(mine.c[r >> 1] >> 16 * (r & 1)))));
      else if constexpr (std::is_same_v<Number, float>)
        x = as<f32>(mine.c[r]);
      else
        x = static_cast<s32>(mine.c[r]);
    }
  }
  for (int m = 0; m < 16; m++)
    for (int i = 0; i < k; i++)
      for (int n = 0; n < 8; n++) c[m][n] += a[m][i] * b[i][n];
  for (u32 lane = 0; lane < 32; lane++) {
    int g = lane >> 2, t = lane & 3;
    Words d{};
    for (int r = 0; r < 4; r++) {
      Number x = c[g + 8 * (r >> 1)][2 * t + (r & 1)];
      if (one.half)
        d.x[r >> 1] |= u32(raw(static_cast<f16>(x))) << 16 * (r & 1);
      else if constexpr (std::is_same_v<Number, float>)
        d.x[r] = raw(static_cast<f32>(x));
      else
        d.x[r] = one.saturate ? clamp<s32>(x) : static_cast<u32>(x);
    }
    give(all, lane, d);
  }
}

}  // namespace

Words mma(Thread& t, Element a, Element b, int k, bool half_accumulators, bool saturate, int line, u32 a0, u32 a1,
          u32 a2, u32 a3, u32 b0, u32 b1, u32 c0, u32 c1, u32 c2, u32 c3) {
  Fragments in{{a0, a1, a2, a3},   {b0, b1},           {c0, c1, c2, c3},  static_cast<u8>(a),
               static_cast<u8>(b), static_cast<u8>(k), half_accumulators, saturate};
  Words out;
  whole_warp(
      t, "mma",
      [](const Thread&, const Exchange& all) {
        u8 type = take<Fragments>(all, 0).element_a;
        if (type == kS8 || type == kU8)
          multiply<s64>(all);
        else
          multiply<float>(all);
      },
      &in, sizeof in, &out, sizeof out, line);
  return out;
}

}  // namespace simt
