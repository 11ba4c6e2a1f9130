//! Perplexity, divergence from dense, task accuracy.
