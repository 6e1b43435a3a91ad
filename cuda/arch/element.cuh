// Storage types of activations, weights and the KV cache: 16 bits in memory, float in registers.
//
// Conversions round to nearest even, as PyTorch does. Pairs travel as one 32-bit word, the lower index in the lower half:
// the form that mma operands have.
#pragma once
#include <stdint.h>

namespace wl {

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

template <typename T> __device__ __forceinline__ float to_float(T x);
template <> __device__ __forceinline__ float to_float(bf16 x) {
    return __uint_as_float(uint32_t(x.bits) << 16);
}
template <> __device__ __forceinline__ float to_float(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
template <> __device__ __forceinline__ float to_float(float x) {
    return x;
}

template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ bf16 from_float(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> __device__ __forceinline__ f16 from_float(float x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> __device__ __forceinline__ float from_float(float x) {
    return x;
}

// `low` and `high` rounded to T, in one word.
template <typename T> __device__ __forceinline__ uint32_t pack(float low, float high);
template <> __device__ __forceinline__ uint32_t pack<bf16>(float low, float high) {
    uint32_t y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
template <> __device__ __forceinline__ uint32_t pack<f16>(float low, float high) {
    uint32_t y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// The two elements of a word.
template <typename T> __device__ __forceinline__ float2 unpack(uint32_t x) {
    return {to_float(T{uint16_t(x)}), to_float(T{uint16_t(x >> 16)})};
}

// x rounded to T and back: what a store and a load would make of it.
template <typename T> __device__ __forceinline__ float rounded(float x) {
    return to_float(from_float<T>(x));
}

}  // namespace wl
