//! Quantization methods: one file per method.
