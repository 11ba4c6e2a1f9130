//! Checkpoints in and out: safetensors, GGUF, compressed-tensors, model config, atomic writers.
