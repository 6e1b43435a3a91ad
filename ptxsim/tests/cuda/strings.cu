// Text out of a kernel, and kernels that stop themselves.
//
//   print:  grid 1, block 4: threads 0 and 3 print one line each, with every kind of argument
//   check:  grid 1, block 32: asserts that every x is below the limit; the first that is not ends the launch
//   stop:   grid 1, block 32: __trap() if x[thread] is 0
#include <cassert>
#include <cstdio>

extern "C" __global__ void print(const float* x) {
    const int i = threadIdx.x;
    if (i % 3 == 0) printf("thread %d of %u: x = %.3f (%e), %s, %lld, 0x%08x %c%%\n", i, blockDim.x, x[i], x[i], i ? "last" : "first",
                           1LL << 40, 0xbeef, 'c');
    if (i == 1) printf("no arguments\n");
}
extern "C" __global__ void check(const unsigned* x, unsigned* out, unsigned limit) {
    assert(x[threadIdx.x] < limit);
    out[threadIdx.x] = x[threadIdx.x];
}
extern "C" __global__ void stop(const unsigned* x) {
    if (x[threadIdx.x] == 0) __trap();
}
