// One small kernel for each thing that the checks must find, and beside it the correct twin, which must be clean.
//
// faults.txt says how each is launched and what must be found. A line that a finding may name ends in the comment `fault`
// (for a race: either of the two accesses).
#include "asm.cuh"

#define KERNEL extern "C" __global__ void

// ======================================================================== out_of_bounds

// n = 32 elements, 32 threads: the last one is one element too far.
KERNEL oob_global_write(uint32_t* out, int n) {
    out[threadIdx.x + 1] = n;  // fault
}
KERNEL oob_global_write_ok(uint32_t* out, int n) {
    if (threadIdx.x + 1 < n) out[threadIdx.x + 1] = n;
}
// The read falls between two allocations, on the low side.
KERNEL oob_global_read(uint32_t* out, const uint32_t* in, int n) {
    out[threadIdx.x] = in[(int)threadIdx.x - n];  // fault
}
// A vector of 16 bytes whose last 4 are outside.
KERNEL oob_global_vector(float4* out, const float4* in) {
    out[threadIdx.x] = in[threadIdx.x];  // fault
}
KERNEL oob_shared(uint32_t* out, int shift) {
    __shared__ uint32_t line[32];
    line[threadIdx.x] = threadIdx.x;
    __syncwarp();
    out[threadIdx.x] = line[threadIdx.x + shift];  // fault
}
KERNEL oob_shared_ok(uint32_t* out, int shift) {
    __shared__ uint32_t line[32];
    line[threadIdx.x] = threadIdx.x;
    __syncwarp();
    out[threadIdx.x] = line[(threadIdx.x + shift) % 32];
}
KERNEL oob_shared_dynamic(uint32_t* out, int last) {
    extern __shared__ uint32_t words[];
    words[last] = threadIdx.x;  // fault
    out[0] = words[last];       // fault
}
KERNEL oob_local(uint32_t* out, const uint32_t* in, int shift) {
    uint32_t history[8];
    for (int i = 0; i < 8; i++) history[i] = in[i];
    history[(threadIdx.x & 7) + shift] = 7;  // fault
    uint32_t sum = 0;
    for (int i = 0; i < 8; i++) sum = sum * 3 + history[(i + in[i]) & 7];
    out[threadIdx.x] = sum;
}
__constant__ uint32_t primes[4] = {2, 3, 5, 7};
KERNEL oob_constant(uint32_t* out, int shift) {
    out[threadIdx.x] = primes[(threadIdx.x & 3) + shift];  // fault
}
KERNEL oob_atomic(uint32_t* out, int n) {
    atomicAdd(out + n, 1);  // fault
}
KERNEL oob_cp_async(uint32_t* out, const uint32_t* in) {
    __shared__ __align__(16) uint32_t line[128];
    cp_async_16(shared_address(line + threadIdx.x * 4), in + threadIdx.x * 4);  // fault
    cp_async_commit();
    cp_async_wait<0>();
    out[threadIdx.x] = line[threadIdx.x * 4];
}
// No byte is read where cp.async has no valid byte, so any address will do.
KERNEL oob_cp_async_ok(uint32_t* out, const uint32_t* in, int n) {
    __shared__ __align__(16) uint32_t line[128];
    const int first = threadIdx.x * 4;
    cp_async_16(shared_address(line + first), in + first, first < n ? 16 : 0);
    cp_async_commit();
    cp_async_wait<0>();
    out[threadIdx.x] = line[first];
}

// ======================================================================== misaligned

KERNEL misaligned_global(float4* out, const float* in, int shift) {
    out[threadIdx.x] = *(const float4*)(in + threadIdx.x * 4 + shift);  // fault
}
KERNEL misaligned_shared(uint32_t* out, int shift) {
    __shared__ __align__(16) uint32_t line[160];
    for (int i = threadIdx.x; i < 160; i += 32) line[i] = i;
    __syncwarp();
    const uint2 pair = *(const uint2*)(line + threadIdx.x * 4 + shift);  // fault
    out[threadIdx.x] = pair.x + pair.y;
}
KERNEL misaligned_cp_async(uint32_t* out, const uint32_t* in, int shift) {
    __shared__ __align__(16) uint32_t line[132];
    cp_async_16(shared_address(line + threadIdx.x * 4 + shift), in + threadIdx.x * 4);  // fault
    cp_async_commit();
    cp_async_wait<0>();
    out[threadIdx.x] = line[threadIdx.x * 4 + shift];
}
KERNEL misaligned_ldmatrix(uint32_t* out, int shift) {
    __shared__ __align__(16) uint32_t tile[4 * 32 + 4];
    for (int i = threadIdx.x; i < 4 * 32 + 4; i += 32) tile[i] = i;
    __syncwarp();
    uint32_t r[4];
    ldmatrix_x4(r, shared_address(tile + threadIdx.x * 4 + shift));  // fault
    out[threadIdx.x] = r[0] ^ r[1] ^ r[2] ^ r[3];
}

// ======================================================================== uninitialised

KERNEL uninitialised_shared(uint32_t* out) {
    __shared__ uint32_t line[64];
    line[threadIdx.x] = threadIdx.x;
    __syncwarp();
    out[threadIdx.x] = line[threadIdx.x * 2];  // fault
}
KERNEL uninitialised_shared_ok(uint32_t* out) {
    __shared__ uint32_t line[64];
    line[threadIdx.x] = line[threadIdx.x + 32] = threadIdx.x;
    __syncwarp();
    out[threadIdx.x] = line[threadIdx.x * 2];
}
// `in` was allocated and never written.
KERNEL uninitialised_global(uint32_t* out, const uint32_t* in) {
    out[threadIdx.x] = in[threadIdx.x] & 1;  // fault
}
#define SUM_OF_SOME "{ .reg .b32 r; .reg .pred p; setp.lt.s32 p, %1, 16; @p mov.b32 r, 5; "
// Lanes 16 and up never write the register that they add to.
KERNEL uninitialised_register(uint32_t* out, int n) {
    uint32_t sum;
    const uint32_t x = threadIdx.x + n;
    asm volatile(SUM_OF_SOME "add.u32 %0, r, 1; }" : "=r"(sum) : "r"(x));  // fault
    out[threadIdx.x] = sum;
}
// The predicate that leaves a register unwritten also guards its use.
KERNEL uninitialised_register_ok(uint32_t* out, int n) {
    uint32_t sum = 0;
    const uint32_t x = threadIdx.x + n;
    asm volatile(SUM_OF_SOME "@p add.u32 %0, r, 1; }" : "+r"(sum) : "r"(x));
    out[threadIdx.x] = sum;
}
KERNEL uninitialised_local(uint32_t* out, int n) {
    uint32_t history[8];
    for (int i = 0; i < n; i++) history[i & 7] = i;
    out[threadIdx.x] = history[threadIdx.x & 7] + 1;  // fault
}

// ======================================================================== race: shared memory

KERNEL race_read_write(uint32_t* out) {
    __shared__ uint32_t line[128];
    line[threadIdx.x] = threadIdx.x;             // fault
    out[threadIdx.x] = line[127 - threadIdx.x];  // fault
}
KERNEL race_read_write_ok(uint32_t* out) {
    __shared__ uint32_t line[128];
    line[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = line[127 - threadIdx.x];
}
KERNEL race_write_write(uint32_t* out) {
    __shared__ uint32_t last;
    last = threadIdx.x;  // fault
    __syncthreads();
    out[threadIdx.x] = last;
}
KERNEL race_write_write_ok(uint32_t* out) {
    __shared__ uint32_t last;
    if (threadIdx.x == 0) last = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = last;
}
// Two rounds through one buffer, without a barrier between the reads of the first and the writes of the second.
KERNEL race_reuse(uint32_t* out) {
    __shared__ uint32_t line[128];
    uint32_t sum = 0;
#pragma unroll 1
    for (int round = 0; round < 2; round++) {
        line[threadIdx.x] = threadIdx.x + round;  // fault
        __syncthreads();
        sum += line[127 - threadIdx.x];  // fault
    }
    out[threadIdx.x] = sum;
}
KERNEL race_reuse_ok(uint32_t* out) {
    __shared__ uint32_t line[128];
    uint32_t sum = 0;
#pragma unroll 1
    for (int round = 0; round < 2; round++) {
        line[threadIdx.x] = threadIdx.x + round;
        __syncthreads();
        sum += line[127 - threadIdx.x];
        __syncthreads();
    }
    out[threadIdx.x] = sum;
}
// Two lanes of one warp: lockstep is not promised.
KERNEL race_warp(uint32_t* out) {
    __shared__ uint32_t line[32];
    line[threadIdx.x] = threadIdx.x;            // fault
    out[threadIdx.x] = line[threadIdx.x ^ 1];  // fault
}
KERNEL race_warp_ok(uint32_t* out) {
    __shared__ uint32_t line[32];
    line[threadIdx.x] = threadIdx.x;
    __syncwarp();
    out[threadIdx.x] = line[threadIdx.x ^ 1];
}
// An atomic and a plain read of the same word.
KERNEL race_shared_atomic(uint32_t* out) {
    __shared__ uint32_t count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    atomicAdd(&count, 1);      // fault
    out[threadIdx.x] = count;  // fault
}
KERNEL race_shared_atomic_ok(uint32_t* out) {
    __shared__ uint32_t count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    atomicAdd(&count, 1);
    __syncthreads();
    out[threadIdx.x] = count;
}
// Half of the warps meet at one named barrier, half at another: each half sees its own writes only.
KERNEL race_named_barrier(uint32_t* out) {
    __shared__ uint32_t line[128];
    line[threadIdx.x] = threadIdx.x;  // fault
    const int half = threadIdx.x / 64;
    asm volatile("bar.sync %0, 64;" ::"r"(half + 1) : "memory");
    out[threadIdx.x] = line[127 - threadIdx.x];  // fault
}
KERNEL race_named_barrier_ok(uint32_t* out) {
    __shared__ uint32_t line[128];
    line[threadIdx.x] = threadIdx.x;
    const int half = threadIdx.x / 64;
    asm volatile("bar.sync %0, 64;" ::"r"(half + 1) : "memory");
    out[threadIdx.x] = line[half * 64 + 63 - threadIdx.x % 64];
}
// A producer warp arrives, a consumer warp waits; the buffer is handed back the same way.
KERNEL arrive_ok(uint32_t* out) {
    __shared__ uint32_t line[32];
    const int lane = threadIdx.x % 32;
    uint32_t sum = 0;
    for (int round = 0; round < 4; round++) {
        if (threadIdx.x < 32) {
            if (round > 0) asm volatile("bar.sync 2, 64;" ::: "memory");
            line[lane] = lane * round;
            asm volatile("bar.arrive 1, 64;" ::: "memory");
        } else {
            asm volatile("bar.sync 1, 64;" ::: "memory");
            sum += line[31 - lane];
            if (round < 3) asm volatile("bar.arrive 2, 64;" ::: "memory");
        }
    }
    if (threadIdx.x >= 32) out[lane] = sum;
}
// The same, but the consumer does not say that it has read.
KERNEL race_arrive(uint32_t* out) {
    __shared__ uint32_t line[32];
    const int lane = threadIdx.x % 32;
    uint32_t sum = 0;
    for (int round = 0; round < 4; round++) {
        if (threadIdx.x < 32) {
            line[lane] = lane * round;  // fault
            asm volatile("bar.arrive 1, 64;" ::: "memory");
        } else {
            asm volatile("bar.sync 1, 64;" ::: "memory");
            sum += line[31 - lane];  // fault
        }
    }
    if (threadIdx.x >= 32) out[lane] = sum;
}

// ======================================================================== race: global memory, between CTAs

KERNEL race_global_write(uint32_t* out) {
    if (threadIdx.x == 0) out[0] = blockIdx.x;  // fault
}
KERNEL race_global_read(uint32_t* out, uint32_t* line) {
    line[blockIdx.x] = blockIdx.x;                               // fault
    out[blockIdx.x] = line[(blockIdx.x + 1) % gridDim.x];        // fault
}
KERNEL race_global_ok(uint32_t* out) {
    atomicMax(out, blockIdx.x);
    out[1 + blockIdx.x] = blockIdx.x;
}
// A sum that misses updates: read, add and write are three steps.
KERNEL race_global_sum(uint32_t* out) {
    if (threadIdx.x == 0) out[0] += blockIdx.x;  // fault
}
// Neighbouring bytes of one word are different places.
KERNEL race_global_bytes_ok(uint8_t* out) {
    out[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x;
}
// Within one CTA a barrier orders global memory too.
KERNEL race_global_cta(uint32_t* out) {
    out[threadIdx.x] = threadIdx.x;                        // fault
    out[128 + threadIdx.x] = out[127 - threadIdx.x] + 1;  // fault
}
KERNEL race_global_cta_ok(uint32_t* out) {
    out[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[128 + threadIdx.x] = out[127 - threadIdx.x] + 1;
}

// ---- communication through a flag: CTA 0 writes 32 words, CTA 1 waits and reads them. flag starts at 0 ----

DEVICE uint32_t load_acquire(const uint32_t* flag) {
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    return value;
}
DEVICE void store_release(uint32_t* flag, uint32_t value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
KERNEL flag_ok(uint32_t* out, uint32_t* data, uint32_t* flag) {
    if (blockIdx.x == 0) {
        data[threadIdx.x] = threadIdx.x * 3;
        __syncthreads();
        if (threadIdx.x == 0) store_release(flag, 1);
    } else {
        if (threadIdx.x == 0)
            while (load_acquire(flag) == 0) {}
        __syncthreads();
        out[threadIdx.x] = data[31 - threadIdx.x];
    }
}
// The flag is right, but relaxed: it orders nothing.
KERNEL flag_relaxed(uint32_t* out, uint32_t* data, uint32_t* flag) {
    if (blockIdx.x == 0) {
        data[threadIdx.x] = threadIdx.x * 3;  // fault
        __syncthreads();
        if (threadIdx.x == 0) asm volatile("st.relaxed.gpu.global.u32 [%0], 1;" ::"l"(flag) : "memory");
    } else {
        uint32_t seen = 0;
        while (threadIdx.x == 0 && seen == 0)
            asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
        __syncthreads();
        out[threadIdx.x] = data[31 - threadIdx.x];  // fault
    }
}
// Relaxed accesses with fences around them: as good as release and acquire.
KERNEL flag_fence_ok(uint32_t* out, uint32_t* data, volatile uint32_t* flag) {
    if (blockIdx.x == 0) {
        data[threadIdx.x] = threadIdx.x * 3;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) *flag = 1;
    } else {
        if (threadIdx.x == 0) {
            while (*flag == 0) {}
            __threadfence();
        }
        __syncthreads();
        out[threadIdx.x] = data[31 - threadIdx.x];
    }
}
// Release and acquire that reach no further than a CTA, used between CTAs.
KERNEL flag_narrow(uint32_t* out, uint32_t* data, uint32_t* flag) {
    if (blockIdx.x == 0) {
        data[threadIdx.x] = threadIdx.x * 3;  // fault
        __syncthreads();
        if (threadIdx.x == 0) asm volatile("st.release.cta.global.u32 [%0], 1;" ::"l"(flag) : "memory");  // fault
    } else {
        uint32_t seen = 0;
        while (threadIdx.x == 0 && seen == 0)
            asm volatile("ld.acquire.cta.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");  // fault
        __syncthreads();
        out[threadIdx.x] = data[31 - threadIdx.x];  // fault
    }
}
// The flag is an ordinary word.
KERNEL flag_plain(uint32_t* out, uint32_t* data, uint32_t* flag) {
    if (blockIdx.x == 0) {
        data[threadIdx.x] = threadIdx.x * 3;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) *flag = 1;  // fault
    } else if (*flag != 0) {              // fault
        out[threadIdx.x] = data[31 - threadIdx.x];
    }
}

// ---- the last CTA combines what all wrote: a ticket taken after a fence. ticket starts at 0 ----

KERNEL last_cta_ok(uint32_t* out, uint32_t* partial, uint32_t* ticket) {
    __shared__ bool is_last;
    partial[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x + threadIdx.x;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(ticket, 1) == gridDim.x - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    uint32_t sum = 0;
    for (int cta = 0; cta < gridDim.x; cta++) sum += partial[cta * blockDim.x + threadIdx.x];
    out[threadIdx.x] = sum;
}
KERNEL last_cta_no_fence(uint32_t* out, uint32_t* partial, uint32_t* ticket) {
    __shared__ bool is_last;
    partial[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x + threadIdx.x;  // fault
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(ticket, 1) == gridDim.x - 1;
    __syncthreads();
    if (!is_last) return;
    uint32_t sum = 0;
    for (int cta = 0; cta < gridDim.x; cta++) sum += partial[cta * blockDim.x + threadIdx.x];  // fault
    out[threadIdx.x] = sum;
}
// The fence is there, but the ticket is drawn before the other threads of the CTA have written.
KERNEL last_cta_no_barrier(uint32_t* out, uint32_t* partial, uint32_t* ticket) {
    __shared__ bool is_last;
    partial[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x + threadIdx.x;  // fault
    __threadfence();
    if (threadIdx.x == 0) is_last = atomicAdd(ticket, 1) == gridDim.x - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    uint32_t sum = 0;
    for (int cta = 0; cta < gridDim.x; cta++) sum += partial[cta * blockDim.x + threadIdx.x];  // fault
    out[threadIdx.x] = sum;
}
// A lock by compare-and-swap: acquired by one CTA after the other.
KERNEL lock_ok(uint32_t* total, uint32_t* lock) {
    if (threadIdx.x == 0) {
        while (atomicCAS(lock, 0, 1) != 0) {}
        __threadfence();
        *total += blockIdx.x;
        __threadfence();
        atomicExch(lock, 0);
    }
}

// ======================================================================== missing_wait

KERNEL missing_wait(uint32_t* out, const uint32_t* in) {
    __shared__ __align__(16) uint32_t line[128];
    cp_async_16(shared_address(line + threadIdx.x * 4), in + threadIdx.x * 4);  // fault
    cp_async_commit();
    out[threadIdx.x] = line[threadIdx.x * 4];  // fault
}
KERNEL missing_wait_ok(uint32_t* out, const uint32_t* in) {
    __shared__ __align__(16) uint32_t line[128];
    cp_async_16(shared_address(line + threadIdx.x * 4), in + threadIdx.x * 4);
    cp_async_commit();
    cp_async_wait<0>();
    out[threadIdx.x] = line[threadIdx.x * 4];
}
// Two groups are in flight, one may stay so: the second, which is read.
KERNEL missing_wait_group(uint32_t* out, const uint32_t* in) {
    __shared__ __align__(16) uint32_t line[2][128];
    for (int group = 0; group < 2; group++) {
        cp_async_16(shared_address(line[group] + threadIdx.x * 4), in + group * 128 + threadIdx.x * 4);  // fault
        cp_async_commit();
    }
    cp_async_wait<1>();
    out[threadIdx.x] = line[1][threadIdx.x * 4];  // fault
}
KERNEL missing_wait_group_ok(uint32_t* out, const uint32_t* in) {
    __shared__ __align__(16) uint32_t line[2][128];
    for (int group = 0; group < 2; group++) {
        cp_async_16(shared_address(line[group] + threadIdx.x * 4), in + group * 128 + threadIdx.x * 4);
        cp_async_commit();
    }
    cp_async_wait<1>();
    out[threadIdx.x] = line[0][threadIdx.x * 4];
    cp_async_wait<0>();
    out[threadIdx.x] += line[1][threadIdx.x * 4];
}
// wait_group counts committed groups only; wait_all takes the rest too.
KERNEL missing_wait_commit(uint32_t* out, const uint32_t* in) {
    __shared__ __align__(16) uint32_t line[128];
    cp_async_16(shared_address(line + threadIdx.x * 4), in + threadIdx.x * 4);  // fault
    cp_async_wait<0>();
    out[threadIdx.x] = line[threadIdx.x * 4];  // fault
}
KERNEL missing_wait_commit_ok(uint32_t* out, const uint32_t* in) {
    __shared__ __align__(16) uint32_t line[128];
    cp_async_16(shared_address(line + threadIdx.x * 4), in + threadIdx.x * 4);
    asm volatile("cp.async.wait_all;" ::: "memory");
    out[threadIdx.x] = line[threadIdx.x * 4];
}
// A wait is for the thread's own copies: those of another thread need a barrier after its wait. The barrier is before it here.
KERNEL missing_wait_other_thread(uint32_t* out, const uint32_t* in) {
    __shared__ __align__(16) uint32_t line[128];
    cp_async_16(shared_address(line + threadIdx.x * 4), in + threadIdx.x * 4);  // fault
    cp_async_commit();
    __syncwarp();
    cp_async_wait<0>();
    out[threadIdx.x] = line[127 - threadIdx.x * 4];  // fault
}
KERNEL missing_wait_other_thread_ok(uint32_t* out, const uint32_t* in) {
    __shared__ __align__(16) uint32_t line[128];
    cp_async_16(shared_address(line + threadIdx.x * 4), in + threadIdx.x * 4);
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    out[threadIdx.x] = line[127 - threadIdx.x * 4];
}
// The destination of a copy in flight is written by hand.
KERNEL missing_wait_overwrite(uint32_t* out, const uint32_t* in) {
    __shared__ __align__(16) uint32_t line[128];
    cp_async_16(shared_address(line + threadIdx.x * 4), in + threadIdx.x * 4);  // fault
    cp_async_commit();
    line[threadIdx.x * 4] = 7;  // fault
    cp_async_wait<0>();
    out[threadIdx.x] = line[threadIdx.x * 4];
}

// ======================================================================== partial_mask

KERNEL partial_shfl(uint32_t* out) {
    uint32_t value = threadIdx.x;
    if (threadIdx.x < 16) value = __shfl_sync(~0u, value, threadIdx.x ^ 1);  // fault
    __syncthreads();
    out[threadIdx.x] = value;
}
KERNEL partial_shfl_ok(uint32_t* out) {
    uint32_t value = threadIdx.x;
    if (threadIdx.x < 16) value = __shfl_sync(0xffffu, value, threadIdx.x ^ 1);
    __syncthreads();
    out[threadIdx.x] = value;
}
// A lane outside its own mask.
KERNEL partial_shfl_self(uint32_t* out) {
    out[threadIdx.x] = __shfl_sync(0xffffu, threadIdx.x, threadIdx.x ^ 1);  // fault
}
// A lane inside reads from one outside.
KERNEL partial_shfl_source(uint32_t* out) {
    uint32_t value = threadIdx.x;
    if (threadIdx.x < 16) value = __shfl_sync(0xffffu, value, threadIdx.x + 16);  // fault
    __syncwarp();
    out[threadIdx.x] = value;
}
KERNEL partial_vote(uint32_t* out) {
    uint32_t value = 0;
    if (threadIdx.x & 1) value = __ballot_sync(~0u, threadIdx.x > 7);  // fault
    __syncthreads();
    out[threadIdx.x] = value;
}
KERNEL partial_syncwarp(uint32_t* out) {
    if (threadIdx.x < 8) __syncwarp(0xffffu);  // fault
    __syncthreads();
    out[threadIdx.x] = 1;
}
// Both sides arrive at a warp barrier with the same mask, from different places: that is allowed.
KERNEL partial_syncwarp_ok(uint32_t* out) {
    __shared__ uint32_t line[32];
    line[threadIdx.x] = threadIdx.x;
    if (threadIdx.x < 8) {
        __syncwarp();
        out[threadIdx.x] = line[31 - threadIdx.x];
    } else {
        __syncwarp();
        out[threadIdx.x] = line[31 - threadIdx.x] * 2;
    }
}
// Lanes that have left the kernel need not come.
KERNEL partial_exited_ok(uint32_t* out) {
    if (threadIdx.x >= 20) return;
    out[threadIdx.x] = __reduce_add_sync((1u << 20) - 1, threadIdx.x);
}
KERNEL partial_ldmatrix(uint32_t* out) {
    __shared__ __align__(16) uint32_t tile[128];
    for (int i = threadIdx.x; i < 128; i += 32) tile[i] = i;
    __syncwarp();
    uint32_t r[4] = {};
    if (threadIdx.x < 24) ldmatrix_x4(r, shared_address(tile + threadIdx.x * 4));  // fault
    __syncwarp();
    out[threadIdx.x] = r[0] ^ r[1] ^ r[2] ^ r[3];
}
KERNEL partial_mma(float* out, uint32_t bits) {
    float d[4] = {};
    const uint32_t a[4] = {bits, bits, bits, bits};
    if (threadIdx.x != 5) mma_bf16(d, a, bits, bits);  // fault
    __syncwarp();
    out[threadIdx.x] = d[0] + d[3];
}

// ======================================================================== deadlock

// The two halves of the CTA wait at different barriers, each for everyone.
KERNEL deadlock_barrier(uint32_t* out) {
    if (threadIdx.x < 32) {
        asm volatile("bar.sync 0;" ::: "memory");  // fault
        out[threadIdx.x] = 1;
    } else {
        asm volatile("bar.sync 1;" ::: "memory");  // fault
        out[threadIdx.x] = 2;
    }
}
// 96 threads are expected, 64 exist.
KERNEL deadlock_count(uint32_t* out) {
    asm volatile("bar.sync 1, 96;" ::: "memory");  // fault
    out[threadIdx.x] = 1;
}
// Nobody sets the flag.
KERNEL deadlock_flag(uint32_t* out, uint32_t* flag) {
    if (threadIdx.x == 0)
        while (load_acquire(flag) == 0) {}  // fault
    __syncthreads();  // fault
    out[threadIdx.x] = 1;
}
// Each CTA waits for the other.
KERNEL deadlock_pair(uint32_t* flags) {
    while (load_acquire(flags + (blockIdx.x ^ 1)) == 0) {}  // fault
    store_release(flags + blockIdx.x, 1);
}
// Warps of one CTA wait for a shared flag that is set only after the barrier where the others wait.
KERNEL deadlock_shared_flag(uint32_t* out) {
    __shared__ volatile uint32_t ready;
    if (threadIdx.x == 0) ready = 0;
    __syncthreads();
    if (threadIdx.x < 32)
        while (ready == 0) {}  // fault
    __syncthreads();  // fault
    ready = 1;
    out[threadIdx.x] = ready;
}
// A barrier in a branch that all threads take, and threads that leave early: both are fine.
KERNEL deadlock_ok(uint32_t* out, int n) {
    if (threadIdx.x >= 96) return;
    if (n > 0) __syncthreads();
    out[threadIdx.x] = n;
}

// ---- what only a closer look tells apart ----

// Each half of the warp meets its own lanes; the other half's writes are not ordered by that.
KERNEL race_halves(uint32_t* out) {
    __shared__ uint32_t line[32];
    const uint32_t lane = threadIdx.x;
    line[lane] = lane;  // fault
    __syncwarp(0xffffu << (lane & 16));
    out[lane] = line[lane ^ 16];  // fault
}
KERNEL race_halves_ok(uint32_t* out) {
    __shared__ uint32_t line[32];
    const uint32_t lane = threadIdx.x;
    line[lane] = lane;
    __syncwarp(0xffffu << (lane & 16));
    out[lane] = line[lane ^ 8];
}
// A fence that is narrower than its readers are far.
KERNEL last_cta_block_fence(uint32_t* out, uint32_t* partial, uint32_t* ticket) {
    __shared__ bool is_last;
    partial[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x;  // fault
    __threadfence_block();
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(ticket, 1) == gridDim.x - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    uint32_t sum = 0;
    for (int cta = 0; cta < gridDim.x; cta++) sum += partial[cta * blockDim.x + threadIdx.x];  // fault
    out[threadIdx.x] = sum;
}
// Every lane takes the lock in turn, while the others of its warp wait for it.
KERNEL lock_in_warp_ok(uint32_t* out, uint32_t* lock) {
    while (atomicCAS(lock, 0, 1) != 0) {
    }
    __threadfence();
    out[0] = out[0] + 1;
    __threadfence();
    atomicExch(lock, 0);
}
// A vector of which one element is never written nor used.
struct alignas(16) Triple {
    float a, b, c;
};
KERNEL partial_vector_ok(float* out, Triple* scratch, float value) {
    scratch[threadIdx.x] = Triple{value, value + 1, value + 2};
    __syncthreads();
    const Triple other = scratch[threadIdx.x ^ 1];
    out[threadIdx.x] = other.a + other.b + other.c;
}
