// The reading half of a product and nothing else: how fast this instruction set's loads can stream bytes.

// Loads each of the `bytes` bytes at p, in order, `times` times over. The result, their sum in words where a vector
// fits and in bytes at the end, depends on all of them, so that no compiler can leave one out.
static uint64_t read_vectors(const void* p, int64_t bytes, int64_t times) {
  constexpr int kSums = 8;  // none waits for the addition before it
  constexpr int64_t kVector = sizeof(Words), kBlock = kSums * kVector;
  Words sums[kSums];
#pragma GCC unroll 8
  for (int i = 0; i < kSums; ++i) sums[i] = splat_word(0);
  uint64_t rest = 0;
  for (int64_t n = 0; n < times; ++n) {
    const char* at = static_cast<const char*>(p);
    const char* end = at + bytes;
    // Memory may have changed since the last pass, for all that the compiler knows: every pass loads again.
    __asm__ volatile("" : "+r"(at) : : "memory");
    for (; end - at >= kBlock; at += kBlock) {
#pragma GCC unroll 8
      for (int i = 0; i < kSums; ++i) sums[i] = add(sums[i], load_words(at + i * kVector));
    }
    for (; end - at >= kVector; at += kVector) sums[0] = add(sums[0], load_words(at));
    for (; at < end; ++at) rest += static_cast<unsigned char>(*at);
  }
  for (int i = 1; i < kSums; ++i) sums[0] = add(sums[0], sums[i]);
  uint32_t lanes[kLanes];
  __builtin_memcpy(lanes, &sums[0], sizeof lanes);
  for (int i = 0; i < kLanes; ++i) rest += lanes[i];
  return rest;
}

#if WAVENET_TILES
#define WAVENET_TILE_READ(sum, weights, from)                 \
  do {                                                        \
    WAVENET_TILE_LOAD(weights, from, kTileRow);               \
    if constexpr (kSum) WAVENET_TILE_DOT(Int8, sum, weights); \
  } while (0)

// Blocks of four tiles from `at` to `end`, in order; with kSum, each met by the row of ones in tile 4.
template <bool kSum>
static void read_blocks(const char* at, const char* end) {
  for (; at < end; at += 4 * kTileBytes) {
    WAVENET_TILE_READ(0, 5, at);
    WAVENET_TILE_READ(1, 6, at + kTileBytes);
    WAVENET_TILE_READ(2, 7, at + 2 * kTileBytes);
    WAVENET_TILE_READ(3, 5, at + 3 * kTileBytes);
  }
}
#undef WAVENET_TILE_READ

// The same by tiles, and what is left over by vectors. Of the blocks the first pass alone is summed, as int8 and
// wrapping: products would slow the loads down, and no compiler leaves those out.
static uint64_t read_tiles(const void* p, int64_t bytes, int64_t times) {
  alignas(64) int8_t ones[kTileRow];
  __builtin_memset(ones, 1, sizeof ones);
  Tiles tiles;
  tiles.serve(1);
  WAVENET_TILE_LOAD(4, ones, kTileRow);
  WAVENET_TILE_ZERO(0);
  WAVENET_TILE_ZERO(1);
  WAVENET_TILE_ZERO(2);
  WAVENET_TILE_ZERO(3);
  const char* first = static_cast<const char*>(p);
  const char* end = first + bytes / (4 * kTileBytes) * (4 * kTileBytes);
  read_blocks<true>(first, end);
  for (int64_t n = 1; n < times; ++n) read_blocks<false>(first, end);
  alignas(64) int32_t sums[4][kTileRow / 4];
  WAVENET_TILE_STORE(0, sums[0], kTileRow);
  WAVENET_TILE_STORE(1, sums[1], kTileRow);
  WAVENET_TILE_STORE(2, sums[2], kTileRow);
  WAVENET_TILE_STORE(3, sums[3], kTileRow);
  uint32_t total = 0;
  for (const auto& sum : sums) {
    for (const int32_t part : sum) total += static_cast<uint32_t>(part);
  }
  return total + read_vectors(end, first + bytes - end, times);
}
#endif
