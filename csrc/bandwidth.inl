// The reading half of a matrix-vector product and nothing else: how fast this instruction set's loads can stream bytes.

// Loads each of the `bytes` bytes at p, in order, `times` times over. The result depends on all of them, so that no
// compiler can leave one out.
static uint64_t read_bytes(const void* p, int64_t bytes, int64_t times) {
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
