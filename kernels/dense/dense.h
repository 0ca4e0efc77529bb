/* fp32 matrix products and convolutions over ranges, for compilers that emit calls to C symbols.
 *
 * Every function is thread safe, keeps no state, allocates nothing (at most 80 KiB of stack) and
 * returns 0, or an EDGEMP_BAD_* code when an argument is wrong (then nothing was written).
 * The caller parallelises: disjoint ranges may run in any order on any threads, and the result is
 * the same, bit for bit, however the ranges are cut. Pointers need the alignment of float only.
 * All integers are 64 bits wide. Only what the range covers is written. README.md in this folder has the layouts.
 */
#ifndef EDGEMP_DENSE_H
#define EDGEMP_DENSE_H

#include <stddef.h>
#include <stdint.h>

#ifndef EDGEMP_DENSE_API
#define EDGEMP_DENSE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* alpha and beta are read only where named */
enum {
  EDGEMP_ACT_NONE = 0,
  EDGEMP_ACT_RELU = 1,
  EDGEMP_ACT_CLIP = 2,        /* min(beta, max(alpha, x)); relu6 is alpha 0, beta 6 */
  EDGEMP_ACT_HARDSWISH = 3,   /* x * min(1, max(0, x / 6 + 0.5)) */
  EDGEMP_ACT_SIGMOID = 4,
  EDGEMP_ACT_GELU = 5,        /* 0.5 x (1 + erf(x / sqrt 2)) */
  EDGEMP_ACT_SILU = 6,        /* x * sigmoid(x) */
  EDGEMP_ACT_HARDSIGMOID = 7, /* min(1, max(0, alpha x + beta)) */
  EDGEMP_ACT_LEAKY = 8,       /* x < 0 ? alpha x : x */
  EDGEMP_ACT_TANH = 9
};

enum {
  EDGEMP_OK = 0,
  EDGEMP_BAD_POINTER = 1, /* null where data is needed */
  EDGEMP_BAD_SIZE = 2,    /* a dimension, stride, pad or leading dimension that cannot be */
  EDGEMP_BAD_RANGE = 3,   /* a range outside of the result */
  EDGEMP_BAD_ACT = 4
};

/* The register tile this build was compiled for: rows, columns, and floats per vector. */
EDGEMP_DENSE_API int edgemp_dense_rows(void);
EDGEMP_DENSE_API int edgemp_dense_columns(void);
EDGEMP_DENSE_API int edgemp_dense_lanes(void);

/* ---- C[M,N] = act(A[M,K] B[K,N] + bias[N] + residual[M,N]) ---- */

/* Panels of columns of an N wide result: ceil(N / edgemp_dense_columns()). */
EDGEMP_DENSE_API int64_t edgemp_gemm_panels(int64_t N);

/* Floats (not bytes) that a packed B takes; 0 when K or N is not positive. */
EDGEMP_DENSE_API int64_t edgemp_pack_b_size(int64_t K, int64_t N);

/* Packs B; trans_b = 0: B is [K, N] with row distance ldb; 1: B is [N, K] with row distance ldb. */
EDGEMP_DENSE_API int edgemp_pack_b(const float* B, int64_t ldb, int64_t trans_b, int64_t K, int64_t N,
                                   float* packed);

/* Rows [m0, m1), panels [n0, n1). bias and residual may be null; the residual has C's layout (ldc)
 * and may be C itself, where each element is read before it is written. */
EDGEMP_DENSE_API int edgemp_gemm_f32(const float* A, int64_t lda, const float* packed_b,
                                     const float* bias, const float* residual, float* C,
                                     int64_t ldc, int64_t M, int64_t N, int64_t K, int64_t act,
                                     float alpha, float beta, int64_t m0, int64_t m1, int64_t n0,
                                     int64_t n1);

/* The same with an unpacked B (layout as edgemp_pack_b), times `scale`: scale * A B + residual. */
EDGEMP_DENSE_API int edgemp_matmul_f32(const float* A, int64_t lda, const float* B, int64_t ldb,
                                       int64_t trans_b, float scale, const float* residual, float* C,
                                       int64_t ldc, int64_t M, int64_t N, int64_t K, int64_t act,
                                       float alpha, float beta, int64_t m0, int64_t m1, int64_t n0,
                                       int64_t n1);

/* ---- y[n,oc,oh,ow] = act(conv(x[n,ic,ih,iw], w[oc,ic/groups,kh,kw]) + bias[oc] + residual) ---- */

/* Everything contiguous NCHW; pads are top, left, bottom, right; residual has y's layout and may be
 * y itself. The packed layout depends on all of the geometry except n. */
#define EDGEMP_CONV_GEOMETRY                                                                      \
  int64_t n, int64_t ic, int64_t ih, int64_t iw, int64_t oc, int64_t kh, int64_t kw, int64_t sh,  \
      int64_t sw, int64_t dh, int64_t dw, int64_t pt, int64_t pl, int64_t pb, int64_t pr,         \
      int64_t groups

/* Independent units of work; 0 when the geometry cannot be. */
EDGEMP_DENSE_API int64_t edgemp_conv_units(EDGEMP_CONV_GEOMETRY);

/* Floats (not bytes) that the packed weights take; 0 when the geometry cannot be. */
EDGEMP_DENSE_API int64_t edgemp_pack_conv_size(EDGEMP_CONV_GEOMETRY);

EDGEMP_DENSE_API int edgemp_pack_conv(const float* w, EDGEMP_CONV_GEOMETRY, float* packed);

/* Units [u0, u1). */
EDGEMP_DENSE_API int edgemp_conv2d_f32(const float* x, const float* packed_w, const float* bias,
                                       const float* residual, float* y, EDGEMP_CONV_GEOMETRY,
                                       int64_t act, float alpha, float beta, int64_t u0, int64_t u1);

/* ---- rows [r0, r1) of [rows, n], contiguous; y may be x ---- */

EDGEMP_DENSE_API int edgemp_softmax_f32(const float* x, float* y, int64_t n, int64_t r0,
                                        int64_t r1);

/* (x - mean) / sqrt(variance + epsilon) * gamma + shift; gamma and shift [n] may be null. A
 * residual, where given, is added to x first, and the sum is what is normalised. */
EDGEMP_DENSE_API int edgemp_layernorm_f32(const float* x, const float* residual,
                                          const float* gamma, const float* shift, float epsilon,
                                          float* y, int64_t n, int64_t r0, int64_t r1);

/* y[i] = act(x[i]) for i in [i0, i1). */
EDGEMP_DENSE_API int edgemp_activate_f32(const float* x, float* y, int64_t act, float alpha,
                                         float beta, int64_t i0, int64_t i1);

#ifdef __cplusplus
}
#endif

#endif
