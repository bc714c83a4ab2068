//! Bytes of two clients against the broker without sockets: `cargo +nightly fuzz run broker_packets`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fieldgate::broker::fuzz_packets(data));
