// A HIP without a GPU, for examples/launch.cpp: a launch prints what it was given, and changes a bit of its first argument's buffer.

#include <hip/hip_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <iostream>

extern "C" {

hipError_t hipModuleLoadData(hipModule_t*, const void* image) {
    return std::memcmp(image, "\x7f" "ELF", 4) ? hipErrorInvalidImage : hipSuccess;
}

hipError_t hipModuleGetFunction(hipFunction_t*, hipModule_t, const char* name) {
    std::cout << name << "\n";
    return hipSuccess;
}

hipError_t hipMalloc(void** place, size_t size) {
    *place = std::malloc(size);
    return *place ? hipSuccess : hipErrorOutOfMemory;
}

hipError_t hipMemcpy(void* to, const void* from, size_t size, hipMemcpyKind) {
    std::memcpy(to, from, size);
    return hipSuccess;
}

hipError_t hipModuleLaunchKernel(hipFunction_t, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
                                 unsigned lds, hipStream_t, void** arguments, void**) {
    std::cout << x << " " << y << " " << z << " " << threads << " " << lds << " " << *static_cast<unsigned*>(arguments[6]) << "\n";
    **static_cast<char**>(arguments[0]) ^= 1;
    return hipSuccess;
}

hipError_t hipDeviceSynchronize() { return hipSuccess; }

const char* hipGetErrorString(hipError_t) { return "an error of the stub"; }
}
