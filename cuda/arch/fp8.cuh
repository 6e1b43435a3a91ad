// e4m3: a sign, four bits of exponent with the bias 7, three of fraction; up to ±448, no infinities.
//
// By integer operations, the same on every architecture: conversion instructions begin with sm_89.
#pragma once
#include "eight.cuh"

namespace wl {

// A number as stored. (No struct: nvcc 13.0 does not compile `global` of one of a byte.)
enum class e4m3 : uint8_t {};

constexpr float E4M3_MOST = 448;

// What `unpack_e4m3` leaves out of each number.
constexpr float E4M3_UNPACKED = 1.0f / 256;

// Four e4m3 as f16, each times 2^-8, exactly: with all bits of exponent and fraction one place further down, the
// exponent has another bias and subnormals stay as they are. `even` has bytes 0 and 2, `odd` 1 and 3. NaN become ±480.
__device__ __forceinline__ void unpack_e4m3(uint32_t x, uint32_t& even, uint32_t& odd) {
    const uint32_t up = x << 8;
    even = (up & 0x80008000) | (up >> 1 & 0x3f803f80);
    odd = (x & 0x80008000) | (x >> 1 & 0x3f803f80);
}

// x_scale · scale · sum, from left to right: a sum of products of e4m3 as `unpack_e4m3` leaves them, and the scales of
// their two rows.
__device__ __forceinline__ float scaled(float sum, float x_scale, float scale) {
    constexpr float PACKED = 1 / (E4M3_UNPACKED * E4M3_UNPACKED);
    return __fmul_rn(__fmul_rn(x_scale, scale), sum * PACKED);
}

// The nearest e4m3, to even between two, in the lowest byte; ±448 for what is beyond, and for NaN.
__device__ __forceinline__ uint32_t to_e4m3(float x) {
    const float a = fminf(fabsf(x), E4M3_MOST);
    const uint32_t bits = __float_as_uint(a);
    // Under 2^-6 codes are multiples of 2^-9, the last place of a float by 2^14.
    const uint32_t subnormal = __float_as_uint(__fadd_rn(a, 16384.0f)) & 0xff;
    const uint32_t normal = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - ((127 - 7) << 3);
    return (__float_as_uint(x) >> 24 & 0x80) | (a < 0.015625f ? subnormal : normal);
}

// Eight of a row, as in eight.cuh; `WHOLE` ones are one access of 8 bytes.
template <bool WHOLE> __device__ __forceinline__ Eight<e4m3> load_eight(const e4m3* from, int count) {
    Eight<e4m3> x = {};
    if constexpr (WHOLE) {
        const uint2 v = *reinterpret_cast<const uint2*>(from);
        x.words[0] = v.x, x.words[1] = v.y;
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (i < count) x.words[i / 4] |= uint32_t(from[i]) << i % 4 * 8;
        }
    }
    return x;
}

template <bool WHOLE> __device__ __forceinline__ void store_eight(e4m3* to, const Eight<e4m3>& x, int count) {
    if constexpr (WHOLE) {
        *reinterpret_cast<uint2*>(to) = make_uint2(x.words[0], x.words[1]);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (i < count) to[i] = e4m3(x.words[i / 4] >> i % 4 * 8);
        }
    }
}

}  // namespace wl
