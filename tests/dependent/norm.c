/* RMSNorm of a row of threes, which are ones then, by the functions that the Rust crate exports. */
#include <stdio.h>

#include <warploom/warploom.h>

enum { WIDTH = 1024, ONE = 0x3f80, THREE = 0x4040 };

#define TRY(call)                                  \
    if ((call) != WL_OK) {                         \
        fprintf(stderr, "norm: %s\n", wl_error()); \
        return -1;                                 \
    }

/* How many of the results are no ones; -1 for a call that failed. */
int norm(const char* name) {
    static uint16_t x[WIDTH], weight[WIDTH], y[WIDTH];
    for (int i = 0; i < WIDTH; i++) x[i] = THREE, weight[i] = ONE;
    WlDevice* device;
    WlStream* stream;
    TRY(wl_device_open(name, &device));
    TRY(wl_stream_create(device, &stream));
    WlRmsNormArgs args = {.version = WL_VERSION, .dtype = WL_BF16, .y_dtype = WL_BF16, .rows = 1, .width = WIDTH, .eps = 1e-5f};
    args.x.stride = args.y.stride = WIDTH;
    TRY(wl_allocate(device, sizeof x, &args.x.view));
    TRY(wl_allocate(device, sizeof weight, &args.weight));
    TRY(wl_allocate(device, sizeof y, &args.y.view));
    TRY(wl_upload(stream, args.x.view, x));
    TRY(wl_upload(stream, args.weight, weight));
    TRY(wl_rms_norm(stream, &args));
    TRY(wl_download(stream, y, args.y.view));
    TRY(wl_stream_destroy(stream));
    TRY(wl_device_close(device));
    int wrong = 0;
    for (int i = 0; i < WIDTH; i++) wrong += y[i] != ONE;
    return wrong;
}
