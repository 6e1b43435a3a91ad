// e4m3: a sign, four bits of exponent with the bias 7, three of fraction; up to ±448, no infinities.
//
// By integer operations, the same on every architecture: conversion instructions begin with sm_89.
#pragma once
#include <stdint.h>

namespace wl {

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

// The nearest e4m3, to even between two, in the lowest byte; ±448 for what is beyond, and for NaN.
__device__ __forceinline__ uint32_t to_e4m3(float x) {
    const float a = fminf(fabsf(x), E4M3_MOST);
    const uint32_t bits = __float_as_uint(a);
    // Under 2^-6 codes are multiples of 2^-9, the last place of a float by 2^14.
    const uint32_t subnormal = __float_as_uint(__fadd_rn(a, 16384.0f)) & 0xff;
    const uint32_t normal = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - ((127 - 7) << 3);
    return (__float_as_uint(x) >> 24 & 0x80) | (a < 0.015625f ? subnormal : normal);
}

}  // namespace wl
