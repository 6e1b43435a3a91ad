// A driver of one GPU that launches nothing: what tests/command.rs needs to see the program talk to one. Device memory is the
// host's. STUB names what goes wrong: old (CUDA 12.8), no_device, bad_image, fault.
#include <stdlib.h>
#include <string.h>

typedef unsigned long long address;

static int stub_is(const char* what) {
    const char* set = getenv("STUB");
    return set && !strcmp(set, what);
}

int cuInit(unsigned flags) { return stub_is("no_device") ? 100 : 0; }
int cuDriverGetVersion(int* version) { return *version = stub_is("old") ? 12080 : 13000, 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGetName(char* name, int size, int device) { return strncpy(name, "Stub GPU (80 GB)", size), 0; }
// Compute capability 8.0 (attributes 75 and 76), and none of the rest.
int cuDeviceGetAttribute(int* value, int attribute, int device) { return *value = attribute == 75 ? 8 : 0, 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) { return *context = (void*)1, 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxGetCurrent(void** context) { return *context = (void*)1, 0; }
int cuCtxSetCurrent(void* context) { return 0; }
int cuModuleLoadData(void** module, const void* image) { return *module = (void*)2, stub_is("bad_image") ? 222 : 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) { return *function = (void*)3, 0; }
int cuMemAlloc_v2(address* p, size_t bytes) { return *p = (address)malloc(bytes), 0; }
int cuMemFree_v2(address p) { return free((void*)p), 0; }
int cuMemcpyHtoDAsync_v2(address to, const void* from, size_t bytes, void* stream) { return memcpy((void*)to, from, bytes), 0; }
int cuMemcpyDtoHAsync_v2(void* to, address from, size_t bytes, void* stream) { return memcpy(to, (void*)from, bytes), 0; }
int cuEventCreate(void** event, unsigned flags) { return *event = (void*)4, 0; }
int cuEventRecord(void* event, void* stream) { return 0; }
int cuEventDestroy_v2(void* event) { return 0; }
int cuStreamWaitEvent(void* stream, void* event, unsigned flags) { return 0; }
int cuStreamSynchronize(void* stream) { return stub_is("fault") ? 700 : 0; }
int cuGetErrorString(int error, const char** text) { return *text = "the stub's words", 0; }
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** parameters, void** extra) {
    const int n = *(const int*)parameters[2];
    const int right = *(address*)parameters[0] && *(address*)parameters[1] && gx == (n + 31) / 32u && gy == 1 && gz == 1 &&
                      bx == 32 && by == 1 && bz == 1 && !shared && !extra;
    return right ? 0 : 1;
}
