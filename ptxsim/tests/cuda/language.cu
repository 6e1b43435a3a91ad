// What C++ asks of a processor besides kernels' usual work: local arrays, calls, jump tables, division, wide integers.
// All: grid 1, block 64 or less; thread i reads x[i] and writes out[i].
#include <cstdint>

#define KERNEL extern "C" __global__ void

// An array that is indexed at run time lives in local memory: out[i] = the i % 16-th smallest of 16 values made from x[i].
KERNEL local_sort(const uint32_t* x, uint32_t* out) {
    uint32_t values[16];
    for (int i = 0; i < 16; i++) values[i] = (x[threadIdx.x] + i * 2654435761u) >> 8;
#pragma unroll 1
    for (int i = 1; i < 16; i++) {
        const uint32_t value = values[i];
        int j = i;
#pragma unroll 1
        for (; j > 0 && values[j - 1] > value; j--) values[j] = values[j - 1];
        values[j] = value;
    }
    out[threadIdx.x] = values[threadIdx.x % 16];
}

// Calls by name, with a struct by value, a 64-bit result and recursion.
struct Pair { uint32_t a; uint64_t b; };
__device__ __noinline__ uint64_t mix(Pair p) { return p.b * 6364136223846793005ull + p.a; }
__device__ __noinline__ uint32_t collatz(uint32_t n, uint32_t steps) {
    if (n <= 1 || steps > 40) return steps;
    return collatz(n % 2 ? 3 * n + 1 : n / 2, steps + 1) + 0 * n;
}
KERNEL calls(const uint32_t* x, uint64_t* out) {
    const uint32_t n = x[threadIdx.x] % 100;
    out[threadIdx.x] = mix({collatz(n, 0), n});
}

// A call through a pointer that differs from lane to lane.
__device__ __noinline__ uint32_t twice(uint32_t x) { return 2 * x; }
__device__ __noinline__ uint32_t square(uint32_t x) { return x * x; }
__device__ __noinline__ uint32_t invert(uint32_t x) { return ~x; }
typedef uint32_t (*Function)(uint32_t);
__device__ Function functions[3] = {twice, square, invert};
KERNEL indirect_call(const uint32_t* x, uint32_t* out) { out[threadIdx.x] = functions[threadIdx.x % 3](x[threadIdx.x]); }

// Virtual functions: a table of pointers behind a pointer in the object.
struct Shape { __device__ virtual float area() const = 0; };
struct Square : Shape { float a; __device__ Square(float a) : a(a) {} __device__ float area() const override { return a * a; } };
struct Circle : Shape { float r; __device__ Circle(float r) : r(r) {} __device__ float area() const override { return 3.f * r * r; } };
KERNEL virtual_call(const float* x, float* out) {
    Square square(x[threadIdx.x]);
    Circle circle(x[threadIdx.x]);
    const Shape* shapes[2] = {&square, &circle};
    out[threadIdx.x] = shapes[threadIdx.x % 2]->area();
}

// A switch of many cases, and the jump table of which nvcc makes none by itself.
KERNEL many_cases(const uint32_t* x, uint32_t* out) {
    uint32_t v = x[threadIdx.x];
    switch (threadIdx.x) {
        case 0: v += 3; break;
        case 1: v *= 5; break;
        case 2: v ^= 77; break;
        case 3: v = __popc(v); break;
        case 4: v = __brev(v); break;
        case 5: v /= 3; break;
        case 6: v = __clz(v); break;
        case 7: v = __ffs(v); break;
        case 8: v = __byte_perm(v, 7, 0x5140); break;
        default: v = 0;
    }
    out[threadIdx.x] = v;
}
// out[i] = 10, 20 or 30 for x[i] = 0, 1, 2.
KERNEL jump_table(const uint32_t* x, uint32_t* out) {
    uint32_t v;
    asm volatile("{\n\t"
                 "targets: .branchtargets L0, L1, L2;\n\t"
                 "brx.idx %1, targets;\n\t"
                 "L0: mov.u32 %0, 10;\n\t"
                 "bra.uni done;\n\t"
                 "L1: mov.u32 %0, 20;\n\t"
                 "bra.uni done;\n\t"
                 "L2: mov.u32 %0, 30;\n\t"
                 "done:\n\t"
                 "}" : "=r"(v) : "r"(x[threadIdx.x]));
    out[threadIdx.x] = v;
}

// Division by a value that is not constant, signed and unsigned, 32 and 64 bits. x[i] != 0.
KERNEL divide(const int32_t* x, int64_t* out) {
    const int32_t a = 1000003 * (int)(threadIdx.x - 31), b = x[threadIdx.x];
    const int64_t wide = a * 4294967311ll, by = (int64_t)b * b + 1;
    out[threadIdx.x] = a / b + a % b + (uint32_t)a / (uint32_t)b + (uint32_t)a % (uint32_t)b + wide / by + wide % by +
                       (int64_t)((uint64_t)wide / (uint64_t)by);
}
// 128-bit products and sums: carries travel from word to word.
KERNEL wide_integers(const uint64_t* x, uint64_t* out) {
    const unsigned __int128 a = (unsigned __int128)x[threadIdx.x] * x[threadIdx.x] + threadIdx.x;
    const unsigned __int128 b = a * 3 - x[threadIdx.x];
    out[threadIdx.x] = (uint64_t)(b >> 64) ^ (uint64_t)b ^ __umul64hi(x[threadIdx.x], (uint64_t)b) ^ __popcll(x[threadIdx.x]) ^
                       ((uint64_t)__clzll(x[threadIdx.x]) << 8) ^ __brevll(x[threadIdx.x]) ^
                       __funnelshift_l(x[threadIdx.x], x[threadIdx.x] >> 32, 7);
}
// Functions whose slow paths are loops, tables and calls. x[i] is finite.
KERNEL mathematics(const float* x, float* out) {
    const float v = x[threadIdx.x];
    out[threadIdx.x] = sinf(v) + cosf(v) + expf(v * 0.01f) + logf(fabsf(v) + 1) + powf(fabsf(v) + 0.5f, 0.7f) + tanhf(v) + erff(v) +
                       fmodf(v, 3.f) + v / (fabsf(v) + 2) + sqrtf(fabsf(v)) + rsqrtf(fabsf(v) + 1) + cbrtf(v) + truncf(v) +
                       rintf(v) + floorf(v) + ceilf(v) + copysignf(1.f, v) + ldexpf(v, 3);
}
KERNEL mathematics_f64(const double* x, double* out) {
    const double v = x[threadIdx.x];
    out[threadIdx.x] = sqrt(fabs(v)) + 1 / (fabs(v) + 1) + fma(v, v, 1.0) + exp(v * 0.01) + log(fabs(v) + 1) +
                       sin(v) + rint(v) + fmin(v, 0.5);
}
