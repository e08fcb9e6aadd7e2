// A libcuda.so.1 that is none: device memory is host memory, and the one kernel it can launch is the host build of ours. Enough for
// the code that launches the kernel to run through CUDA's real Python bindings on a machine without a GPU.
//
// MGVQ_STUB_CUDA is the CUDA version it claims, such as 13050, MGVQ_STUB_GPU the GPU's name. Copies outside an allocation are errors.
// Its clock is a model: a launch takes 0.02 ms, twice that within 0.25 s of the last allocation, when the clocks of a GPU have not
// risen yet; and from one event to another 0.01 ms pass beside the launches, until the host has queued the first.
#include "host_kernel.cpp"

#include <dlfcn.h>

#include <chrono>
#include <map>
#include <string>

namespace {

enum : int { kOk = 0, kInvalidValue = 1, kInvalidImage = 200, kUnsupportedPtx = 222, kNotFound = 500 };

using Clock = std::chrono::steady_clock;

std::map<char *, size_t> allocations;
Clock::time_point allocated;
double busy = 0;  // milliseconds of all launches so far

bool inside(char *address, size_t size) {
    for (const auto &[start, bytes] : allocations) {
        if (start <= address && address + size <= start + bytes) return true;
    }
    return false;
}

double launch_time() { return Clock::now() - allocated < std::chrono::milliseconds(250) ? 0.04 : 0.02; }

int version() {
    const char *text = getenv("MGVQ_STUB_CUDA");
    return text ? atoi(text) : 13050;
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return kOk; }
int cuDriverGetVersion(int *value) { return *value = version(), kOk; }
int cuDeviceGetCount(int *count) { return *count = 1, kOk; }
int cuDeviceGet(int *device, int) { return *device = 0, kOk; }
int cuDeviceGetPCIBusId(char *id, int length, int) { return snprintf(id, length, "0000:3B:00.0"), kOk; }
int cuDevicePrimaryCtxRetain(void **context, int) { return *context = &allocations, kOk; }
int cuCtxSetCurrent(void *) { return kOk; }
int cuCtxSynchronize() { return kOk; }

int cuDeviceGetName(char *name, int length, int) {
    const char *given = getenv("MGVQ_STUB_GPU");
    return snprintf(name, length, "%s", given ? given : "no GPU at all"), kOk;
}

int cuDeviceGetAttribute(int *value, int attribute, int) {
    if (attribute == 75) return *value = 9, kOk;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    if (attribute == 76) return *value = 0, kOk;  // ..._MINOR
    return kInvalidValue;
}

int cuModuleLoadData(void **module, const void *image) {
    const char *text = static_cast<const char *>(image);
    if (memcmp(text, "\x7f" "ELF", 4) != 0) {  // PTX: as new as the driver at most
        const char *line = strstr(text, ".version ");
        int major = 0, minor = 0;
        if (!line || sscanf(line, ".version %d.%d", &major, &minor) != 2) return kInvalidImage;
        if ((major + 4) * 1000 + minor * 10 > version()) return kUnsupportedPtx;
    }
    return *module = &allocations, kOk;
}

int cuModuleGetFunction(void **function, void *, const char *name) {
    if (std::string(name) == "grouped_argmin_float") return *function = reinterpret_cast<void *>(1), kOk;
    if (std::string(name) == "grouped_argmin_half") return *function = reinterpret_cast<void *>(2), kOk;
    return kNotFound;
}

int cuMemAlloc_v2(char **address, size_t size) {
    *address = static_cast<char *>(malloc(size));
    allocations[*address] = size;
    allocated = Clock::now();
    return kOk;
}

int cuMemFree_v2(char *address) {
    if (!allocations.erase(address)) return kInvalidValue;
    return free(address), kOk;
}

int cuMemcpyHtoD_v2(char *target, const void *source, size_t size) {
    return inside(target, size) ? (memcpy(target, source, size), kOk) : kInvalidValue;
}

int cuMemcpyDtoH_v2(void *target, char *source, size_t size) {
    return inside(source, size) ? (memcpy(target, source, size), kOk) : kInvalidValue;
}

int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
                   unsigned shared_bytes, void *, void **parameters, void **extra) {
    if (grid_z != 1 || block_y != 1 || block_z != 1 || shared_bytes || extra) return kInvalidValue;
    const auto pointer = [&](int index) { return *static_cast<char **>(parameters[index]); };
    const auto number = [&](int index) { return *static_cast<int *>(parameters[index]); };
    for (int index : {0, 1, 6}) {
        if (!inside(pointer(index), 1)) return kInvalidValue;
    }
    const float *codebook = reinterpret_cast<float *>(pointer(1));
    int *codes = reinterpret_cast<int *>(pointer(6));
    const int positions = number(2), area = number(3), rows = number(4), dim = number(5);
    const int status = function == reinterpret_cast<void *>(1)
                           ? run_float(grid_x, grid_y, block_x, reinterpret_cast<float *>(pointer(0)), codebook, positions, area, rows, dim, codes)
                           : run_half(grid_x, grid_y, block_x, pointer(0), codebook, positions, area, rows, dim, codes);
    busy += launch_time();
    return status == 0 ? kOk : kInvalidValue;
}

int cuEventCreate(void **event, unsigned) { return *event = new double(0), kOk; }
int cuEventRecord(void *event, void *) { return *static_cast<double *>(event) = busy, kOk; }
int cuEventSynchronize(void *) { return kOk; }
int cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    return *milliseconds = static_cast<float>(*static_cast<double *>(end) - *static_cast<double *>(start) + 0.01), kOk;
}
int cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) { return cuEventElapsedTime(milliseconds, start, end); }
int cuEventDestroy_v2(void *event) { return delete static_cast<double *>(event), kOk; }

// NVRTC asks for a private table and does without.
int cuGetExportTable(const void **table, const void *) { return *table = nullptr, kNotFound; }

// How the bindings find everything else.
int cuGetProcAddress_v2(const char *symbol, void **function, int, uint64_t, int *status) {
    const std::string name(symbol);
    *function = dlsym(RTLD_DEFAULT, (name + "_v2").c_str());
    if (!*function) *function = dlsym(RTLD_DEFAULT, symbol);
    if (status) *status = *function ? 0 : 1;
    return *function ? kOk : kNotFound;
}

}  // extern "C"
