//! Runs one target under libFuzzer; `KOHAKURIVER_FUZZ_TARGET` selects it.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let wanted = std::env::var("KOHAKURIVER_FUZZ_TARGET").unwrap_or_default();
    let found = kohakuriver_fuzz::TARGETS.iter().find(|(name, _)| *name == wanted);
    let names: Vec<_> = kohakuriver_fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
    found.unwrap_or_else(|| panic!("no target '{wanted}'; there are: {}", names.join(", "))).1
});

fuzz_target!(|bytes: &[u8]| TARGET(bytes));
