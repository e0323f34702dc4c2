"""GPU kernels, compiled at run time for a model's shape. Shipped as `wavenet_fast.kernels`."""
