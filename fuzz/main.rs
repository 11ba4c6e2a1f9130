//! libFuzzer around the table of readers: `BITMILL_FUZZ=NAME` says which one this process feeds.

#![no_main]

mod targets;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<targets::Target> = LazyLock::new(|| {
    let name = std::env::var("BITMILL_FUZZ").unwrap_or_default();
    let known: Vec<_> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
    let found = targets::TARGETS.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("BITMILL_FUZZ names one of {}", known.join(", "))).1
});

fuzz_target!(|data: &[u8]| (*TARGET)(data));
