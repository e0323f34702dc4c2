"""wavenet_fast: autoregressive WaveNet vocoders with the whole sample loop in native code."""
