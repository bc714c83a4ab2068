#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fieldgate_fuzz::feed("margo_compose", data));
