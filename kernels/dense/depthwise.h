// Depthwise convolutions, channel by channel, on a padded copy of a few input rows.
#pragma once

#include "conv.h"

namespace edgemp {

// The copy holds each input row as `sw` rows, one per phase (column modulo the stride), so that
// every tap of every stride and dilation reads consecutive floats.
template <class S>
struct Strip {
  static constexpr int64_t Room = 8192, MostTaps = 128, MostStride = 16;
  int64_t columns, rows, pitch, out_rows;

  // Output columns and rows per strip; rows is 0 when not even one output row fits.
  explicit Strip(const Geometry& g) {
    columns = smaller(g.ow(), 512);
    const int64_t reach = (g.kh - 1) * g.dh + 1;
    // vectors may read past the last column of a row, never past the copy
    pitch = ceil_div(columns, S::Lanes) * S::Lanes + (g.kw - 1) * g.dw / g.sw + 1;
    const int64_t fit = Room / (pitch * g.sw);
    out_rows = fit < reach || g.kh * g.kw > MostTaps || g.sw > MostStride
                   ? 0
                   : smaller(g.oh(), (fit - reach) / g.sh + 1);
    rows = (out_rows - 1) * g.sh + reach;
  }
};

template <class S>
struct Depthwise {
  using Reg = typename S::Reg;
  const ConvCall& call;
  const Geometry& g;
  const Finish& finish;
  const Strip<S> strip;
  int64_t taps;
  int64_t offset[Strip<S>::MostTaps];
  int64_t height, width;
  int64_t from[Strip<S>::MostStride], to[Strip<S>::MostStride];
  alignas(64) float copy[Strip<S>::Room + S::Lanes];

  Depthwise(const ConvCall& call_, const Geometry& g_, const Finish& finish_)
      : call(call_), g(g_), finish(finish_), strip(g_), taps(g_.kh * g_.kw), height(g_.oh()),
        width(g_.ow()) {
    if (!strip.out_rows) return;
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t column = t % g.kw * g.dw;
      offset[t] = (t / g.kw * g.dh * g.sw + column % g.sw) * strip.pitch + column / g.sw;
    }
  }

  // One output channel of one image.
  void channel(int64_t image, int64_t c) {
    const int64_t in = c / g.group_out();
    const float* x = call.x + (image * g.ic + in) * g.ih * g.iw;
    const int64_t plane = (image * g.oc + c) * height * width;
    const float* w = call.w + c * taps;
    const float bias = call.bias ? call.bias[c] : 0.0f;
    if (S::Masked && g.kh == 3 && g.kw == 3 && g.dh == 1 && g.dw == 1 && g.sh <= 2 && g.sw <= 2) {
      if (g.sh == 1)
        g.sw == 1 ? direct<1, 1>(x, w, bias, plane) : direct<1, 2>(x, w, bias, plane);
      else
        g.sw == 1 ? direct<2, 1>(x, w, bias, plane) : direct<2, 2>(x, w, bias, plane);
    } else if (!strip.out_rows) {
      plainly(x, w, bias, plane);
    } else {
      for (int64_t r = 0; r < height; r += strip.out_rows)
        for (int64_t q = 0; q < width; q += strip.columns) {
          fill(x, r * g.sh - g.pt, q * g.sw - g.pl);
          const int64_t rows = smaller(strip.out_rows, height - r);
          const int64_t columns = smaller(strip.columns, width - q);
          const int64_t at = plane + r * width + q;
          if (g.kh == 3 && g.kw == 3 && g.sh <= 2)
            g.sh == 1 ? three<1>(w, bias, rows, columns, at) : three<2>(w, bias, rows, columns, at);
          else if (g.kh == 5 && g.kw == 5)
            compute<25>(w, bias, rows, columns, at);
          else
            compute<0>(w, bias, rows, columns, at);
        }
    }
    if (finish.passes)
      activate<S>(call.y + plane, call.y + plane, 0, 1, height * width, finish.act, finish.alpha,
                  finish.beta);
  }

 private:
  // 3 x 3 where masked loads are cheap: the padding is in the masks, and nothing is copied.
  template <int High, int Wide>
  void direct(const float* x, const float* w, float bias, int64_t plane) const {
    if constexpr (S::Masked) {
      for (int64_t c = 0; c < width; c += S::Lanes) {
        int64_t r = 0;
        for (; r + 4 <= height; r += 4) direct_block<High, Wide, 4>(x, w, bias, plane, r, c);
        for (; r + 2 <= height; r += 2) direct_block<High, Wide, 2>(x, w, bias, plane, r, c);
        if (r < height) direct_block<High, Wide, 1>(x, w, bias, plane, r, c);
      }
    }
  }

  // R output rows, one vector wide; an input row is loaded once for all output rows it touches.
  template <int High, int Wide, int R>
  void direct_block(const float* x, const float* w, float bias, int64_t plane, int64_t row,
                    int64_t column) const {
    Reg acc[R], weight[9];
    typename S::Mask inside[3][Wide];
    const auto mask = S::mask(width - column);
    const int64_t left = column * Wide - g.pl, top = row * High - g.pt;
    for (int j = 0; j < 3; ++j)
      for (int part = 0; part < Wide; ++part) {
        const int64_t start = left + j + part * S::Lanes;
        inside[j][part] = S::between(-start, g.iw - start);
      }
    for (int t = 0; t < 9; ++t) weight[t] = S::set(w[t]);
    begin<R>(acc, bias, plane + row * width + column, mask);
    for (int i = 0; i < (R - 1) * High + 3; ++i) {
      if (top + i < 0 || top + i >= g.ih) continue;
      const float* in = x + (top + i) * g.iw + left;
      for (int j = 0; j < 3; ++j) {
        Reg value = S::load(in + j, inside[j][0]);
        if constexpr (Wide == 2) value = S::even_of(value, S::load(in + j + S::Lanes, inside[j][1]));
        for (int r = 0; r < R; ++r)
          if (i >= r * High && i < r * High + 3)
            acc[r] = S::fma(weight[(i - r * High) * 3 + j], value, acc[r]);
      }
    }
    end<R>(acc, plane + row * width + column, mask);
  }

  void fill(const float* x, int64_t top, int64_t left) {
    float* out = copy;
    for (int64_t phase = 0; phase < g.sw; ++phase) {
      const int64_t first = left + phase;
      from[phase] = first >= 0 ? 0 : smaller(strip.pitch, ceil_div(-first, g.sw));
      to[phase] = first < g.iw ? smaller(strip.pitch, ceil_div(g.iw - first, g.sw)) : 0;
    }
    for (int64_t r = 0; r < strip.rows; ++r) {
      const int64_t row = top + r;
      const bool inside = row >= 0 && row < g.ih;
      for (int64_t phase = 0; phase < g.sw; ++phase, out += strip.pitch) {
        const int64_t a = inside ? from[phase] : strip.pitch;
        strided_row<S>(x + row * g.iw + left + phase + a * g.sw, g.sw, a, larger(a, to[phase]),
                       strip.pitch, out);
      }
    }
  }

  template <int Taps>
  void compute(const float* w, float bias, int64_t rows, int64_t columns, int64_t at) const {
    const int64_t step = g.sh * g.sw * strip.pitch;
    for (int64_t c = 0; c < columns; c += S::Lanes) {
      const auto mask = S::mask(columns - c);
      int64_t r = 0;
      for (; r + 4 <= rows; r += 4)
        block<Taps, 4>(w, bias, copy + r * step + c, step, at + r * width + c, mask);
      for (; r < rows; ++r)
        block<Taps, 1>(w, bias, copy + r * step + c, step, at + r * width + c, mask);
    }
  }

  template <int Stride>
  void three(const float* w, float bias, int64_t rows, int64_t columns, int64_t at) const {
    for (int64_t c = 0; c < columns; c += S::Lanes) {
      const auto mask = S::mask(columns - c);
      int64_t r = 0;
      for (; r + 4 <= rows; r += 4) three_block<Stride, 4>(w, bias, r, c, at, mask);
      for (; r + 2 <= rows; r += 2) three_block<Stride, 2>(w, bias, r, c, at, mask);
      if (r < rows) three_block<Stride, 1>(w, bias, r, c, at, mask);
    }
  }

  // 3 x 3 over R output rows: an input row is loaded once for all output rows that it touches.
  template <int Stride, int R>
  EDGEMP_INLINE void three_block(const float* w, float bias, int64_t row, int64_t column,
                                 int64_t at, typename S::Mask mask) const {
    Reg acc[R], weight[9];
    begin<R>(acc, bias, at + row * width + column, mask);
    for (int t = 0; t < 9; ++t) weight[t] = S::set(w[t]);
    const int64_t pitch = g.sw * strip.pitch;
    const float* in = copy + row * Stride * pitch + column;
    if (g.dh == 1) {
      for (int i = 0; i < (R - 1) * Stride + 3; ++i)
        for (int j = 0; j < 3; ++j) {
          const Reg x = S::load(in + i * pitch + offset[j]);
          for (int r = 0; r < R; ++r)
            if (i >= r * Stride && i < r * Stride + 3)
              acc[r] = S::fma(weight[(i - r * Stride) * 3 + j], x, acc[r]);
        }
    } else {
      for (int t = 0; t < 9; ++t)
        for (int r = 0; r < R; ++r)
          acc[r] = S::fma(weight[t], S::load(in + r * Stride * pitch + offset[t]), acc[r]);
    }
    end<R>(acc, at + row * width + column, mask);
  }

  template <int R>
  EDGEMP_INLINE void begin(Reg* acc, float bias, int64_t at, typename S::Mask mask) const {
    for (int r = 0; r < R; ++r) acc[r] = S::set(bias);
    if (call.residual)
      for (int r = 0; r < R; ++r)
        acc[r] = S::add(acc[r], S::load(call.residual + at + r * width, mask));
  }

  template <int R>
  EDGEMP_INLINE void end(Reg* acc, int64_t at, typename S::Mask mask) const {
    for (int r = 0; r < R; ++r) {
      if (finish.clips) acc[r] = Math<S>::clip(acc[r], finish.low, finish.high);
      S::store(call.y + at + r * width, acc[r], mask);
    }
  }

  // R output rows, one vector wide.
  template <int Taps, int R>
  EDGEMP_INLINE void block(const float* w, float bias, const float* in, int64_t step, int64_t at,
                           typename S::Mask mask) const {
    Reg acc[R];
    begin<R>(acc, bias, at, mask);
    const int64_t count = Taps ? Taps : taps;
    for (int64_t t = 0; t < count; ++t) {
      const Reg weight = S::set(w[t]);
      const float* p = in + offset[t];
      for (int r = 0; r < R; ++r) acc[r] = S::fma(weight, S::load(p + r * step), acc[r]);
    }
    end<R>(acc, at, mask);
  }

  // Windows too large for the copy: right, not fast.
  void plainly(const float* x, const float* w, float bias, int64_t plane) const {
    for (int64_t r = 0; r < height; ++r)
      for (int64_t q = 0; q < width; ++q) {
        const int64_t at = plane + r * width + q;
        float sum = bias + (call.residual ? call.residual[at] : 0.0f);
        for (int64_t t = 0; t < taps; ++t) {
          const int64_t row = r * g.sh - g.pt + t / g.kw * g.dh;
          const int64_t column = q * g.sw - g.pl + t % g.kw * g.dw;
          if (row >= 0 && row < g.ih && column >= 0 && column < g.iw)
            sum += w[t] * x[row * g.iw + column];
        }
        call.y[at] = sum;
      }
    if (finish.clips)
      activate<S>(call.y + plane, call.y + plane, 0, 1, g.pixels(), finish.act, finish.alpha,
                  finish.beta);
  }
};

}  // namespace edgemp
