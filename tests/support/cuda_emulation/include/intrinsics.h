// The device functions of kernels/cuda_intrinsics.py, whose bodies are instructions of a GPU.
#pragma once

inline void rwkv_world_sync_warp() { emulation::warp_barrier(); }

// D = A B + C of m16n8k16: lane l holds, with g = l / 4 and t = l % 4, of A (16 x 16) the pairs
// (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), of B (16 x 8) the pairs (2t, g), (2t + 8, g),
// of C and D the pairs (g, 2t), (g + 8, 2t). PTX ISA, "Matrix fragments for mma.m16n8k16".
inline void rwkv_world_mma(float* c, const unsigned* a, const unsigned* b) {
  struct Fragment {
    half a[8], b[4];
  } mine;
  std::memcpy(mine.a, a, 16);
  std::memcpy(mine.b, b, 8);
  emulation::gather(mine, [&](auto get) {
    int g = emulation::current->lane / 4, t = emulation::current->lane % 4;
    Fragment rows[4], columns[2][4];
    for (int i = 0; i < 4; ++i) {
      rows[i] = get(g * 4 + i);
      columns[0][i] = get(2 * t * 4 + i);
      columns[1][i] = get((2 * t + 1) * 4 + i);
    }
    for (int upper = 0; upper < 2; ++upper)
      for (int n = 0; n < 2; ++n)
        for (int i = 0; i < 4; ++i)
          for (int e = 0; e < 2; ++e)
            for (int far = 0; far < 2; ++far)
              c[upper * 2 + n] += float(rows[i].a[far * 4 + upper * 2 + e]) *
                                  float(columns[n][i].b[far * 2 + e]);
  });
}

template <int bits>
void unpack(unsigned* out, const unsigned* words, half scale) {
  for (int i = 0; i < 8; ++i) {
    int field = words[i * bits / 32] >> (i * bits % 32) & ((1 << bits) - 1);
    half value = half(field - ((1 << (bits - 1)) - 1)) * scale;
    std::memcpy(reinterpret_cast<half*>(out) + i, &value, 2);
  }
}
inline void rwkv_world_unpack_4(unsigned* out, const unsigned* word, half scale) {
  unpack<4>(out, word, scale);
}
inline void rwkv_world_unpack_8(unsigned* out, const unsigned* words, half scale) {
  unpack<8>(out, words, scale);
}

// A copy may arrive late: it is made when its group is waited for.
inline void rwkv_world_copy_async(void* to, const void* from, int bytes) {
  emulation::require_aligned(to, 16);
  emulation::require_aligned(from, 16);
  emulation::copy_later(to, from, bytes);
}
inline void rwkv_world_copy_commit() { emulation::commit_copies(); }
#define COPY_WAIT(n) \
  inline void rwkv_world_copy_wait_##n() { emulation::finish_copies(n); }
COPY_WAIT(0)
COPY_WAIT(1)
COPY_WAIT(2)
COPY_WAIT(3)
COPY_WAIT(4)
COPY_WAIT(5)
