// `go_on`: positions of streams after a launch, so that the next can follow without the host.
struct Call {
  long long* positions;  // (batch), changed in place
  const int* counts;     // (batch): samples that were made
  int batch;
};

extern "C" __global__ void go_on(const __grid_constant__ Call call) {
  const int b = blockIdx.x * blockDim.x + threadIdx.x;
  if (b < call.batch) call.positions[b] += call.counts[b];
}
