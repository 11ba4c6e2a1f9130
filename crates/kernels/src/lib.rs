//! Inner loops: a scalar reference and its SIMD twins.
