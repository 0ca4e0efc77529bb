/* Stand-in for NVIDIA's driver library: the entry points that edgemp calls, with host memory as device memory.
 *
 * It has no GPU behind it. It counts what is allocated and refuses copies outside of it, so that a wrong
 * signature, a wrong size or a leak shows on a machine without a GPU. Not run on a GPU.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS 256
static struct { char *start; size_t size; int device; } blocks[SLOTS];
static int major = 8, minor = 7, started = 0, streams = 0, contexts = 0, status = 0;

void stand_in_set(int major_, int minor_, int status_) { major = major_; minor = minor_; status = status_; }
int stand_in_alive(void) {
    int alive = streams + contexts;
    for (int i = 0; i < SLOTS; i++) alive += blocks[i].start != 0;
    return alive;
}

static int take(void **out, size_t size, int device) {
    for (int i = 0; i < SLOTS; i++) if (!blocks[i].start) {
        blocks[i].start = *out = malloc(size);
        blocks[i].size = size;
        blocks[i].device = device;
        memset(*out, 0xAB, size);
        return 0;
    }
    return 2;
}
static int drop(void *start, int device) {
    for (int i = 0; i < SLOTS; i++) if (blocks[i].start == start && blocks[i].device == device) {
        free(start);
        blocks[i].start = 0;
        return 0;
    }
    return 1;
}
static int inside(void *start, size_t size, int device) {
    for (int i = 0; i < SLOTS; i++)
        if (blocks[i].start && blocks[i].device == device && (char *)start >= blocks[i].start
            && (char *)start + size <= blocks[i].start + blocks[i].size) return 1;
    return 0;
}

int cuInit(unsigned flags) { started = 1; return flags ? 1 : status; }
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return started && ordinal == 0 ? 0 : 3; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "stand-in GPU", size); return device != 7; }
int cuDeviceGetAttribute(int *value, int which, int device) {
    *value = which == 75 ? major : which == 76 ? minor : -1;
    return device != 7;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &contexts; contexts++; return device != 7; }
int cuDevicePrimaryCtxRelease_v2(int device) { contexts--; return device != 7; }
int cuCtxSetCurrent(void *context) { return context != &contexts; }
int cuMemAlloc_v2(uint64_t *address, size_t size) {
    void *start = 0;
    int failed = size > ((size_t)1 << 40) ? 2 : take(&start, size, 1);
    *address = (uint64_t)start;
    return failed;
}
int cuMemFree_v2(uint64_t address) { return drop((void *)address, 1); }
int cuMemHostAlloc(void **start, size_t size, unsigned flags) { return flags == 1 ? take(start, size, 0) : 1; }
int cuMemFreeHost(void *start) { return drop(start, 0); }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
    if (!stream || !inside((void *)to, size, 1)) return 1;
    memcpy((void *)to, from, size);
    return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
    if (!stream || !inside((void *)from, size, 1)) return 1;
    memcpy(to, (void *)from, size);
    return 0;
}
int cuStreamCreate(void **stream, unsigned flags) { *stream = &streams; streams++; return flags != 0; }
int cuStreamSynchronize(void *stream) { return stream != &streams; }
int cuStreamDestroy_v2(void *stream) { streams--; return stream != &streams; }
int cuGetErrorString(int error, const char **text) {
    *text = error == 2 ? "out of memory" : error == 100 ? "no CUDA-capable device is detected" : "invalid value";
    return 0;
}
