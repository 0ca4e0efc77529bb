// Element-wise activations on vectors: exp and erf by minimax fits, and what is built on them.
#pragma once

#include "dense.h"
#include "simd.h"

namespace edgemp {

template <class S>
struct Math {
  using Reg = typename S::Reg;

  static EDGEMP_INLINE Reg clip(Reg x, float low, float high) {
    return S::minimum(S::set(high), S::maximum(S::set(low), x));
  }

  // e^x = 2^n e^r with |r| <= ln 2 / 2; ln 2 in two parts so that r is exact (Cody and Waite, 1980).
  // Degree 6, relative error of the fit 3e-9; measured error below 2 ulp. -inf gives 0, NaN stays.
  static EDGEMP_INLINE Reg exp(Reg x) {
    x = clip(x, -104.0f, 89.0f);
    const Reg n = S::nearest(S::mul(x, S::set(1.44269504f)));
    Reg r = S::fma(n, S::set(-0.693359375f), x);
    r = S::fma(n, S::set(2.12194440e-4f), r);
    Reg p = S::set(0.001381461f);
    p = S::fma(p, r, S::set(0.00836871f));
    p = S::fma(p, r, S::set(0.04166839f));
    p = S::fma(p, r, S::set(0.16666521f));
    p = S::fma(p, r, S::set(0.49999994f));
    p = S::fma(S::mul(r, r), p, S::add(r, S::set(1.0f)));
    return S::scale(p, n);
  }

  // x P(x^2) / Q(x^2) on |x| <= 3.92, beyond which erf rounds to +-1 within 3e-8. All coefficients
  // are positive, so nothing cancels. Absolute error below 5e-7.
  static EDGEMP_INLINE Reg erf(Reg x) {
    x = clip(x, -3.92f, 3.92f);
    const Reg t = S::mul(x, x);
    Reg p = S::set(2.05008519e-06f);
    p = S::fma(p, t, S::set(2.84880603e-04f));
    p = S::fma(p, t, S::set(3.76556045e-03f));
    p = S::fma(p, t, S::set(5.27485460e-02f));
    p = S::fma(p, t, S::set(1.90405279e-01f));
    p = S::fma(p, t, S::set(1.12837911f));
    Reg q = S::set(3.80915844e-05f);
    q = S::fma(q, t, S::set(1.16252026e-03f));
    q = S::fma(q, t, S::set(1.49691040e-02f));
    q = S::fma(q, t, S::set(1.14108600e-01f));
    q = S::fma(q, t, S::set(5.02075016e-01f));
    q = S::fma(q, t, S::set(1.0f));
    return clip(S::divide(S::mul(x, p), q), -1.0f, 1.0f);
  }

  static EDGEMP_INLINE Reg sigmoid(Reg x) {
    const Reg one = S::set(1.0f);
    return S::divide(one, S::add(one, exp(S::sub(S::zero(), x))));
  }

  static EDGEMP_INLINE Reg tanh(Reg x) {
    const Reg one = S::set(1.0f), e = exp(S::mul(clip(x, -10.0f, 10.0f), S::set(2.0f)));
    return S::divide(S::sub(e, one), S::add(e, one));
  }

  template <int Act>
  static EDGEMP_INLINE Reg apply(Reg x, float alpha, float beta) {
    if constexpr (Act == EDGEMP_ACT_RELU) return S::maximum(S::zero(), x);
    if constexpr (Act == EDGEMP_ACT_CLIP) return clip(x, alpha, beta);
    if constexpr (Act == EDGEMP_ACT_HARDSWISH)
      return S::mul(x, clip(S::fma(x, S::set(1.0f / 6), S::set(0.5f)), 0.0f, 1.0f));
    if constexpr (Act == EDGEMP_ACT_SIGMOID) return sigmoid(x);
    if constexpr (Act == EDGEMP_ACT_GELU) {
      const Reg half = S::mul(x, S::set(0.5f));
      return S::fma(half, erf(S::mul(x, S::set(0.707106781f))), half);
    }
    if constexpr (Act == EDGEMP_ACT_SILU) return S::mul(x, sigmoid(x));
    if constexpr (Act == EDGEMP_ACT_HARDSIGMOID)
      return clip(S::fma(x, S::set(alpha), S::set(beta)), 0.0f, 1.0f);
    if constexpr (Act == EDGEMP_ACT_LEAKY)
      return S::fma(S::set(alpha), S::minimum(S::zero(), x), S::maximum(S::zero(), x));
    if constexpr (Act == EDGEMP_ACT_TANH) return tanh(x);
    return x;
  }

  template <int Act>
  static void rows(const float* x, float* y, int64_t ld, int64_t count, int64_t n, float alpha,
                   float beta) {
    for (int64_t r = 0; r < count; ++r, x += ld, y += ld) {
      int64_t i = 0;
      for (; i + S::Lanes <= n; i += S::Lanes)
        S::store(y + i, apply<Act>(S::load(x + i), alpha, beta));
      if (i < n) {
        const auto m = S::mask(n - i);
        S::store(y + i, apply<Act>(S::load(x + i, m), alpha, beta), m);
      }
    }
  }
};

// y = act(x) over `count` rows of n values, both with row distance ld; x may be y.
template <class S>
void activate(const float* x, float* y, int64_t ld, int64_t count, int64_t n, int64_t act, float alpha,
              float beta) {
  using M = Math<S>;
  switch (act) {
    case EDGEMP_ACT_RELU: return M::template rows<EDGEMP_ACT_RELU>(x, y, ld, count, n, alpha, beta);
    case EDGEMP_ACT_CLIP: return M::template rows<EDGEMP_ACT_CLIP>(x, y, ld, count, n, alpha, beta);
    case EDGEMP_ACT_HARDSWISH:
      return M::template rows<EDGEMP_ACT_HARDSWISH>(x, y, ld, count, n, alpha, beta);
    case EDGEMP_ACT_SIGMOID:
      return M::template rows<EDGEMP_ACT_SIGMOID>(x, y, ld, count, n, alpha, beta);
    case EDGEMP_ACT_GELU: return M::template rows<EDGEMP_ACT_GELU>(x, y, ld, count, n, alpha, beta);
    case EDGEMP_ACT_SILU: return M::template rows<EDGEMP_ACT_SILU>(x, y, ld, count, n, alpha, beta);
    case EDGEMP_ACT_HARDSIGMOID:
      return M::template rows<EDGEMP_ACT_HARDSIGMOID>(x, y, ld, count, n, alpha, beta);
    case EDGEMP_ACT_LEAKY:
      return M::template rows<EDGEMP_ACT_LEAKY>(x, y, ld, count, n, alpha, beta);
    case EDGEMP_ACT_TANH: return M::template rows<EDGEMP_ACT_TANH>(x, y, ld, count, n, alpha, beta);
    default:
      if (x != y)
        for (int64_t r = 0; r < count; ++r)
          memcpy(y + r * ld, x + r * ld, static_cast<size_t>(n) * sizeof(float));
  }
}

// What the register tile can apply itself, as a clip; the rest is a second pass over the hot tile.
struct Finish {
  int64_t act;
  float alpha, beta;
  bool clips, passes;
  float low, high;

  Finish(int64_t act_, float alpha_, float beta_) : act(act_), alpha(alpha_), beta(beta_) {
    clips = act == EDGEMP_ACT_RELU || act == EDGEMP_ACT_CLIP;
    passes = act != EDGEMP_ACT_NONE && !clips;
    low = act == EDGEMP_ACT_CLIP ? alpha : 0.0f;
    high = act == EDGEMP_ACT_CLIP ? beta : __builtin_inff();
  }
};

}  // namespace edgemp
