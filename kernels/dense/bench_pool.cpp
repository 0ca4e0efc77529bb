// For bench.py only: calls the kernels from one thread or from spinning threads, and times them.
#include <pthread.h>
#include <stdint.h>
#include <time.h>

#include "dense.cpp"

namespace {

using Part = void (*)(const void* job, int64_t part, int64_t parts);

struct Pool {
  Part part = nullptr;
  const void* job = nullptr;
  int64_t threads = 1;
  int64_t round = 0, done = 0;
  bool stop = false;
};

struct Worker {
  Pool* pool;
  int64_t index;
  pthread_t thread;
};

void* work(void* argument) {
  const Worker* w = static_cast<Worker*>(argument);
  Pool* p = w->pool;
  for (int64_t seen = 0;;) {
    while (__atomic_load_n(&p->round, __ATOMIC_ACQUIRE) == seen)
      if (__atomic_load_n(&p->stop, __ATOMIC_ACQUIRE)) return nullptr;
    ++seen;
    p->part(p->job, w->index, p->threads);
    __atomic_add_fetch(&p->done, 1, __ATOMIC_RELEASE);
  }
}

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Seconds per call.
double timed(Part part, const void* job, int64_t threads, int64_t calls) {
  Pool pool;
  pool.part = part;
  pool.job = job;
  pool.threads = threads;
  Worker workers[16];
  for (int64_t i = 1; i < threads; ++i) {
    workers[i] = {&pool, i, {}};
    pthread_create(&workers[i].thread, nullptr, work, &workers[i]);
  }
  double start = 0;
  for (int64_t i = -2; i < calls; ++i) {
    if (i == 0) start = now();
    __atomic_store_n(&pool.done, 0, __ATOMIC_RELEASE);
    __atomic_add_fetch(&pool.round, 1, __ATOMIC_RELEASE);
    part(job, 0, threads);
    while (__atomic_load_n(&pool.done, __ATOMIC_ACQUIRE) != threads - 1) {
    }
  }
  const double seconds = (now() - start) / static_cast<double>(calls);
  __atomic_store_n(&pool.stop, true, __ATOMIC_RELEASE);
  for (int64_t i = 1; i < threads; ++i) pthread_join(workers[i].thread, nullptr);
  return seconds;
}

struct GemmJob {
  const float *a, *b, *bias;
  float* c;
  int64_t m, n, k, act;
};

struct ConvJob {
  const float *x, *w, *bias;
  float* y;
  const int64_t* g;
  int64_t act;
};

int64_t conv_units_of(const int64_t* g) {
  return edgemp_conv_units(g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8], g[9], g[10], g[11],
                           g[12], g[13], g[14], g[15]);
}

}  // namespace

extern "C" {

EDGEMP_DENSE_API double edgemp_bench_gemm(int64_t threads, int64_t calls, const float* a,
                                          const float* b, const float* bias, float* c, int64_t m,
                                          int64_t n, int64_t k, int64_t act) {
  const GemmJob job{a, b, bias, c, m, n, k, act};
  return timed(
      [](const void* p, int64_t part, int64_t parts) {
        const GemmJob& j = *static_cast<const GemmJob*>(p);
        const int64_t panels = edgemp_gemm_panels(j.n);
        const int64_t n0 = part * panels / parts, n1 = (part + 1) * panels / parts;
        edgemp_gemm_f32(j.a, j.k, j.b, j.bias, nullptr, j.c, j.n, j.m, j.n, j.k, j.act, 0, 6, 0,
                        j.m, n0, n1);
      },
      &job, threads, calls);
}

EDGEMP_DENSE_API double edgemp_bench_conv(int64_t threads, int64_t calls, const float* x,
                                          const float* w, const float* bias, float* y,
                                          const int64_t* geometry, int64_t act) {
  const ConvJob job{x, w, bias, y, geometry, act};
  return timed(
      [](const void* p, int64_t part, int64_t parts) {
        const ConvJob& j = *static_cast<const ConvJob*>(p);
        const int64_t* g = j.g;
        const int64_t units = conv_units_of(g);
        edgemp_conv2d_f32(j.x, j.w, j.bias, nullptr, j.y, g[0], g[1], g[2], g[3], g[4], g[5], g[6],
                          g[7], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15], j.act, 0, 6,
                          part * units / parts, (part + 1) * units / parts);
      },
      &job, threads, calls);
}

// Multiply-adds per second of one thread whose operands never leave the registers.
EDGEMP_DENSE_API double edgemp_bench_peak(void) {
  using S = edgemp::Simd;
  constexpr int Chains = 12;
  constexpr int64_t Rounds = 20000000;
  S::Reg acc[Chains];
  const S::Reg x = S::set(0.999f), y = S::set(1e-3f);
  for (int i = 0; i < Chains; ++i) acc[i] = S::set(static_cast<float>(i));
  const double start = now();
  for (int64_t r = 0; r < Rounds; ++r)
    for (int i = 0; i < Chains; ++i) acc[i] = S::fma(acc[i], x, y);
  const double seconds = now() - start;
  float total = 0;
  for (int i = 0; i < Chains; ++i) total += S::sum(acc[i]);
  const double rate = static_cast<double>(Rounds) * Chains * S::Lanes / seconds;
  return total == 12345.0f ? 0.0 : rate;
}

}  // extern "C"
