"""The kernels in CUDA C++, compiled at run time for a model's shape by NVRTC, and everything around them.

In the order in which they explain each other:

    device.cuh  math.cuh  numbers.cuh       PTX by name; the gate's functions and Philox; number formats
    products.cuh                            panels of 16 rows times N streams, wherever weights come from
    call.cuh  stages.cuh  draw.cuh          arguments; conditioning, rings, embed; from logits to sound
    head.cuh  streaming_weights.cuh         the head; the kernel that reads all weights for every sample
    wait.cuh  handover.cuh  resident.cuh    bounded waits; mail between blocks; the kernel that keeps its weights
    project.cuh                             mel features → what all layers hear, once a frame
    go_on.cuh                               positions after a launch, for one that follows without the host

    shapes.py  packing.py  layout.py        a model's padded letters, weights as fragments, where things lie on the chip
    plan.py  ways.py  cut.py  budget.py     which kernel, how many blocks, what lives where, and why
    devices.py  occupancy.py  reasons.py
    compile.py  call_struct.py              NVRTC with a cache on disk; `struct Call` by name
    device.py  cuda_*.py  emulated_*.py     memory and launches: a GPU's, or emulated
    arrays.py  foreign.py  transfers.py
    model.py  arguments.py  launches.py     a model on a device; what a launch is given, checked; the launch

Nothing here imports NVIDIA's packages before a kernel is compiled or a GPU is used."""
