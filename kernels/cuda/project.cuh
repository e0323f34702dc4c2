// `project`: mel features → what all layers hear of them, once per frame: rows times a matrix, on top of what each
// utterance begins with.
//
// A block of WARPS warps makes 16 · WARPS outputs of a tile of N rows; inputs come CHUNK at a time. The order of a sum
// is that of products.cuh, so that a row's numbers depend neither on the rows beside it nor on how many there are.
#include "products.cuh"

struct Call {
  const float* features;  // (n, inputs)
  const uint4* project;   // fragments (outputs/16, INPUTS/step)
  const float* start;     // (n / group, outputs)
  float* out;             // (n, outputs)
  int n;                  // rows
  int group;              // rows of an utterance
  int inputs;             // at most INPUTS, which pads them to a multiple of CHUNK
  int outputs;            // a multiple of 16
};

constexpr int kThreads = project_plan::WARPS * kWarp;

extern "C" __global__ void __launch_bounds__(kThreads, 1) project(const __grid_constant__ Call call) {
  using Chunk = Rows<project_plan::CHUNK>;
  __shared__ __align__(16) u8 shared[Chunk::kBytes];
  const Chunk x(shared);
  const int first_row = blockIdx.x * plan::N, panel = blockIdx.y * project_plan::WARPS + warp_index();
  const bool works = panel * 16 < call.outputs;
  const auto output = [&](int row) { return panel * 16 + row; };

  Sums sums;
  for_each(sums, [&](int row, int n, float& value) {
    const int i = first_row + n;
    value = works && i < call.n ? call.start[static_cast<size_t>(i / call.group) * call.outputs + output(row)] : 0.0f;
  });
  for (int chunk = 0; chunk < project_plan::INPUTS / project_plan::CHUNK; ++chunk) {
    block_barrier();
    for (int word = thread_index(); word < plan::N * project_plan::CHUNK; word += kThreads) {
      const int n = word / project_plan::CHUNK, c = word % project_plan::CHUNK;
      const int i = first_row + n, input = chunk * project_plan::CHUNK + c;
      const bool there = i < call.n && input < call.inputs;
      x.at(n, c) = Numbers::operand(there ? call.features[static_cast<size_t>(i) * call.inputs + input] : 0.0f);
    }
    block_barrier();
    if (!works) continue;
    constexpr int kSteps = steps_of(project_plan::CHUNK);
    FromMemory weights = {call.project +
                          (static_cast<size_t>(panel) * (project_plan::INPUTS / kStepInputs) + chunk * kSteps) *
                              kFragmentWords};
    add_product(sums, weights, x, nullptr);
  }
  if (!works) return;
  for_each(sums, [&](int row, int n, float& value) {
    const int i = first_row + n;
    if (i >= call.n) return;
    // Where columns are interpolated in bf16 they are rounded to it; see `reference.Reference.conditioning`.
    if (project_plan::ROUND) value = from_bf16(to_bf16(value));
    call.out[static_cast<size_t>(i) * call.outputs + output(row)] = value;
  });
}
