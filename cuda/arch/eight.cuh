// Eight consecutive elements of a row: what a thread loads, holds and stores at once.
//
// In 16-bit types they are one 16-byte access, in f32 two. They stay as stored until they are used: half the
// registers of floats. `WHOLE` says that all eight lie within the row and are aligned to 16 bytes; without it only
// the first `count` are touched, one by one, and the others read as zeros.
#pragma once
#include "element.cuh"

namespace wl {

template <typename T> struct Eight {
    uint32_t words[8 / (4 / sizeof(T))];

    __device__ __forceinline__ void unpack_to(float (&x)[8]) const {
        if constexpr (sizeof(T) == 4) {
#pragma unroll
            for (int i = 0; i < 8; i++) x[i] = __uint_as_float(words[i]);
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float2 pair = unpack<T>(words[i]);
                x[2 * i] = pair.x;
                x[2 * i + 1] = pair.y;
            }
        }
    }
    // Rounds to T.
    __device__ __forceinline__ void pack_from(const float (&x)[8]) {
        if constexpr (sizeof(T) == 4) {
#pragma unroll
            for (int i = 0; i < 8; i++) words[i] = __float_as_uint(x[i]);
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) words[i] = pack<T>(x[2 * i], x[2 * i + 1]);
        }
    }
};

template <bool WHOLE, typename T> __device__ __forceinline__ Eight<T> load_eight(const T* from, int count) {
    Eight<T> x;
    if constexpr (WHOLE) {
#pragma unroll
        for (int i = 0; i < int(sizeof x / 16); i++) {
            const uint4 v = reinterpret_cast<const uint4*>(from)[i];
            x.words[4 * i] = v.x;
            x.words[4 * i + 1] = v.y;
            x.words[4 * i + 2] = v.z;
            x.words[4 * i + 3] = v.w;
        }
    } else if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < 8; i++) x.words[i] = i < count ? reinterpret_cast<const uint32_t*>(from)[i] : 0;
    } else {
        const uint16_t* p = reinterpret_cast<const uint16_t*>(from);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t low = 2 * i < count ? p[2 * i] : 0;
            const uint32_t high = 2 * i + 1 < count ? p[2 * i + 1] : 0;
            x.words[i] = low | high << 16;
        }
    }
    return x;
}

template <bool WHOLE, typename T> __device__ __forceinline__ void store_eight(T* to, const Eight<T>& x, int count) {
    if constexpr (WHOLE) {
#pragma unroll
        for (int i = 0; i < int(sizeof x / 16); i++) {
            reinterpret_cast<uint4*>(to)[i] =
                make_uint4(x.words[4 * i], x.words[4 * i + 1], x.words[4 * i + 2], x.words[4 * i + 3]);
        }
    } else if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (i < count) reinterpret_cast<uint32_t*>(to)[i] = x.words[i];
        }
    } else {
        uint16_t* p = reinterpret_cast<uint16_t*>(to);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (i < count) p[i] = uint16_t(x.words[i / 2] >> 16 * (i % 2));
        }
    }
}

// Whether rows that begin at these addresses may be accessed 16 bytes at a time.
__device__ __forceinline__ bool aligned(const void* a, const void* b = nullptr, const void* c = nullptr) {
    const auto bits = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
    return ((bits(a) | bits(b) | bits(c)) & 15) == 0;
}

}  // namespace wl
