"""The kernels in CUDA C++, compiled at run time for a model's shape by NVRTC. Nothing here imports NVIDIA's packages
before a kernel is compiled or a GPU is used."""
