// Four 8×8 matrices of 16-bit elements from shared memory to mma operands.
//
// Lanes 8i to 8i+7 give the addresses of the rows of matrix i, 16 bytes each; lane l receives elements 2(l%4) and 2(l%4)+1 of
// row l/4 of every matrix, or with `_transposed` of column l/4. The eight rows of one matrix must lie in eight different 16-byte
// columns of the 128-byte line of banks, or they are fetched one after the other.
#pragma once
#include <stdint.h>

namespace wl {

// Address of shared memory as ldmatrix and cp.async take it.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return uint32_t(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void ldmatrix(uint32_t (&x)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&x)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
}

}  // namespace wl
