// nv-wavenet, timed through its public class: what benchmarks/nv_wavenet_speed.py compiles against a checkout of
// github.com/NVIDIA/nv-wavenet, once for each shape and number format, and asks line by line.
//
//   arguments  layers, largest dilation
//   input      implementation streams streams_per_block samples
//   output     {"milliseconds": …, "classes": "80a1…" of the first stream, …}, one line for each line of input
//
// Weights and conditioning are random, of a spread that keeps gates and logits lively. Only a line that begins with {
// is an answer: nv-wavenet prints too. What it asserts or cannot allocate ends the process, with a sentence on stderr.

#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

// CUDA 11 renamed this field of cudaPointerAttributes; nv-wavenet is older.
#define memoryType type
#include "nv_wavenet.cuh"
#undef memoryType

namespace {

constexpr int R = NVW_R, S = NVW_S, A = NVW_A;
#if NVW_BITS == 16
using Weight = half2;
using Data = half;
#else
using Weight = float;
using Data = float;
#endif
using Peer = nvWavenetInfer<Weight, Data, R, S, A>;

__global__ void noise(float* values, size_t count) {  // uniform in ±1
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x) {
    unsigned x = unsigned(i) * 2654435761u ^ unsigned(i >> 32);
    x = (x ^ (x >> 15)) * 2246822519u;
    x = (x ^ (x >> 13)) * 3266489917u;
    values[i] = float(int(x ^ (x >> 16))) * (1.f / 2147483648.f);
  }
}

__global__ void keep_busy(long long nanoseconds) {
  long long began, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(began));
  do asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  while (now - began < nanoseconds);
}

double host_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Request {
  int implementation, streams, per_block, samples;
};

// One network with room for `streams` × `samples`.
class Bench {
 public:
  Bench(int layers, int max_dilation, const Request& r)
      : layers_(layers), size_(r), peer_(layers, max_dilation, r.streams, r.samples, r.implementation) {
    std::mt19937 random(1);
    auto normal = [&](size_t count, double spread) {
      std::normal_distribution<float> one(0.f, float(spread));
      std::vector<float> values(count);
      for (float& v : values) v = one(random);
      return values;
    };
    const double r_in = 1 / std::sqrt(double(R)), skip = 2 * r_in / std::sqrt(double(layers));
    auto previous = normal(A * R, 0.7), current = normal(A * R, 0.7);
    peer_.setEmbeddings(previous.data(), current.data());
    for (int layer = 0; layer < layers; ++layer) {
      auto w_prev = normal(2 * R * R, 0.85 * r_in), w_cur = normal(2 * R * R, 0.85 * r_in);
      auto w_res = normal(R * R, 0.7 * r_in), w_skip = normal(S * R, skip);
      auto b_h = normal(2 * R, 0.1), b_res = normal(R, 0.1), b_skip = normal(S, 0.02);
      peer_.setLayerWeights(layer, w_prev.data(), w_cur.data(), b_h.data(), w_res.data(), b_res.data(), w_skip.data(),
                            b_skip.data());
    }
    auto w_head = normal(A * S, 1 / std::sqrt(double(S))), w_out = normal(A * A, 6 / std::sqrt(double(A)));
    auto b_head = normal(A, 0.1), b_out = normal(A, 0.1);
    peer_.setOutWeights(w_head.data(), b_head.data(), w_out.data(), b_out.data());
    std::uniform_real_distribution<float> uniform(0.f, 1.f);
    selectors_.resize(size_t(r.streams) * r.samples);
    for (float& v : selectors_) v = uniform(random);
  }

  // The answer to the request.
  void answer(const Request& r) {
    float milliseconds = 0;
    start_over();
    bool launched = peer_.run(std::min(64, r.samples), r.streams, nullptr, r.per_block), hidden = false;  // warm-up
    for (int tries = 0; tries < 4 && launched && !hidden; ++tries) {
      start_over();
      // The host prepares a launch while the GPU still waits, so that no time of the host is counted.
      keep_busy<<<1, 1>>>((long long)(1e9 * ahead_));
      gpuErrChk(cudaEventRecord(begin_));
      const double began = host_seconds();
      launched = peer_.run(r.samples, r.streams, nullptr, r.per_block);
      const double took = host_seconds() - began;
      hidden = cudaEventQuery(begin_) == cudaErrorNotReady;
      gpuErrChk(cudaEventRecord(end_));
      gpuErrChk(cudaEventSynchronize(end_));
      gpuErrChk(cudaEventElapsedTime(&milliseconds, begin_, end_));
      ahead_ = std::max(ahead_, 2 * took);
    }
    if (!launched) {
      cudaGetLastError();  // a refused launch is no reason to refuse the next
      gpuErrChk(cudaDeviceSynchronize());
      std::printf("{\"error\": \"nv-wavenet refused the launch\"}\n");
      return;
    }
    std::vector<int> classes(size_t(r.streams) * r.samples);
    peer_.getYOut(classes.data(), 0, r.samples);
    gpuErrChk(cudaDeviceSynchronize());
    std::string first;
    char text[8];
    for (int t = 0; t < r.samples; ++t) {
      std::snprintf(text, sizeof text, "%02x", classes[t] & 0xff);
      first += text;
    }
    const std::set<int> different(classes.begin(), classes.end());
    std::printf(
        "{\"milliseconds\": %.6f, \"host_hidden\": %s, \"different\": %zu, \"lowest\": %d, "
        "\"highest\": %d, \"classes\": \"%s\"}\n",
        milliseconds, hidden ? "true" : "false", different.size(), *different.begin(), *different.rbegin(),
        first.c_str());
  }

  bool same_size(const Request& r) const { return r.streams == size_.streams && r.samples == size_.samples; }
  bool serves(const Request& r) const { return same_size(r) && r.implementation == size_.implementation; }

 private:
  // History and conditioning as before the first sample, on the device.
  void start_over() {
    const size_t count = selectors_.size() * layers_ * 2 * R;
    float* conditioning;
    gpuErrChk(cudaMalloc(&conditioning, count * sizeof(float)));
    noise<<<1024, 256>>>(conditioning, count);
    peer_.setInputs(conditioning, selectors_.data());
    gpuErrChk(cudaDeviceSynchronize());
    gpuErrChk(cudaFree(conditioning));
  }

  int layers_;
  Request size_;
  Peer peer_;
  std::vector<float> selectors_;
  cudaEvent_t begin_ = made(), end_ = made();
  double ahead_ = 0.002;  // seconds

  static cudaEvent_t made() {
    cudaEvent_t event;
    gpuErrChk(cudaEventCreate(&event));
    return event;
  }
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "usage: %s LAYERS LARGEST_DILATION, then requests on stdin\n", arguments[0]);
    return 2;
  }
  const int layers = std::atoi(arguments[1]), max_dilation = std::atoi(arguments[2]);
  std::vector<std::unique_ptr<Bench>> benches;
  Request r;
  while (std::cin >> r.implementation >> r.streams >> r.per_block >> r.samples) {
    // Networks for another number of streams are not asked for again.
    if (!benches.empty() && !benches.front()->same_size(r)) benches.clear();
    Bench* found = nullptr;
    for (const auto& b : benches)
      if (b->serves(r)) found = b.get();
    if (found == nullptr) {
      benches.push_back(std::make_unique<Bench>(layers, max_dilation, r));
      found = benches.back().get();
    }
    found->answer(r);
    std::fflush(stdout);
  }
  return 0;
}
