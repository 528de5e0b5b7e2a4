// Instructions that kernels write as `asm`, each under its name with `_` for `.` and `::`. Operands
// are in the order of the text, results by reference.
//
// Source: NVIDIA, "Parallel Thread Execution ISA", the chapters "Warp Level Matrix Instructions"
// ("Matrix Fragments for mma.m16n8k16 with floating point type", "ldmatrix") and "Data Movement and
// Conversion Instructions" ("cp.async", "cp.async.commit_group", "cp.async.wait_group").
#pragma once

namespace ptx {

struct Pair {
  half low, high;
};

NOT_WATCHED inline Pair halves(unsigned word) {
  Pair pair;
  std::memcpy(&pair, &word, 4);
  return pair;
}

// With groupID = lane / 4 and threadID_in_group = lane % 4, element i of a fragment stands in
//   A (16 x 16): row groupID, + 8 for i in 2, 3, 6, 7; column threadID_in_group * 2 + i % 2, + 8
//                for i >= 4
//   B (16 x 8):  row threadID_in_group * 2 + i % 2, + 8 for i >= 2; column groupID
//   C, D (16 x 8): row groupID, + 8 for i >= 2; column threadID_in_group * 2 + i % 2
// and two elements of A or B, the lower first, are one register.
NOT_WATCHED inline void mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32(
    float& d0, float& d1, float& d2, float& d3, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
    unsigned b0, unsigned b1, float c0, float c1, float c2, float c3) {
  struct Fragment {
    unsigned a[4], b[2];
  };
  float d[4] = {c0, c1, c2, c3};
  emulation::gather(Fragment{{a0, a1, a2, a3}, {b0, b1}}, [&](auto get) NOT_WATCHED {
    const int lane = emulation::current->lane;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + i % 2;
      for (int k = 0; k < 16; ++k) {
        // Whose registers hold A[row, k] and B[k, column].
        const Fragment left = get(row % 8 * 4 + k % 8 / 2), right = get(column * 4 + k % 8 / 2);
        const Pair a = halves(left.a[(k >= 8 ? 2 : 0) + (row >= 8 ? 1 : 0)]);
        const Pair b = halves(right.b[k >= 8 ? 1 : 0]);
        d[i] += float(k % 2 ? a.high : a.low) * float(k % 2 ? b.high : b.low);
      }
    }
  });
  d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
}

// Four 8 x 8 matrices of 16 bits: lane 8 m + r gives the address of row r of matrix m, 16 bytes; a
// lane gets, of row lane / 4 of each, the elements lane % 4 * 2 and the one after it.
NOT_WATCHED inline void ldmatrix_sync_aligned_m8n8_x4_shared_b16(unsigned& r0, unsigned& r1,
                                                                 unsigned& r2, unsigned& r3,
                                                                 unsigned address) {
  const unsigned char* row = emulation::shared_pointer(address);
  emulation::require_aligned(row, 16);
  emulation::touch(row, 16, false);
  unsigned* results[4] = {&r0, &r1, &r2, &r3};
  emulation::gather(row, [&](auto get) NOT_WATCHED {
    const int lane = emulation::current->lane;
    for (int m = 0; m < 4; ++m) std::memcpy(results[m], get(m * 8 + lane / 4) + lane % 4 * 4, 4);
  });
}

// Starts a copy of 16 bytes, of which all after the first `bytes` are zeros.
inline void cp_async_cg_shared_global(unsigned to, const void* from, int size, int bytes) {
  if (size != 16 || bytes < 0 || bytes > 16) std::abort();
  unsigned char* place = emulation::shared_pointer(to);
  emulation::require_aligned(place, 16);
  emulation::require_aligned(from, 16);
  emulation::copy_later(place, from, bytes);
}
inline void cp_async_commit_group() { emulation::commit_copies(); }
inline void cp_async_wait_group(int pending) { emulation::finish_copies(pending); }

}  // namespace ptx
