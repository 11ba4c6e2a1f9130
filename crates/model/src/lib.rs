//! Forward passes with a KV cache, from packed or plain weights.
