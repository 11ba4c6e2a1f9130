//! Recipe, plan, run: the only crate that orders steps.
