//! Compiles `proto/ferrisdb.proto` with `protox`: pure Rust, no `protoc` on the machine and no network.

use std::io;

const PROTO: &str = "proto/ferrisdb.proto";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed={PROTO}");
    let descriptors = protox::compile([PROTO], ["proto"]).map_err(io::Error::other)?;
    prost_build::Config::new()
        // Slices of the frame that they came in, not copies.
        .bytes(["."])
        // Keys and values must not reach a log through a derived `Debug`: what may be shown is shown by the types of `api`.
        .skip_debug(["."])
        .compile_fds(descriptors)
}
