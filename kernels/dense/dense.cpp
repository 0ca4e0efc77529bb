// The C functions of dense.h: arguments are checked here, the work is in the headers.
#include "dense.h"

#include "depthwise.h"
#include "rows.h"

namespace edgemp {
namespace {

using S = Simd;
using T = Tile<S>;
constexpr int64_t Most = int64_t{1} << 31;

bool size_ok(int64_t x) { return x > 0 && x < Most; }
bool act_ok(int64_t act) { return act >= EDGEMP_ACT_NONE && act <= EDGEMP_ACT_TANH; }
bool range_ok(int64_t from, int64_t to, int64_t end) { return 0 <= from && from <= to && to <= end; }

int check_product(const GemmCall& g, int64_t m, const float* b, int64_t ldb, int64_t least_ldb,
                  int64_t act) {
  if (!g.a || !b || !g.c) return EDGEMP_BAD_POINTER;
  if (!size_ok(m) || !size_ok(g.n) || !size_ok(g.k)) return EDGEMP_BAD_SIZE;
  if (g.lda < g.k || g.ldc < g.n || ldb < least_ldb) return EDGEMP_BAD_SIZE;
  if (g.lda >= Most || g.ldc >= Most || ldb >= Most) return EDGEMP_BAD_SIZE;
  if (!act_ok(act)) return EDGEMP_BAD_ACT;
  if (!range_ok(g.m0, g.m1, m) || !range_ok(g.n0, g.n1, ceil_div(g.n, T::Width)))
    return EDGEMP_BAD_RANGE;
  return EDGEMP_OK;
}

int64_t conv_units(const Geometry& g) {
  if (!g.possible()) return 0;
  return g.depthwise() ? g.n * g.oc : ConvUnits<S>(g).total(g);
}

void depthwise(const ConvCall& call, const Geometry& g, const Finish& finish, int64_t u0,
               int64_t u1) {
  Depthwise<S> work(call, g, finish);
  for (int64_t u = u0; u < u1; ++u) work.channel(u / g.oc, u % g.oc);
}

}  // namespace
}  // namespace edgemp

using namespace edgemp;

extern "C" {

int edgemp_dense_rows(void) { return S::Rows; }
int edgemp_dense_columns(void) { return T::Width; }
int edgemp_dense_lanes(void) { return S::Lanes; }

int64_t edgemp_gemm_panels(int64_t N) { return size_ok(N) ? ceil_div(N, T::Width) : 0; }

int64_t edgemp_pack_b_size(int64_t K, int64_t N) {
  return size_ok(K) && size_ok(N) ? ceil_div(N, T::Width) * T::Width * K : 0;
}

int edgemp_pack_b(const float* B, int64_t ldb, int64_t trans_b, int64_t K, int64_t N, float* packed) {
  if (!B || !packed) return EDGEMP_BAD_POINTER;
  if (!size_ok(K) || !size_ok(N) || ldb < (trans_b ? K : N)) return EDGEMP_BAD_SIZE;
  for (int64_t n = 0; n < N; n += T::Width)
    pack_panel<S>(B, ldb, trans_b != 0, 0, K, n, smaller(T::Width, N - n), 1.0f, packed + n * K);
  return EDGEMP_OK;
}

int edgemp_gemm_f32(const float* A, int64_t lda, const float* packed_b, const float* bias,
                    const float* residual, float* C, int64_t ldc, int64_t M, int64_t N, int64_t K,
                    int64_t act, float alpha, float beta, int64_t m0, int64_t m1, int64_t n0,
                    int64_t n1) {
  const GemmCall g{A, lda, bias, residual, C, ldc, N, K, m0, m1, n0, n1, true};
  if (const int bad = check_product(g, M, packed_b, 0, 0, act)) return bad;
  gemm<S>(g, Finish(act, alpha, beta), [=](int64_t panel, int64_t k0, int64_t) {
    return packed_b + (panel * K + k0) * T::Width;
  });
  return EDGEMP_OK;
}

int edgemp_matmul_f32(const float* A, int64_t lda, const float* B, int64_t ldb, int64_t trans_b,
                      float scale, const float* residual, float* C, int64_t ldc, int64_t M,
                      int64_t N, int64_t K, int64_t act, float alpha, float beta, int64_t m0,
                      int64_t m1, int64_t n0, int64_t n1) {
  const GemmCall g{A, lda, nullptr, residual, C, ldc, N, K, m0, m1, n0, n1, false};
  if (const int bad = check_product(g, M, B, ldb, trans_b ? K : N, act)) return bad;
  alignas(64) float slice[S::Depth * T::Width];
  gemm<S>(g, Finish(act, alpha, beta), [&](int64_t panel, int64_t k0, int64_t k1) {
    const int64_t column = panel * T::Width;
    pack_panel<S>(B, ldb, trans_b != 0, k0, k1, column, smaller(T::Width, N - column), scale,
                  slice);
    return slice;
  });
  return EDGEMP_OK;
}

#define EDGEMP_GEOMETRY \
  Geometry { n, ic, ih, iw, oc, kh, kw, sh, sw, dh, dw, pt, pl, pb, pr, groups }

int64_t edgemp_conv_units(EDGEMP_CONV_GEOMETRY) { return conv_units(EDGEMP_GEOMETRY); }

int64_t edgemp_pack_conv_size(EDGEMP_CONV_GEOMETRY) {
  const Geometry g = EDGEMP_GEOMETRY;
  return g.possible() ? packed_conv_size<S>(g) : 0;
}

int edgemp_pack_conv(const float* w, EDGEMP_CONV_GEOMETRY, float* packed) {
  const Geometry g = EDGEMP_GEOMETRY;
  if (!w || !packed) return EDGEMP_BAD_POINTER;
  if (!g.possible()) return EDGEMP_BAD_SIZE;
  pack_conv<S>(w, g, packed);
  return EDGEMP_OK;
}

int edgemp_conv2d_f32(const float* x, const float* packed_w, const float* bias,
                      const float* residual, float* y, EDGEMP_CONV_GEOMETRY, int64_t act, float alpha,
                      float beta, int64_t u0, int64_t u1) {
  const Geometry g = EDGEMP_GEOMETRY;
  if (!x || !packed_w || !y) return EDGEMP_BAD_POINTER;
  if (!g.possible()) return EDGEMP_BAD_SIZE;
  if (!act_ok(act)) return EDGEMP_BAD_ACT;
  if (!range_ok(u0, u1, conv_units(g))) return EDGEMP_BAD_RANGE;
  const ConvCall call{x, packed_w, bias, residual, y};
  const Finish finish(act, alpha, beta);
  if (g.depthwise())
    depthwise(call, g, finish, u0, u1);
  else if (channel_vectors<S>(g))
    conv_channel_vectors<S>(call, g, finish, u0, u1);
  else
    conv_pixel_vectors<S>(call, g, finish, u0, u1);
  return EDGEMP_OK;
}

int edgemp_softmax_f32(const float* x, float* y, int64_t n, int64_t r0, int64_t r1) {
  if (!x || !y) return EDGEMP_BAD_POINTER;
  if (!size_ok(n)) return EDGEMP_BAD_SIZE;
  if (!range_ok(r0, r1, Most)) return EDGEMP_BAD_RANGE;
  for (int64_t r = r0; r < r1; ++r) RowOps<S>::softmax(x + r * n, y + r * n, n);
  return EDGEMP_OK;
}

int edgemp_layernorm_f32(const float* x, const float* residual, const float* gamma,
                         const float* shift, float epsilon, float* y, int64_t n, int64_t r0,
                         int64_t r1) {
  if (!x || !y) return EDGEMP_BAD_POINTER;
  if (!size_ok(n)) return EDGEMP_BAD_SIZE;
  if (!range_ok(r0, r1, Most)) return EDGEMP_BAD_RANGE;
  for (int64_t r = r0; r < r1; ++r)
    RowOps<S>::layernorm(x + r * n, residual ? residual + r * n : nullptr, gamma, shift, epsilon,
                         y + r * n, n);
  return EDGEMP_OK;
}

int edgemp_activate_f32(const float* x, float* y, int64_t act, float alpha, float beta, int64_t i0,
                        int64_t i1) {
  if (!x || !y) return EDGEMP_BAD_POINTER;
  if (!act_ok(act)) return EDGEMP_BAD_ACT;
  if (!range_ok(i0, i1, Most)) return EDGEMP_BAD_RANGE;
  activate<S>(x + i0, y + i0, 0, 1, i1 - i0, act, alpha, beta);
  return EDGEMP_OK;
}

}  // extern "C"
