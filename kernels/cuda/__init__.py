"""The kernels in CUDA C++, and what decides how a model is laid over a device. The planner (`plan`, `budget`, `cut`,
`occupancy`, `devices`) is plain Python: importing it needs neither CUDA nor torch."""
