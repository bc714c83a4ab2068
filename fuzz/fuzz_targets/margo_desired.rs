//! Manifests, bundles, deployments and trust bundles of a server: `cargo +nightly fuzz run margo_desired`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fieldgate::margo::desired::fuzz::fuzz_desired(data));
