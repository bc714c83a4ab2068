#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fieldgate_fuzz::feed("contract_topics", data));
