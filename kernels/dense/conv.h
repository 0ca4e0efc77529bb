// Convolutions as implicit matrix products: patches of the input are packed panel by panel.
#pragma once

#include "gemm.h"

namespace edgemp {

struct Geometry {
  int64_t n, ic, ih, iw, oc, kh, kw, sh, sw, dh, dw, pt, pl, pb, pr, groups;

  int64_t oh() const { return (ih + pt + pb - dh * (kh - 1) - 1) / sh + 1; }
  int64_t ow() const { return (iw + pl + pr - dw * (kw - 1) - 1) / sw + 1; }
  int64_t pixels() const { return oh() * ow(); }
  int64_t group_in() const { return ic / groups; }
  int64_t group_out() const { return oc / groups; }
  int64_t depth() const { return group_in() * kh * kw; }
  bool depthwise() const { return groups == ic && groups > 1; }
  bool pointwise() const {
    return kh == 1 && kw == 1 && sh == 1 && sw == 1 && pt == 0 && pl == 0 && pb == 0 && pr == 0;
  }

  bool possible() const {
    constexpr int64_t Most = int64_t{1} << 31;
    const int64_t positive[] = {n, ic, ih, iw, oc, kh, kw, sh, sw, dh, dw, groups};
    const int64_t pads[] = {pt, pl, pb, pr};
    for (int64_t x : positive)
      if (x < 1 || x >= Most) return false;
    for (int64_t x : pads)
      if (x < 0 || x >= Most) return false;
    if (ic % groups || oc % groups) return false;
    if (ih + pt + pb < dh * (kh - 1) + 1 || iw + pl + pr < dw * (kw - 1) + 1) return false;
    // sizes of all arrays, in floats, stay far from overflow
    const double most = 1e15;
    return 1.0 * n * ic * ih * iw < most && 1.0 * oc * ic * kh * kw < most &&
           1.0 * n * oc * (ih + pt + pb) * (iw + pl + pr) < most;
  }
};

// Few pixels leave vectors along the pixels half empty: then vectors run along the channels.
template <class S>
bool channel_vectors(const Geometry& g) {
  const int64_t p = g.pixels();
  const int64_t padded = ceil_div(p, S::Lanes) * S::Lanes;
  return g.pointwise() && g.groups == 1 && g.oc >= S::Lanes && 5 * (padded - p) >= padded;
}

template <class S>
int64_t packed_conv_size(const Geometry& g) {
  if (g.depthwise()) return g.oc * g.kh * g.kw;
  if (channel_vectors<S>(g)) return ceil_div(g.oc, Tile<S>::Width) * Tile<S>::Width * g.ic;
  return g.groups * ceil_div(g.group_out(), S::Rows) * S::Rows * g.depth();
}

template <class S>
void pack_conv(const float* w, const Geometry& g, float* packed) {
  if (g.depthwise()) {
    memcpy(packed, w, static_cast<size_t>(g.oc * g.kh * g.kw) * sizeof(float));
    return;
  }
  const int64_t depth = g.depth();
  if (channel_vectors<S>(g)) {
    constexpr int Width = Tile<S>::Width;
    for (int64_t c = 0; c < g.oc; c += Width, packed += depth * Width)
      pack_panel<S>(w, depth, true, 0, depth, c, smaller(Width, g.oc - c), 1.0f, packed);
    return;
  }
  for (int64_t group = 0; group < g.groups; ++group)
    for (int64_t c = 0; c < g.group_out(); c += S::Rows) {
      const int64_t rows = smaller(S::Rows, g.group_out() - c);
      const float* from = w + (group * g.group_out() + c) * depth;
      for (int64_t k = 0; k < depth; ++k)
        for (int r = 0; r < S::Rows; ++r) *packed++ = r < rows ? from[r * depth + k] : 0.0f;
    }
}

// Both write whole vectors, so up to Lanes - 1 floats behind the end are lost: rows are written in
// order, and the last one has room behind it.
template <class S>
EDGEMP_INLINE void zeros(int64_t n, float* to) {
  for (int64_t i = 0; i < n; i += S::Lanes) S::store(to + i, S::zero());
}

// to[0, a) = 0, to[a + i] = from[i * step] up to b, to[b, length) = 0
template <class S>
EDGEMP_INLINE void strided_row(const float* from, int64_t step, int64_t a, int64_t b,
                               int64_t length, float* to) {
  if (a > 0) zeros<S>(smaller(a, length), to);
  if (a >= length) return;
  int64_t i = a;
  if (step == 1) {
    for (; i + S::Lanes <= b; i += S::Lanes, from += S::Lanes) S::store(to + i, S::load(from));
    if (i < b) S::store(to + i, S::load(from, S::mask(b - i)));
  } else if (step == 2) {
    for (; i + S::Lanes <= b; i += S::Lanes, from += 2 * S::Lanes)
      S::store(to + i, S::evens(from, S::Lanes));
    if (i < b) S::store(to + i, S::evens(from, b - i));
  } else {
    for (; i < b; ++i, from += step) to[i] = *from;
  }
  if (b < length) zeros<S>(length - b, to + b);
}

// A run of output pixels of one panel that lie in one output row.
struct Run {
  int64_t at, row, column, length;
};

template <class S>
struct Patches {
  static constexpr int Width = Tile<S>::Width;
  const Geometry& g;
  int64_t width, columns;
  int count;
  Run runs[Width];
  // per column of the window: output columns [from, to) read inside of the image
  static constexpr int Known = 8;
  int64_t from[Known], to[Known];

  Patches(const Geometry& geometry, int64_t pixel, int64_t columns_)
      : g(geometry), width(geometry.ow()), columns(columns_), count(0) {
    for (int64_t at = 0; at < columns; ++count) {
      Run& run = runs[count];
      run.at = at;
      run.row = (pixel + at) / width;
      run.column = (pixel + at) % width;
      run.length = smaller(columns - at, width - run.column);
      at += run.length;
    }
    for (int64_t j = 0; j < smaller(g.kw, Known); ++j) bounds(j, from[j], to[j]);
  }

  // Depth [k0, k1) of these pixels of one group's input x.
  void pack(const float* x, int64_t pixel, int64_t k0, int64_t k1, float* panel) const {
    const int64_t plane = g.ih * g.iw;
    if (g.pointwise()) {
      for (int64_t k = k0; k < k1; ++k, panel += Width) copy(x + k * plane + pixel, columns, panel);
      return;
    }
    const int64_t taps = g.kh * g.kw;
    int64_t channel = k0 / taps, i = k0 % taps / g.kw, j = k0 % g.kw;
    for (int64_t k = k0; k < k1; ++k, panel += Width) {
      tap(x + channel * plane, i * g.dh - g.pt, j, panel);
      if (++j == g.kw) {
        j = 0;
        if (++i == g.kh) i = 0, ++channel;
      }
    }
  }

 private:
  static EDGEMP_INLINE void copy(const float* from, int64_t n, float* to) {
    if (n == Width) {
      for (int v = 0; v < S::Vectors; ++v) S::store(to + v * S::Lanes, S::load(from + v * S::Lanes));
      return;
    }
    for (int v = 0; v < S::Vectors; ++v) {
      const int64_t rest = n - v * S::Lanes;
      S::store(to + v * S::Lanes, rest > 0 ? S::load(from + v * S::Lanes, S::mask(rest)) : S::zero());
    }
  }

  // Output column c reads input column c * sw + left.
  void bounds(int64_t j, int64_t& first, int64_t& end) const {
    const int64_t left = j * g.dw - g.pl;
    first = left >= 0 ? 0 : ceil_div(-left, g.sw);
    end = left >= g.iw ? 0 : ceil_div(g.iw - left, g.sw);
  }

  void tap(const float* x, int64_t top, int64_t j, float* panel) const {
    const int64_t left = j * g.dw - g.pl;
    int64_t first, end;
    if (j < Known)
      first = from[j], end = to[j];
    else
      bounds(j, first, end);
    for (int r = 0; r < count; ++r) {
      const Run& run = runs[r];
      const int64_t row = run.row * g.sh + top;
      const bool inside = row >= 0 && row < g.ih;
      const int64_t a = inside ? larger(0, first - run.column) : run.length;
      const int64_t b = larger(a, smaller(run.length, end - run.column));
      strided_row<S>(x + row * g.iw + left + (run.column + a) * g.sw, g.sw, a, b, run.length,
                     panel + run.at);
    }
    zeros<S>(Width - columns, panel + columns);
  }
};

// Units are (image, group, panel of pixels, share of the output channels), the last fastest.
template <class S>
struct ConvUnits {
  int64_t panels, blocks, shares;

  explicit ConvUnits(const Geometry& g) {
    if (channel_vectors<S>(g)) {
      panels = ceil_div(g.oc, Tile<S>::Width);
      blocks = ceil_div(g.pixels(), S::Rows);
      shares = 1;
      return;
    }
    panels = ceil_div(g.pixels(), Tile<S>::Width);
    blocks = ceil_div(g.group_out(), S::Rows);
    // A dozen units let a few cores finish together; more would pack the same patches more often.
    const int64_t without = g.n * g.groups * panels;
    shares = without >= 12 ? 1 : smaller(blocks, ceil_div(12, without));
  }
  int64_t total(const Geometry& g) const { return g.n * g.groups * panels * shares; }
};

struct ConvCall {
  const float* x;
  const float* w;
  const float* bias;
  const float* residual;
  float* y;
};

template <class S>
void conv_pixel_vectors(const ConvCall& c, const Geometry& g, const Finish& finish, int64_t u0,
                        int64_t u1) {
  constexpr int Width = Tile<S>::Width;
  alignas(64) float patches[S::Depth * Width + S::Lanes];
  const ConvUnits<S> units(g);
  const int64_t pixels = g.pixels(), depth = g.depth(), plane = g.ih * g.iw;
  for (int64_t u = u0; u < u1;) {
    const int64_t whole = u / units.shares, share = u % units.shares;
    const int64_t shares = smaller(units.shares - share, u1 - u);
    const int64_t panel_at = whole % units.panels, image_group = whole / units.panels;
    const int64_t group = image_group % g.groups;
    const int64_t block0 = share * units.blocks / units.shares;
    const int64_t block1 = (share + shares) * units.blocks / units.shares;
    const int64_t pixel = panel_at * Width, channel = block0 * S::Rows;
    const int64_t out_channel = group * g.group_out() + channel;
    const int64_t corner = (image_group * g.group_out() + channel) * pixels + pixel;
    Panel<S, Layout::DepthMajor> panel{};
    panel.a = c.w + (group * units.blocks + block0) * S::Rows * depth;
    panel.a_stride = S::Rows;
    panel.block_stride = S::Rows * depth;
    panel.slice_stride = S::Rows;
    panel.rows = smaller(g.group_out(), block1 * S::Rows) - channel;
    panel.columns = smaller(Width, pixels - pixel);
    panel.c = c.y + corner;
    panel.ldc = pixels;
    panel.row_bias = c.bias ? c.bias + out_channel : nullptr;
    panel.residual = c.residual ? c.residual + corner : nullptr;
    const Patches<S> source(g, pixel, panel.columns);
    const float* x = c.x + image_group * g.group_in() * plane;
    for (int64_t k0 = 0; k0 < depth; k0 += S::Depth) {
      const int64_t k1 = smaller(depth, k0 + S::Depth);
      source.pack(x, pixel, k0, k1, patches);
      panel.run(patches, k0, k1 - k0, depth, finish);
    }
    u += shares;
  }
}

// The transposed product: rows are pixels, columns are channels; tiles are turned when stored.
template <class S>
void conv_channel_vectors(const ConvCall& c, const Geometry& g, const Finish& finish, int64_t u0,
                          int64_t u1) {
  constexpr int Width = Tile<S>::Width;
  alignas(64) float tile[S::Rows * Width];
  const ConvUnits<S> units(g);
  const int64_t pixels = g.pixels();
  for (int64_t u = u0; u < u1; ++u) {
    const int64_t image = u / units.panels, channel = u % units.panels * Width;
    const int64_t columns = smaller(Width, g.oc - channel);
    const int vectors = static_cast<int>(ceil_div(columns, S::Lanes));
    TileCall t{};
    t.a_stride = pixels;
    t.b = c.w + channel * g.ic;
    t.depth = g.ic;
    t.c = tile;
    t.ldc = Width;
    t.last_lanes = columns - (vectors - 1) * S::Lanes;
    t.column_bias = c.bias ? c.bias + channel : nullptr;
    const bool adds = c.residual != nullptr;
    t.clips = finish.clips && !adds;
    t.low = finish.low;
    t.high = finish.high;
    for (int64_t b = 0; b < units.blocks; ++b) {
      const int64_t p0 = b * pixels / units.blocks, p1 = (b + 1) * pixels / units.blocks;
      const int64_t corner = (image * g.oc + channel) * pixels + p0;
      t.a = c.x + image * g.ic * pixels + p0;
      Tile<S>::template of_vectors<Layout::DepthMajor>(static_cast<int>(p1 - p0), vectors, t);
      if (adds)
        for (int64_t p = 0; p < p1 - p0; ++p)
          for (int64_t i = 0; i < columns; ++i)
            tile[p * Width + i] += c.residual[corner + i * pixels + p];
      if (finish.passes || (adds && finish.clips))
        activate<S>(tile, tile, Width, p1 - p0, columns, finish.act, finish.alpha, finish.beta);
      for (int64_t i = 0; i < columns; ++i)
        for (int64_t p = 0; p < p1 - p0; ++p)
          c.y[corner + i * pixels + p] = tile[p * Width + i];
    }
  }
}

}  // namespace edgemp
