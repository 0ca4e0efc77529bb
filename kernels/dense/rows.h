// Reductions along rows: softmax and layer norm.
#pragma once

#include "activation.h"

namespace edgemp {

template <class S>
struct RowOps {
  using Reg = typename S::Reg;

  static void softmax(const float* x, float* y, int64_t n) {
    float top = x[0];
    bool nan = false;
    for (int64_t i = 0; i < n; ++i) {
      nan |= x[i] != x[i];
      top = x[i] > top ? x[i] : top;
    }
    if (nan) top = __builtin_nanf("");
    const Reg shift = S::set(top);
    Reg total = S::zero();
    int64_t i = 0;
    for (; i + S::Lanes <= n; i += S::Lanes) {
      const Reg e = Math<S>::exp(S::sub(S::load(x + i), shift));
      total = S::add(total, e);
      S::store(y + i, e);
    }
    float rest = 0.0f;
    if (i < n) {
      const auto m = S::mask(n - i);
      S::store(y + i, Math<S>::exp(S::sub(S::load(x + i, m), shift)), m);
      for (int64_t j = i; j < n; ++j) rest += y[j];
    }
    const float inverse = 1.0f / (S::sum(total) + rest);
    for (int64_t j = 0; j < n; ++j) y[j] *= inverse;
  }

  static float sum(const float* x, int64_t n) {
    Reg a = S::zero(), b = S::zero();
    int64_t i = 0;
    for (; i + 2 * S::Lanes <= n; i += 2 * S::Lanes) {
      a = S::add(a, S::load(x + i));
      b = S::add(b, S::load(x + i + S::Lanes));
    }
    float rest = 0.0f;
    for (; i < n; ++i) rest += x[i];
    return S::sum(S::add(a, b)) + rest;
  }

  // Two passes, so that a large mean does not drown the variance.
  static void layernorm(const float* x, const float* residual, const float* gamma,
                        const float* shift, float epsilon, float* y, int64_t n) {
    if (residual)
      for (int64_t i = 0; i < n; ++i) y[i] = x[i] + residual[i];
    const float* in = residual ? y : x;
    const float mean = sum(in, n) / static_cast<float>(n);
    const Reg centre = S::set(mean);
    Reg squares = S::zero();
    float rest = 0.0f;
    int64_t i = 0;
    for (; i + S::Lanes <= n; i += S::Lanes) {
      const Reg d = S::sub(S::load(in + i), centre);
      squares = S::fma(d, d, squares);
    }
    for (; i < n; ++i) rest += (in[i] - mean) * (in[i] - mean);
    const float variance = (S::sum(squares) + rest) / static_cast<float>(n);
    const float inverse = 1.0f / __builtin_sqrtf(variance + epsilon);
    for (i = 0; i < n; ++i) {
      const float value = (in[i] - mean) * inverse;
      y[i] = value * (gamma ? gamma[i] : 1.0f) + (shift ? shift[i] : 0.0f);
    }
  }
};

}  // namespace edgemp
