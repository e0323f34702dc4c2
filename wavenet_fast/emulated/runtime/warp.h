// Instructions that a warp executes together.
#pragma once
#include "simt.h"

namespace simt {

struct Words {
  u32 x[4];
};
struct Flagged {
  u32 value;
  bool flag;
};

// shfl.sync: mode 'u'p, 'd'own, 'b'utterfly or 'i'dx; the flag says whether the source lane was in range.
Flagged shuffle(Thread&, char mode, u32 value, u32 b, u32 c, u32 mask, int line);
// vote.sync: 'b'allot, 'a'll, a'n'y, 'u'ni
u32 vote(Thread&, char mode, bool predicate, u32 mask, int line);
// match.any.sync / match.all.sync
Flagged match(Thread&, bool all, u64 value, u32 mask, int line);
Flagged elect(Thread&, u32 mask, int line);
// redux.sync: 'a'dd, 'm'in, 'M'ax (signed); 'n', 'x' (unsigned min and max); '&', '|', '^'
u32 reduce(Thread&, char operation, u32 value, u32 mask, int line);
float reduce_float(Thread&, bool max, bool absolute, bool nan, float value, u32 mask, int line);
// movmatrix.sync.trans
u32 move_matrix(Thread&, u32 value, int line);

// Shared-memory addresses of the rows that this lane reads or writes: of matrix j, row lane/4; transposed: rows
// 2·(lane%4) and the next.
struct Rows {
  u64 at[8];
};
Rows matrix_rows(Thread&, u64 address, bool transposed, int line);

// mma.sync m16n8kK.row.col: fragments as in the PTX manual ("Matrix fragments for mma.m16n8k8" and following).
enum Element { kF16, kBF16, kTF32, kS8, kU8, kE4M3, kE5M2 };
Words mma(Thread&, Element a, Element b, int k, bool half_accumulators, bool saturate, int line, u32 a0, u32 a1, u32 a2,
          u32 a3, u32 b0, u32 b1, u32 c0, u32 c1, u32 c2, u32 c3);

}  // namespace simt
