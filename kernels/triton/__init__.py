"""The kernels in Triton. Importing a module of this package needs triton; nothing else in `wavenet_fast` imports one
before a backend asks for it."""
