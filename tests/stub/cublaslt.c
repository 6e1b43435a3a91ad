// The part of cuBLASLt that src/driver/cublaslt.rs calls, over the stub driver's queue: products in bf16, by plain loops
// when the driver gets to them. It has two algorithms, of which the second wants more workspace than there is.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "driver.h"

typedef struct { int rows, columns; long stride; } layout;
typedef struct { int transposed; } description;
typedef struct { size_t workspace; unsigned numbers[9]; } preference;
typedef struct { uint64_t data[8]; size_t workspace; int state; float waves; int reserved[4]; } found;
enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, BF16 = 14, FLOAT = 0, COMPUTE_FLOAT = 68 };

static int handles, made;

int cublasLtCreate(void** handle) {
    if (!stub_context()) return NOT_INITIALIZED;
    return handles++, *handle = &handles, SUCCESS;
}
int cublasLtDestroy(void* handle) { return handle == &handles && !made ? handles--, SUCCESS : INVALID_VALUE; }
int cublasLtMatmulDescCreate(description** d, int compute, int scale) {
    if (compute != COMPUTE_FLOAT || scale != FLOAT) return INVALID_VALUE;
    return made++, *d = calloc(1, sizeof **d), SUCCESS;
}
int cublasLtMatmulDescSetAttribute(description* d, int which, const int* value, size_t bytes) {
    if (which != 3 || bytes != 4) return INVALID_VALUE;
    return d->transposed = *value == 1, SUCCESS;
}
int cublasLtMatmulDescDestroy(description* d) { return made--, free(d), SUCCESS; }
int cublasLtMatrixLayoutCreate(layout** l, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    if (type != BF16 || stride < (int64_t)rows) return INVALID_VALUE;
    *l = malloc(sizeof **l);
    return made++, **l = (layout){(int)rows, (int)columns, stride}, SUCCESS;
}
int cublasLtMatrixLayoutDestroy(layout* l) { return made--, free(l), SUCCESS; }
size_t cublasLtGetVersion(void) { return 130000; }
int cublasLtMatmulPreferenceCreate(preference** p) { return made++, *p = calloc(1, sizeof **p), SUCCESS; }
int cublasLtMatmulPreferenceSetAttribute(preference* p, int which, const void* value, size_t bytes) {
    if (which == 1 && bytes == 8) return p->workspace = *(const size_t*)value, SUCCESS;
    if ((which != 3 && (which < 5 || which > 8)) || bytes != 4) return INVALID_VALUE;
    return p->numbers[which] = *(const unsigned*)value, SUCCESS;
}
int cublasLtMatmulPreferenceDestroy(preference* p) { return made--, free(p), SUCCESS; }

int cublasLtMatmulAlgoGetHeuristic(void* handle, description* d, layout* a, layout* b, layout* c, layout* out, preference* p,
                                   int most, found* results, int* count) {
    if (handle != &handles || !d->transposed || c != out || a->rows != b->rows || a->columns != out->rows ||
        b->columns != out->columns || most < 2) {
        return INVALID_VALUE;
    }
    // Operands begin at multiples of 16 bytes, and sums are split in f32.
    for (int i = 5; i <= 8; i++) {
        if (p->numbers[i] != 16) return INVALID_VALUE;
    }
    if (p->numbers[3] != 2) return INVALID_VALUE;
    results[0] = (found){.data = {1}, .workspace = p->workspace};
    results[1] = (found){.data = {2}, .workspace = p->workspace + 1};
    return *count = 2, SUCCESS;
}

static float to_float(uint16_t x) {
    union { uint32_t bits; float value; } u = {(uint32_t)x << 16};
    return u.value;
}
static uint16_t to_bf16(float x) {
    union { float value; uint32_t bits; } u = {x};
    return (uint16_t)((u.bits + 0x7fff + (u.bits >> 16 & 1)) >> 16);
}

typedef struct { const uint16_t *a, *b; uint16_t* out; layout la, lb, lout; float beta; } product;

static void multiply(void* argument) {
    product* p = argument;
    for (int row = 0; row < p->lout.columns; row++) {
        for (int n = 0; n < p->lout.rows; n++) {
            float sum = 0;
            for (int k = 0; k < p->la.rows; k++) {
                sum += to_float(p->a[n * p->la.stride + k]) * to_float(p->b[row * p->lb.stride + k]);
            }
            uint16_t* out = &p->out[row * p->lout.stride + n];
            *out = to_bf16(p->beta != 0 ? sum + p->beta * to_float(*out) : sum);
        }
    }
    free(p);
}

int cublasLtMatmul(void* handle, description* d, const float* alpha, const void* a, layout* la, const void* b, layout* lb,
                   const float* beta, const void* c, layout* lc, void* out, layout* lout, const uint64_t* algorithm,
                   void* workspace, size_t bytes, void* stream) {
    if (handle != &handles || *alpha != 1 || *algorithm != 1 || !workspace || bytes < 32 << 20 || c != out || lc != lout) {
        return INVALID_VALUE;
    }
    product* p = malloc(sizeof *p);
    *p = (product){a, b, out, *la, *lb, *lout, *beta};
    return stub_call(stream, multiply, p), SUCCESS;
}
