//! Latency and memory of a model, measured.
