//! Tiny models, the golden loader and tolerances, for tests only.
