// A driver of one GPU for tests/driver.rs. It puts all work off until something waits for it, in one queue: whoever
// changes or frees memory that is still to be read or written is found out. It runs one kernel, which writes down the
// sizes of its launch. Device memory is the host's. STUB names what goes wrong: old (CUDA 12.8), none (no GPU), small
// (compute capability 7.5), binary (no code for this GPU), ptx, fault (an illegal address).
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "driver.h"

typedef unsigned long long address;
enum { INVALID = 1, MEMORY = 2, NO_DEVICE = 100, CONTEXT = 201, BINARY = 209, PTX = 222, HANDLE = 400, NOT_FOUND = 500,
       FAULT = 700, CAPTURE = 900, INVALIDATED = 901, UNMATCHED = 903 };
typedef struct { int id, pad; union { unsigned cluster[3]; int programmatic; char bytes[64]; } value; } attribute;
typedef struct {
    unsigned grid[3], block[3], shared;
    struct stream* stream;
    attribute* attributes;
    unsigned count;
} config;
typedef struct event { int pending, dropped, recorded; float at; } event;
typedef struct {
    enum { COPY, SET, RECORD, LAUNCH, CALL } kind;
    char *to, *from;
    void (*call)(void*);
    size_t bytes;
    event* event;
    unsigned sizes[12];
} work;
typedef struct queue { work* all; size_t count; } queue;
typedef struct stream { int capturing; queue recorded; } stream;

static queue pending;
static int captures, allocated, contexts, lock;
static float clock_now;
static __thread void* current;

// Waits its turn, and leaves with an error where no context is current.
#define ENTER if (!current) return CONTEXT; while (__sync_lock_test_and_set(&lock, 1)) {}
#define LEAVE(code) do { int answer = (code); __sync_lock_release(&lock); return answer; } while (0)

static int stub_is(const char* what) {
    const char* set = getenv("STUB");
    return set && !strcmp(set, what);
}

static void push(queue* q, work w) {
    q->all = realloc(q->all, (q->count + 1) * sizeof w);
    q->all[q->count++] = w;
}

static int give(stream* s, work w) {
    if (!s->capturing && w.kind == RECORD) w.event->pending++;
    return push(s->capturing ? &s->recorded : &pending, w), 0;
}

static void release(event* e) {
    if (e->dropped && !e->pending) free(e);
}

static void run(void) {
    for (size_t i = 0; i < pending.count; i++) {
        work* w = &pending.all[i];
        if (w->kind == COPY) memcpy(w->to, w->from, w->bytes);
        if (w->kind == SET) memset(w->to, (int)(size_t)w->from, w->bytes);
        if (w->kind == RECORD) {
            w->event->recorded = 1, w->event->at = clock_now++, w->event->pending--;
            release(w->event);
        }
        if (w->kind == CALL) w->call(w->to);
        if (w->kind == LAUNCH) memcpy(w->to, w->sizes, sizeof w->sizes);
    }
    pending.count = 0;
}

int stub_context(void) { return current != 0; }
void stub_call(void* s, void (*call)(void*), void* argument) {
    while (__sync_lock_test_and_set(&lock, 1)) {}
    give(s, (work){.kind = CALL, .call = call, .to = argument});
    __sync_lock_release(&lock);
}

int cuInit(unsigned flags) { return stub_is("none") ? NO_DEVICE : 0; }
int cuDriverGetVersion(int* version) { return *version = stub_is("old") ? 12080 : 13000, 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGetName(char* name, int size, int device) { return strncpy(name, "Stub GPU", size), 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int device) { return *bytes = 1ull << 30, 0; }
int cuDeviceGetAttribute(int* value, int which, int device) {
    switch (which) {
        case 75: return *value = stub_is("small") ? 7 : 9, 0;  // compute capability, major
        case 76: return *value = stub_is("small") ? 5 : 0, 0;
        case 16: return *value = 132, 0;  // multiprocessors
        case 97: return *value = 232448, 0;  // shared memory of a CTA that opts in
        case 38: return *value = 50 << 20, 0;  // L2
        case 115: return *value = 0, 0;  // no memory pools
        default: return INVALID;
    }
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
    __sync_fetch_and_add(&contexts, 1);
    return *context = (void*)1, 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) { return __sync_fetch_and_sub(&contexts, 1), 0; }
__attribute__((destructor)) static void end(void) {
    if (!allocated && !contexts) return;
    fprintf(stderr, "%d allocations and %d contexts are left\n", allocated, contexts);
    _exit(1);
}
int cuCtxSetCurrent(void* context) { return current = context, 0; }
int cuCtxGetCurrent(void** context) { return *context = current, 0; }
int cuCtxSynchronize(void) {
    ENTER
    if (captures) LEAVE(CAPTURE);
    run();
    LEAVE(0);
}
int cuGetErrorString(int error, const char** text) { return *text = "the stub's words", 0; }

int cuModuleLoadData(void** module, const void* image) {
    ENTER
    // PTX text, whole, with its zero.
    if ((size_t)image % 8 || !strstr(image, ".entry sizes")) LEAVE(200);
    *module = (void*)2;
    LEAVE(stub_is("binary") ? BINARY : stub_is("ptx") ? PTX : 0);
}
int cuModuleUnload(void* module) { return module == (void*)2 ? 0 : HANDLE; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
    // As of PTX that is older.
    if (!strcmp(name, "old")) return *function = (void*)4, module != (void*)2 ? HANDLE : 0;
    return *function = (void*)3, module != (void*)2 ? HANDLE : strcmp(name, "sizes") ? NOT_FOUND : 0;
}
int cuFuncGetName(const char** name, void* function) { return *name = "sizes", 0; }
int cuFuncLoad(void* function) { return function == (void*)3 || function == (void*)4 ? 0 : HANDLE; }
int cuFuncGetAttribute(int* value, int which, void* function) {
    if (which == 5) return *value = function == (void*)4 ? 80 : 90, 0;
    return *value = 48, which == 1 ? 0 : INVALID;
}
int cuFuncSetAttribute(void* function, int which, int value) {
    return which == 8 && value == 232448 - 48 ? 0 : INVALID;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* ctas, void* function, int threads, size_t shared) {
    return *ctas = 2048 / threads, shared == 1024 ? 0 : INVALID;
}
int cuLaunchKernelEx(const config* c, void* function, void** parameters, void** extra) {
    ENTER
    if ((function != (void*)3 && function != (void*)4) || extra || !c->grid[0]) LEAVE(INVALID);
    work w = {.kind = LAUNCH};
    memcpy(&w.to, parameters[0], sizeof w.to);
    unsigned cluster[3] = {1, 1, 1}, programmatic = 0;
    for (unsigned i = 0; i < c->count; i++) {
        if (c->attributes[i].id == 4) memcpy(cluster, c->attributes[i].value.cluster, sizeof cluster);
        else if (c->attributes[i].id == 6) programmatic = c->attributes[i].value.programmatic;
        else LEAVE(INVALID);
    }
    memcpy(w.sizes, c->grid, 12), memcpy(w.sizes + 3, c->block, 12);
    w.sizes[6] = c->shared, w.sizes[7] = 0;
    memcpy(w.sizes + 8, cluster, 12), w.sizes[11] = programmatic;
    LEAVE(give(c->stream, w));
}

int cuMemAlloc_v2(address* p, size_t bytes) {
    if (!current) return CONTEXT;
    if (!bytes) return INVALID;
    if (bytes > 1ull << 30) return MEMORY;
    __sync_fetch_and_add(&allocated, 1);
    return *p = (address)aligned_alloc(256, (bytes + 255) / 256 * 256), memset((void*)*p, 0xa5, bytes), 0;
}
static void give_back(char* p) {
    char* end = p + malloc_usable_size(p);
    for (size_t i = 0; i < pending.count; i++) {
        work* w = &pending.all[i];
        if ((w->to >= p && w->to < end) || (w->from >= p && w->from < end)) fprintf(stderr, "freed in use\n"), abort();
    }
    free(p);
}
int cuMemFree_v2(address p) {
    ENTER
    give_back((char*)p), allocated--;
    LEAVE(0);
}
int cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = 1 << 29, *total = 1 << 30, 0; }
int cuMemHostAlloc(void** p, size_t bytes, unsigned flags) { return *p = malloc(bytes), flags ? INVALID : 0; }
int cuMemFreeHost(void* p) {
    ENTER
    give_back(p);
    LEAVE(0);
}
static int copy(void* to, const void* from, size_t bytes, stream* s) {
    ENTER
    LEAVE(bytes ? give(s, (work){.kind = COPY, .to = to, .from = (char*)from, .bytes = bytes}) : INVALID);
}
int cuMemcpyHtoDAsync_v2(address to, const void* from, size_t n, stream* s) { return copy((void*)to, from, n, s); }
int cuMemcpyDtoHAsync_v2(void* to, address from, size_t n, stream* s) { return copy(to, (void*)from, n, s); }
int cuMemcpyDtoDAsync_v2(address to, address from, size_t n, stream* s) { return copy((void*)to, (void*)from, n, s); }
int cuMemsetD8Async(address to, unsigned char byte, size_t bytes, stream* s) {
    ENTER
    LEAVE(bytes ? give(s, (work){.kind = SET, .to = (char*)to, .from = (char*)(size_t)byte, .bytes = bytes}) : INVALID);
}

int cuStreamCreate(stream** s, unsigned flags) { return *s = calloc(1, sizeof **s), flags == 1 ? 0 : INVALID; }
int cuStreamDestroy_v2(stream* s) {
    ENTER
    captures -= s->capturing != 0;
    free(s);
    LEAVE(0);
}
int cuStreamSynchronize(stream* s) {
    ENTER
    if (s->capturing) s->capturing = 2;  // invalidated
    if (s->capturing) LEAVE(CAPTURE);
    run();
    LEAVE(stub_is("fault") ? FAULT : 0);
}
int cuStreamIsCapturing(stream* s, int* status) { return *status = s->capturing, 0; }
int cuStreamBeginCapture_v2(stream* s, int mode) {
    ENTER
    if (s->capturing || mode != 2) LEAVE(INVALID);
    s->capturing = 1, captures++;
    LEAVE(0);
}
int cuStreamEndCapture(stream* s, queue** graph) {
    ENTER
    if (!s->capturing) LEAVE(UNMATCHED);
    int invalidated = s->capturing == 2;
    *graph = invalidated ? 0 : malloc(sizeof **graph);
    if (*graph) **graph = s->recorded;
    s->capturing = 0, s->recorded = (queue){0}, captures--;
    LEAVE(invalidated ? INVALIDATED : 0);
}
int cuStreamWaitEvent(stream* s, event* e, unsigned flags) {
    ENTER
    LEAVE(flags == (s->capturing != 0) ? 0 : INVALID);
}
int cuEventCreate(event** e, unsigned flags) { return *e = calloc(1, sizeof **e), 0; }
int cuEventDestroy_v2(event* e) {
    ENTER
    e->dropped = 1, release(e);
    LEAVE(0);
}
int cuEventRecordWithFlags(event* e, stream* s, unsigned flags) {
    ENTER
    LEAVE(flags == (s->capturing != 0) ? give(s, (work){.kind = RECORD, .event = e}) : INVALID);
}
int cuEventRecord(event* e, stream* s) {
    ENTER
    LEAVE(s->capturing ? 0 : give(s, (work){.kind = RECORD, .event = e}));
}
int cuEventSynchronize(event* e) {
    ENTER
    if (e->pending) run();
    LEAVE(0);
}
int cuEventElapsedTime_v2(float* ms, event* from, event* to) {
    return *ms = to->at - from->at, from->recorded && to->recorded ? 0 : HANDLE;
}
int cuGraphInstantiateWithFlags(queue** executable, queue* graph, unsigned long long flags) {
    *executable = malloc(sizeof **executable);
    **executable = (queue){0};
    for (size_t i = 0; i < graph->count; i++) push(*executable, graph->all[i]);
    return flags ? INVALID : 0;
}
int cuGraphGetNodes(queue* graph, void** nodes, size_t* count) { return *count = graph->count, nodes ? INVALID : 0; }
int cuGraphDestroy(queue* graph) { return free(graph->all), free(graph), 0; }
int cuGraphExecDestroy(queue* graph) { return free(graph->all), free(graph), 0; }
int cuGraphUpload(queue* graph, stream* s) { return s->capturing ? CAPTURE : 0; }
int cuGraphLaunch(queue* graph, stream* s) {
    ENTER
    for (size_t i = 0; i < graph->count; i++) give(s, graph->all[i]);
    LEAVE(0);
}
