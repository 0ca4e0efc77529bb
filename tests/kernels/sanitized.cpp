// The kernels under AddressSanitizer and UBSan: exact heap arrays, many small shapes, cut ranges.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "dense.cpp"

namespace {

float* filled(int64_t n) {
  float* p = static_cast<float*>(malloc(static_cast<size_t>(n) * sizeof(float)));
  for (int64_t i = 0; i < n; ++i) p[i] = static_cast<float>((i * 7 + 3) % 11) - 5.0f;
  return p;
}

// Whole numbers this small are exact in fp32, so nothing needs a tolerance.
int check_product(int64_t m, int64_t n, int64_t k) {
  float *a = filled(m * k), *b = filled(k * n), *bias = filled(n), *c = filled(m * n);
  float* packed = filled(edgemp_pack_b_size(k, n));
  edgemp_pack_b(b, n, 0, k, n, packed);
  int wrong = 0;
  for (int64_t p = 0; p < edgemp_gemm_panels(n); ++p)
    wrong += edgemp_gemm_f32(a, k, packed, bias, nullptr, c, n, m, n, k, 1, 0, 0, 0, m, p, p + 1);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      float sum = bias[j];
      for (int64_t d = 0; d < k; ++d) sum += a[i * k + d] * b[d * n + j];
      wrong += c[i * n + j] != (sum > 0 ? sum : 0);
    }
  wrong += edgemp_matmul_f32(a, k, b, n, 0, 1, nullptr, c, n, m, n, k, 5, 0, 0, 0, m, 0,
                             edgemp_gemm_panels(n));
  wrong += edgemp_softmax_f32(c, c, n, 0, m) + edgemp_layernorm_f32(c, c, bias, bias, 1, c, n, 0, m);
  free(a), free(b), free(bias), free(c), free(packed);
  return wrong;
}

int check_conv(const edgemp::Geometry& g) {
  const int64_t per = g.ic / g.groups, size = g.oc / g.groups;
  float *x = filled(g.n * g.ic * g.ih * g.iw), *w = filled(g.oc * per * g.kh * g.kw);
  float *bias = filled(g.oc), *y = filled(g.n * g.oc * g.oh() * g.ow());
#define SHAPE g.n, g.ic, g.ih, g.iw, g.oc, g.kh, g.kw, g.sh, g.sw, g.dh, g.dw, g.pt, g.pl, g.pb, \
              g.pr, g.groups
  float* packed = filled(edgemp_pack_conv_size(SHAPE));
  edgemp_pack_conv(w, SHAPE, packed);
  int wrong = 0;
  for (int64_t u = edgemp_conv_units(SHAPE); u-- > 0;)
    wrong += edgemp_conv2d_f32(x, packed, bias, nullptr, y, SHAPE, 0, 0, 0, u, u + 1);
  const float* at = y;
  for (int64_t i = 0; i < g.n; ++i)
    for (int64_t o = 0; o < g.oc; ++o)
      for (int64_t r = 0; r < g.oh(); ++r)
        for (int64_t q = 0; q < g.ow(); ++q) {
          float sum = bias[o];
          for (int64_t c = 0; c < per; ++c)
            for (int64_t t = 0; t < g.kh * g.kw; ++t) {
              const int64_t row = r * g.sh - g.pt + t / g.kw * g.dh;
              const int64_t column = q * g.sw - g.pl + t % g.kw * g.dw;
              if (row < 0 || row >= g.ih || column < 0 || column >= g.iw) continue;
              const int64_t channel = (i * g.ic + o / size * per + c) * g.ih;
              sum += w[(o * per + c) * g.kh * g.kw + t] * x[(channel + row) * g.iw + column];
            }
          wrong += *at++ != sum;
        }
  free(x), free(w), free(bias), free(y), free(packed);
  return wrong;
}

}  // namespace

int main() {
  const int64_t heights[] = {1, 7, 9}, lengths[] = {1, 15, 16, 17, 48, 50, 97};
  const int64_t depths[] = {1, 3, 193, 260}, group_counts[] = {1, 2, 6};
  const int64_t widths[] = {1, 5, 7, 16, 17, 40, 51}, kernels[] = {1, 3, 5};
  int wrong = 0;
  for (int64_t m : heights)
    for (int64_t n : lengths)
      for (int64_t k : depths) wrong += check_product(m, n, k);
  for (int64_t groups : group_counts)
    for (int64_t wide : widths)
      for (int64_t stride = 1; stride <= 3; ++stride)
        for (int64_t pad = 0; pad <= 2; ++pad)
          for (int64_t kernel : kernels) {
            const edgemp::Geometry g{1, 6, 5, wide, 18, kernel, kernel, stride, stride, 1, 1,
                                     pad, pad, pad, pad, groups};
            if (g.possible()) wrong += check_conv(g);
          }
  wrong += check_conv({1, 2, 12, 700, 2, 3, 3, 1, 1, 2, 3, 2, 3, 2, 3, 2});
  wrong += check_conv({1, 2, 40, 50, 2, 12, 12, 1, 1, 3, 3, 0, 0, 0, 0, 2});
  wrong += check_conv({2, 40, 7, 7, 50, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1});
  printf("%d wrong\n", wrong);
  return wrong != 0;
}
