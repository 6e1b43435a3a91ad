// Philox4x32-10: random numbers as a function of what they are for.
//
// "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011, doi 10.1145/2063384.2063405). A counter of 128 bits goes
// through ten rounds under a key of 64 bits: no state, so a number depends on neither the launch nor the slot nor what
// was drawn before.
#pragma once
#include <stdint.h>

namespace wl {

struct Philox {
    uint32_t x[4];
};

__device__ __forceinline__ Philox philox(Philox counter, uint32_t key0, uint32_t key1) {
    uint32_t(&x)[4] = counter.x;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t a = uint64_t(0xd2511f53) * x[0];
        const uint64_t b = uint64_t(0xcd9e8d57) * x[2];
        x[0] = uint32_t(b >> 32) ^ x[1] ^ key0;
        x[1] = uint32_t(b);
        x[2] = uint32_t(a >> 32) ^ x[3] ^ key1;
        x[3] = uint32_t(a);
        key0 += 0x9e3779b9;
        key1 += 0xbb67ae85;
    }
    return counter;
}

// What a random number decides: two decisions at one position never share one.
enum class Use : uint32_t {
    plain = 0,     // a token drawn from the model's own distribution
    draft = 1,     // a draft
    accept = 2,    // whether a draft is kept
    residual = 3,  // the token in the place of one that is not
};

// 64 random bits for one decision of the sequence with this id, about the token that follows `position`.
__device__ __forceinline__ uint64_t random_bits(uint64_t seed, uint64_t sequence, int position, Use use) {
    const Philox counter = {uint32_t(position), uint32_t(use), uint32_t(sequence), uint32_t(sequence >> 32)};
    const Philox r = philox(counter, uint32_t(seed), uint32_t(seed >> 32));
    return r.x[0] | uint64_t(r.x[1]) << 32;
}

}  // namespace wl
