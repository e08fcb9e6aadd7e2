// Encodes and decodes an image with the engines of a bundle: needs TensorRT and the CUDA runtime, and nothing else.
//
//   g++ -std=c++17 embed_trt.cpp -o embed_trt -I/usr/local/cuda/include -L/usr/local/cuda/lib64 -lnvinfer -lcudart
//   ./embed_trt bundle/engines/nvidia-h200-trt11.4.0.106/fp16 1440 2560 image.rgb codes.int32 again.rgb
//
// image.rgb holds height x width x 3 bytes, of a size that the engines were built for. codes.int32 gets [G, h, w], again.rgb the image
// decoded from the codes. The second run is recorded as a CUDA graph and launched, which is how a server would go on.

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

using Shape = std::vector<int64_t>;

struct Tensor {
    void *address = nullptr;  // on the device
    Shape shape;
};

void cuda(cudaError_t status) {
    if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

void need(bool ok, const std::string &otherwise) {
    if (!ok) throw std::runtime_error(otherwise);
}

class Logger : public nvinfer1::ILogger {
    void log(Severity severity, const char *message) noexcept override {
        if (severity <= Severity::kWARNING) std::fprintf(stderr, "%s\n", message);
    }
};

std::vector<char> read_file(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    need(file.good(), "cannot read " + path);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

size_t count(const Shape &shape) {
    size_t product = 1;
    for (int64_t side : shape) product *= static_cast<size_t>(side);
    return product;
}

Shape to_shape(const nvinfer1::Dims &dims) { return {dims.d, dims.d + dims.nbDims}; }

size_t item_bytes(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kUINT8: return 1;
        case nvinfer1::DataType::kHALF: return 2;
        case nvinfer1::DataType::kINT64: return 8;
        default: return 4;  // kFLOAT, kINT32
    }
}

// One engine with a context, set up for one size; device memory for what it gives.
class Engine {
public:
    Engine(nvinfer1::IRuntime &runtime, const std::string &path, cudaStream_t stream) : path_(path), stream_(stream) {
        const std::vector<char> bytes = read_file(path);
        engine_.reset(runtime.deserializeCudaEngine(bytes.data(), bytes.size()));
        need(engine_ != nullptr, path + " does not load: was it built with this TensorRT, on this GPU?");
        context_.reset(engine_->createExecutionContext());
        need(context_ != nullptr, path + ": no context, too little device memory?");
    }

    // Shapes and addresses, once; they must stay as they are while a CUDA graph of this engine is in use.
    std::map<std::string, Tensor> prepare(const std::map<std::string, Tensor> &inputs) {
        need(context_->setOptimizationProfileAsync(profile(inputs), stream_), path_ + ": no such profile");
        for (const auto &[name, tensor] : inputs) {
            nvinfer1::Dims dims{};
            dims.nbDims = static_cast<int32_t>(tensor.shape.size());
            for (size_t i = 0; i < tensor.shape.size(); ++i) dims.d[i] = tensor.shape[i];
            need(context_->setInputShape(name.c_str(), dims), path_ + ": wrong shape of " + name);
            need(context_->setTensorAddress(name.c_str(), tensor.address), path_ + ": wrong address of " + name);
        }
        need(context_->inferShapes(0, nullptr) == 0, path_ + ": an input is missing");
        std::map<std::string, Tensor> outputs;
        for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
            const char *name = engine_->getIOTensorName(i);
            if (engine_->getTensorIOMode(name) != nvinfer1::TensorIOMode::kOUTPUT) continue;
            Tensor tensor{nullptr, to_shape(context_->getTensorShape(name))};
            cuda(cudaMalloc(&tensor.address, count(tensor.shape) * item_bytes(engine_->getTensorDataType(name))));
            need(context_->setTensorAddress(name, tensor.address), path_ + ": wrong address of " + name);
            outputs[name] = tensor;
        }
        return outputs;
    }

    void enqueue() { need(context_->enqueueV3(stream_), path_ + " did not run; the log says why"); }

private:
    // The optimisation profile that holds these shapes: engines have one for every size they were built for.
    int32_t profile(const std::map<std::string, Tensor> &inputs) const {
        using nvinfer1::OptProfileSelector;
        for (int32_t index = 0; index < engine_->getNbOptimizationProfiles(); ++index) {
            bool holds = true;
            for (const auto &[name, tensor] : inputs) {
                const Shape fixed = to_shape(engine_->getTensorShape(name.c_str()));
                const Shape least = to_shape(engine_->getProfileShape(name.c_str(), index, OptProfileSelector::kMIN));
                const Shape most = to_shape(engine_->getProfileShape(name.c_str(), index, OptProfileSelector::kMAX));
                for (size_t i = 0; i < fixed.size(); ++i) {
                    if (fixed[i] >= 0) continue;  // the same in every profile
                    holds = holds && least[i] <= tensor.shape[i] && tensor.shape[i] <= most[i];
                }
            }
            if (holds) return index;
        }
        throw std::runtime_error(path_ + " was not built for this size");
    }

    std::string path_;
    cudaStream_t stream_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;  // goes before its engine
};

void save(const std::string &path, const Tensor &tensor, size_t item) {
    std::vector<char> host(count(tensor.shape) * item);
    cuda(cudaMemcpy(host.data(), tensor.address, host.size(), cudaMemcpyDeviceToHost));
    std::ofstream(path, std::ios::binary).write(host.data(), static_cast<std::streamsize>(host.size()));
}

void run(const std::vector<std::string> &arguments) {
    const std::string folder = arguments.at(0) + "/";
    const int64_t height = std::stoll(arguments.at(1)), width = std::stoll(arguments.at(2));
    const std::vector<char> pixels = read_file(arguments.at(3));
    need(pixels.size() == static_cast<size_t>(height * width * 3), "the image is not height x width x 3 bytes");

    cudaStream_t stream;
    cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
    need(runtime != nullptr, "TensorRT does not start");
    Engine encoder(*runtime, folder + "encoder.engine", stream), quantizer(*runtime, folder + "quantizer.engine", stream);
    Engine dequantizer(*runtime, folder + "dequantizer.engine", stream), decoder(*runtime, folder + "decoder.engine", stream);

    Tensor image{nullptr, {1, height, width, 3}}, groups{nullptr, {}};
    cuda(cudaMalloc(&image.address, pixels.size()));
    cuda(cudaMalloc(&groups.address, sizeof(int64_t)));
    auto encoded = encoder.prepare({{"image", image}});
    auto codes = quantizer.prepare({{"latent", encoded.at("latent")}}).at("codes");
    auto quantized = dequantizer.prepare({{"codes", codes}, {"groups", groups}});
    auto decoded = decoder.prepare({{"quantized", quantized.at("quantized")}});

    const int64_t all = codes.shape[1];  // fewer groups give a coarser image
    cuda(cudaMemcpyAsync(groups.address, &all, sizeof all, cudaMemcpyHostToDevice, stream));
    cuda(cudaMemcpyAsync(image.address, pixels.data(), pixels.size(), cudaMemcpyHostToDevice, stream));
    const auto enqueue = [&] {
        for (Engine *engine : {&encoder, &quantizer, &dequantizer, &decoder}) engine->enqueue();
    };
    enqueue();  // TensorRT finishes setting up in the first run after a change of shape, so that run is not recorded
    cuda(cudaStreamSynchronize(stream));

    cudaGraph_t graph;
    cudaGraphExec_t recorded;
    cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    enqueue();
    cuda(cudaStreamEndCapture(stream, &graph));
    cuda(cudaGraphInstantiate(&recorded, graph, 0));
    cuda(cudaGraphLaunch(recorded, stream));  // for the next image: copy it to image.address, launch again
    cuda(cudaStreamSynchronize(stream));

    for (const auto &outputs : {encoded, decoded}) {
        int32_t non_finite = 0;
        cuda(cudaMemcpy(&non_finite, outputs.at("non_finite").address, sizeof non_finite, cudaMemcpyDeviceToHost));
        need(non_finite == 0, "a value was NaN or infinite on the way");
    }
    save(arguments.at(4), codes, sizeof(int32_t));
    save(arguments.at(5), decoded.at("image"), 1);
    cuda(cudaGraphExecDestroy(recorded));
    cuda(cudaGraphDestroy(graph));
}

int main(int argc, char **argv) {
    if (argc != 7) {
        std::fprintf(stderr, "usage: embed_trt ENGINES HEIGHT WIDTH IMAGE.rgb CODES.int32 AGAIN.rgb\n");
        return 2;
    }
    try {
        run({argv + 1, argv + argc});
    } catch (const std::exception &error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
    return 0;
}
