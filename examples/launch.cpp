// Launches the code object of one folder that `attn-parity emulate` wrote on an AMD GPU, on the buffers of that folder.
//
// NO GPU HAS RUN THIS PROGRAM. A test compiles it against HIP's headers and runs it on a HIP that launches nothing. It says
// that bytes go where launch.txt wants them, and not that a driver takes them: docs/guide/amd-hardware.md.
//
//   hipcc -std=c++17 launch.cpp -o launch
//   ./launch code/emulated/gfx942-decode-random out/gfx942-decode-random

#include <hip/hip_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

namespace fs = std::filesystem;
using Bytes = std::vector<char>;

[[noreturn]] void fail(const std::string& what) {
    std::cerr << "launch: " << what << "\n";
    std::exit(1);
}

void check(hipError_t error, const char* call) {
    if (error != hipSuccess) fail(std::string(call) + ": " + hipGetErrorString(error));
}
#define HIP(call) check(call, #call)

Bytes read(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) fail(path.string() + " cannot be read");
    return Bytes(std::istreambuf_iterator<char>(file), {});
}

void put(Bytes& memory, size_t offset, const char* bytes, size_t size) {
    if (offset + size > memory.size()) fail("launch.txt: an argument beyond the memory of arguments");
    std::copy_n(bytes, size, memory.data() + offset);
}

Bytes from_hex(const std::string& digits) {
    Bytes bytes;
    for (size_t i = 0; i < digits.size(); i += 2) bytes.push_back(static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16)));
    return bytes;
}

int main(int argc, char** argv) {
    if (argc != 3) fail("usage: launch FOLDER OUT");
    const fs::path folder = argv[1], out = argv[2];
    std::ifstream lines(folder / "launch.txt");
    std::string word, name, digits;
    if (!std::getline(lines, word) || word != "attn-parity-launch 1") fail((folder / "launch.txt").string() + " is not of version 1");

    hipModule_t module = nullptr;
    hipFunction_t kernel = nullptr;
    unsigned grid[3] = {}, threads = 0, lds = 0;
    Bytes memory;                   // of the arguments
    std::vector<size_t> offsets;    // of the arguments that are not hidden, in their order
    std::map<std::string, std::pair<char*, size_t>> buffers;
    size_t offset, size;
    while (lines >> word) {
        if (word == "code" && lines >> name >> digits) {
            HIP(hipModuleLoadData(&module, read(folder / name).data()));
        } else if (word == "kernel" && lines >> name) {
            HIP(hipModuleGetFunction(&kernel, module, name.c_str()));
        } else if (word == "grid" && lines >> grid[0] >> grid[1] >> grid[2]) {
        } else if (word == "threads" && lines >> threads) {
        } else if (word == "lds" && lines >> lds) {
        } else if (word == "kernarg" && lines >> size) {
            memory.resize(size);
        } else if (word == "buffer" && lines >> name >> size >> digits) {
            const Bytes before = read(folder / "before" / (name + ".bin"));
            if (before.size() != size) fail(name + ".bin is not the file that launch.txt describes");
            void* device = nullptr;
            HIP(hipMalloc(&device, size));
            HIP(hipMemcpy(device, before.data(), size, hipMemcpyHostToDevice));
            buffers[name] = {static_cast<char*>(device), size};
        } else if (word == "pointer" && lines >> offset >> name >> size) {
            const char* address = buffers.at(name).first + size;
            put(memory, offset, reinterpret_cast<const char*>(&address), sizeof address);
            offsets.push_back(offset);
        } else if (word == "value" && lines >> offset >> size >> digits) {
            const Bytes bytes = from_hex(digits);
            put(memory, offset, bytes.data(), bytes.size());
            offsets.push_back(offset);
        } else if (word == "hidden" && lines >> offset >> size >> digits) {
            // HIP's runtime fills hidden arguments; who launches by HSA alone puts these bytes there
        } else {
            fail("launch.txt: " + word + ": unknown, or with too few words after it");
        }
    }

    std::vector<void*> arguments;
    for (size_t place : offsets) arguments.push_back(memory.data() + place);
    HIP(hipModuleLaunchKernel(kernel, grid[0], grid[1], grid[2], threads, 1, 1, lds, nullptr, arguments.data(), nullptr));
    HIP(hipDeviceSynchronize());

    fs::create_directories(out / "after");
    for (const auto& [buffer, place] : buffers) {
        Bytes after(place.second);
        HIP(hipMemcpy(after.data(), place.first, after.size(), hipMemcpyDeviceToHost));
        std::ofstream file(out / "after" / (buffer + ".bin"), std::ios::binary);
        file.write(after.data(), static_cast<std::streamsize>(after.size()));
        if (!file.flush()) fail(buffer + ".bin cannot be written");
    }
    fs::copy_file(folder / "launch.txt", out / "launch.txt", fs::copy_options::overwrite_existing);
}
