//! Compiles `proto/fieldgate/v1/*.proto` to Rust types with their proto3 JSON mapping; no system `protoc` is needed.

use std::path::PathBuf;

use prost_build::Config;

const FILES: [&str; 4] = [
    "proto/fieldgate/v1/telemetry.proto",
    "proto/fieldgate/v1/gateway.proto",
    "proto/fieldgate/v1/device.proto",
    "proto/fieldgate/v1/management.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let descriptor_file = out.join("fieldgate.bin");
    std::fs::write(&descriptor_file, prost::Message::encode_to_vec(&descriptors))?;

    Config::new()
        .compile_well_known_types()
        .extern_path(".google.protobuf", "::pbjson_types")
        .compile_fds(descriptors)?;
    pbjson_build::Builder::new().register_descriptors(&std::fs::read(&descriptor_file)?)?.build(&[".fieldgate.v1"])?;
    Ok(())
}
