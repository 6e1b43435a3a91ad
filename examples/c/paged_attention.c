/*
 * Paged decode attention on the caller's own buffers: two sequences, keys and values in pages that lie anywhere, and the
 * result beside one computed here.
 *
 *     cc -o paged_attention paged_attention.c $(pkg-config --cflags --libs warploom) -lm
 *     ./paged_attention            # on the simulator
 *     ./paged_attention cuda:0     # on a GPU
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <warploom/warploom.h>

enum { SEQUENCES = 2, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 64, PAGE = 16, PAGES = 6, ENTRIES = 3 };

/* Ends with the library's words where a call fails. */
static void check(int32_t status) {
    if (status == WL_OK) return;
    fprintf(stderr, "warploom: %s\n", wl_error());
    exit(1);
}

/* bf16 is the upper half of a float. */
static uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static float from_bf16(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static WlView to_device(const WlDevice* device, const WlStream* stream, const void* data, size_t bytes) {
    WlView view;
    check(wl_allocate(device, bytes, &view));
    check(wl_upload(stream, view, data));
    return view;
}

int main(int count, char** arguments) {
    WlDevice* device;
    WlStream* stream;
    check(wl_device_open(count > 1 ? arguments[1] : "sim", &device));
    check(wl_stream_create(device, &stream));
    WlProperties properties = {.version = WL_VERSION};
    check(wl_device_properties(device, &properties));

    /* Random numbers; sequence 0 has 20 keys, sequence 1 has 37, in pages out of order. */
    const int32_t lengths[SEQUENCES] = {20, 37}, offsets[SEQUENCES + 1] = {0, 1, 2};
    const int32_t table[SEQUENCES][ENTRIES] = {{4, 1, -1}, {0, 5, 2}};
    static uint16_t q[SEQUENCES][HEADS][HEAD_DIM], out[SEQUENCES][HEADS][HEAD_DIM];
    static uint16_t k[PAGES][KV_HEADS][PAGE][HEAD_DIM], v[PAGES][KV_HEADS][PAGE][HEAD_DIM];
    uint16_t* const all[] = {&q[0][0][0], &k[0][0][0][0], &v[0][0][0][0]};
    const size_t sizes[] = {sizeof q / 2, sizeof k / 2, sizeof v / 2};
    for (int i = 0; i < 3; i++) {
        for (size_t j = 0; j < sizes[i]; j++) all[i][j] = to_bf16((float)rand() / (float)RAND_MAX * 2 - 1);
    }

    WlView there;
    check(wl_allocate(device, sizeof out, &there));
    const float scale = 1.0f / sqrtf(HEAD_DIM);
    WlAttentionDecodeArgs args = {
        .version = WL_VERSION,
        .dtype = WL_BF16,
        .tokens = SEQUENCES,
        .sequences = SEQUENCES,
        .heads = HEADS,
        .max_rows = 1,
        .max_keys = ENTRIES * PAGE,
        .scale = scale,
        .q = {to_device(device, stream, q, sizeof q), HEADS * HEAD_DIM},
        .out = {there, HEADS * HEAD_DIM},
        .layout = wl_heads_first(PAGES, PAGE, KV_HEADS, HEAD_DIM),
        .k = to_device(device, stream, k, sizeof k),
        .v = to_device(device, stream, v, sizeof v),
        .table = {to_device(device, stream, table, sizeof table), SEQUENCES, ENTRIES},
        .lengths = to_device(device, stream, lengths, sizeof lengths),
        .offsets = to_device(device, stream, offsets, sizeof offsets),
        .mask = {.pattern = WL_CAUSAL},
    };
    uint64_t scratch;
    check(wl_attention_decode_scratch(stream, &args, &scratch));
    if (scratch > 0) check(wl_allocate(device, scratch, &args.scratch));
    check(wl_attention_decode(stream, &args));
    check(wl_download(stream, out, there));

    double worst = 0;
    for (int s = 0; s < SEQUENCES; s++) {
        for (int head = 0; head < HEADS; head++) {
            const int kv = head * KV_HEADS / HEADS;
            double scores[ENTRIES * PAGE], most = -INFINITY, sum = 0;
            for (int j = 0; j < lengths[s]; j++) {
                double dot = 0;
                for (int i = 0; i < HEAD_DIM; i++) {
                    dot += from_bf16(q[s][head][i]) * from_bf16(k[table[s][j / PAGE]][kv][j % PAGE][i]);
                }
                scores[j] = scale * dot;
                most = fmax(most, scores[j]);
            }
            for (int j = 0; j < lengths[s]; j++) sum += scores[j] = exp(scores[j] - most);
            for (int i = 0; i < HEAD_DIM; i++) {
                double value = 0;
                for (int j = 0; j < lengths[s]; j++) {
                    value += scores[j] / sum * from_bf16(v[table[s][j / PAGE]][kv][j % PAGE][i]);
                }
                worst = fmax(worst, fabs(value - from_bf16(out[s][head][i])));
            }
        }
    }
    printf("%s: %d heads of %d sequences, off by %.4f at most\n", properties.name, HEADS, SEQUENCES, worst);

    /* What does not fit is refused, with the reason. */
    args.layout.page_size = 12;
    const int32_t status = wl_attention_decode(stream, &args);
    printf("refused with %d: %s\n", status, wl_error());

    check(wl_stream_synchronize(stream));
    check(wl_stream_destroy(stream));
    check(wl_device_close(device));
    return worst < 0.01 && status == WL_ERROR_ARGUMENT ? 0 : 1;
}
