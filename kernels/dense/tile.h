// The register tile: up to Rows x Vectors accumulators, one broadcast operand, one vector operand.
#pragma once

#include "activation.h"
#include "simd.h"

namespace edgemp {

// How the broadcast operand lies in memory: element (row, k) is at row * stride + k, or at
// k * stride + row.
enum class Layout { RowMajor, DepthMajor };

struct TileCall {
  const float* a;
  int64_t a_stride;
  const float* b;  // depth x panel width, rows of vectors
  int64_t depth;
  float* c;
  int64_t ldc;
  int64_t last_lanes;      // of the last vector, 1..Lanes
  const float* start;      // added before the sum (C of an earlier slice of the depth, a residual)
  const float* row_bias;   // one per row, or null
  const float* column_bias;  // one per column, or null
  bool clips;
  float low, high;
};

template <class S>
struct Tile {
  using Reg = typename S::Reg;
  static constexpr int Width = S::Lanes * S::Vectors;

  template <Layout L, int M, int V>
  static void run(const TileCall& t) {
    Reg acc[M][V];
    const auto mask = S::mask(t.last_lanes);
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) acc[m][v] = S::zero();
    if (t.row_bias)
      for (int m = 0; m < M; ++m)
        for (int v = 0; v < V; ++v) acc[m][v] = S::set(t.row_bias[m]);
    if (t.column_bias)
      for (int v = 0; v < V; ++v) {
        const float* p = t.column_bias + v * S::Lanes;
        const Reg bias = v + 1 < V ? S::load(p) : S::load(p, mask);
        for (int m = 0; m < M; ++m) acc[m][v] = bias;
      }
    if (t.start)
      for (int m = 0; m < M; ++m)
        for (int v = 0; v < V; ++v) {
          const float* p = t.start + m * t.ldc + v * S::Lanes;
          acc[m][v] = S::add(acc[m][v], v + 1 < V ? S::load(p) : S::load(p, mask));
        }

    const float* a = t.a;
    const float* b = t.b;
    const int64_t stride = t.a_stride;
    for (int64_t k = t.depth; k > 0; --k) {
      Reg right[V];
      for (int v = 0; v < V; ++v) right[v] = S::load(b + v * S::Lanes);
      for (int m = 0; m < M; ++m) {
        const Reg left = S::set(L == Layout::RowMajor ? a[m * stride] : a[m]);
        for (int v = 0; v < V; ++v) acc[m][v] = S::fma(left, right[v], acc[m][v]);
      }
      a += L == Layout::RowMajor ? 1 : stride;
      b += Width;
    }

    if (t.clips)
      for (int m = 0; m < M; ++m)
        for (int v = 0; v < V; ++v)
          acc[m][v] = Math<S>::clip(acc[m][v], t.low, t.high);
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) {
        float* p = t.c + m * t.ldc + v * S::Lanes;
        if (v + 1 < V)
          S::store(p, acc[m][v]);
        else
          S::store(p, acc[m][v], mask);
      }
  }

  template <Layout L, int V, int M = S::Rows>
  static void of_rows(int rows, const TileCall& t) {
    if constexpr (M == 1)
      run<L, 1, V>(t);
    else if (rows == M)
      run<L, M, V>(t);
    else
      of_rows<L, V, M - 1>(rows, t);
  }

  template <Layout L, int V = S::Vectors>
  static void of_vectors(int rows, int vectors, const TileCall& t) {
    if constexpr (V == 1)
      of_rows<L, 1>(rows, t);
    else if (vectors == V)
      of_rows<L, V>(rows, t);
    else
      of_vectors<L, V - 1>(rows, vectors, t);
  }
};

// One panel (at most Width columns) of C, all rows of it, one slice of the depth at a time.
template <class S, Layout L>
struct Panel {
  const float* a;  // row 0, slice 0
  int64_t a_stride;
  int64_t block_stride;  // from one block of Rows rows to the next
  int64_t slice_stride;  // from one slice's first element to the next element of the depth
  int64_t rows, columns;
  float* c;
  int64_t ldc;
  const float* row_bias;
  const float* column_bias;
  const float* residual;
  bool more_follows;  // what lies behind this slice of b is needed next

  // Slice [k0, k0 + depth) of `total`; b holds that slice, panel wide.
  void run(const float* b, int64_t k0, int64_t depth, int64_t total, const Finish& finish) const {
    const bool first = k0 == 0, last = k0 + depth == total;
    const int vectors = static_cast<int>((columns + S::Lanes - 1) / S::Lanes);
    TileCall t{};
    t.a_stride = a_stride;
    t.b = b;
    t.depth = depth;
    t.ldc = ldc;
    t.last_lanes = columns - (vectors - 1) * S::Lanes;
    t.column_bias = first ? column_bias : nullptr;
    t.clips = last && finish.clips;
    t.low = finish.low;
    t.high = finish.high;
    const int64_t slice = depth * Tile<S>::Width;
    // each block of rows asks for its share, so that the first block of the next slice need not wait
    const int64_t share = more_follows ? (slice * S::Rows + rows - 1) / rows : 0;
    int64_t block = 0;
    for (int64_t r = 0; r < rows; r += S::Rows, ++block) {
      for (int64_t i = block * share; i < (block + 1) * share && i < slice; i += 16)
        __builtin_prefetch(b + slice + i, 0, 2);
      const int count = static_cast<int>(rows - r < S::Rows ? rows - r : S::Rows);
      t.a = a + block * block_stride + k0 * slice_stride;
      t.c = c + r * ldc;
      t.start = first ? (residual ? residual + r * ldc : nullptr) : t.c;
      t.row_bias = first && row_bias ? row_bias + r : nullptr;
      Tile<S>::template of_vectors<L>(count, vectors, t);
      if (last && finish.passes)
        activate<S>(t.c, t.c, ldc, count, columns, finish.act, finish.alpha, finish.beta);
    }
  }
};

}  // namespace edgemp
