// Matrix products: packing of the right operand and the loop over panels.
#pragma once

#include "tile.h"

namespace edgemp {

EDGEMP_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
EDGEMP_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
EDGEMP_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows [k0, k1) and `columns` columns from n0 of B, times scale, to a zero-padded panel.
template <class S>
void pack_panel(const float* b, int64_t ldb, bool trans, int64_t k0, int64_t k1, int64_t n0,
                int64_t columns, float scale, float* panel) {
  constexpr int Width = Tile<S>::Width;
  if (!trans) {
    for (int64_t k = k0; k < k1; ++k, panel += Width) {
      const float* row = b + k * ldb + n0;
      int64_t i = 0;
      for (; i < columns; ++i) panel[i] = row[i] * scale;
      for (; i < Width; ++i) panel[i] = 0.0f;
    }
    return;
  }
  // 16 x 16 blocks keep both the read rows and the written rows within the first cache.
  constexpr int64_t Block = 16;
  for (int64_t kb = k0; kb < k1; kb += Block) {
    const int64_t kn = smaller(Block, k1 - kb);
    for (int64_t nb = 0; nb < Width; nb += Block) {
      const int64_t nn = smaller(Block, Width - nb);
      float* to = panel + (kb - k0) * Width + nb;
      for (int64_t j = 0; j < nn; ++j) {
        if (nb + j >= columns) {
          for (int64_t k = 0; k < kn; ++k) to[k * Width + j] = 0.0f;
          continue;
        }
        const float* from = b + (n0 + nb + j) * ldb + kb;
        for (int64_t k = 0; k < kn; ++k) to[k * Width + j] = from[k] * scale;
      }
    }
  }
}

struct GemmCall {
  const float* a;
  int64_t lda;
  const float* bias;
  const float* residual;
  float* c;
  int64_t ldc, n, k, m0, m1, n0, n1;
  bool packed;
};

// `slice(panel, k0, k1)` gives the packed slice of a panel.
template <class S, class Slice>
void gemm(const GemmCall& g, const Finish& finish, Slice slice) {
  constexpr int Width = Tile<S>::Width;
  if (g.m0 == g.m1) return;
  for (int64_t p = g.n0; p < g.n1; ++p) {
    const int64_t column = p * Width;
    const int64_t corner = g.m0 * g.ldc + column;
    Panel<S, Layout::RowMajor> panel{};
    panel.a = g.a + g.m0 * g.lda;
    panel.a_stride = g.lda;
    panel.block_stride = S::Rows * g.lda;
    panel.slice_stride = 1;
    panel.rows = g.m1 - g.m0;
    panel.columns = smaller(Width, g.n - column);
    panel.c = g.c + corner;
    panel.ldc = g.ldc;
    panel.column_bias = g.bias ? g.bias + column : nullptr;
    panel.residual = g.residual ? g.residual + corner : nullptr;
    for (int64_t k0 = 0; k0 < g.k; k0 += S::Depth) {
      const int64_t k1 = smaller(g.k, k0 + S::Depth);
      panel.more_follows = g.packed && (p + 1 < g.n1 || k1 < g.k);
      panel.run(slice(p, k0, k1), k0, k1 - k0, g.k, finish);
    }
  }
}

}  // namespace edgemp
