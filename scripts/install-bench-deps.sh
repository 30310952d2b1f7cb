#!/bin/sh
# Installs what `cargo build -p ferrisdb-bench --features peers` needs beyond a Rust toolchain, on Debian and Ubuntu:
#   libclang-dev  bindgen reads RocksDB's C header with it
#   g++           compiles RocksDB and LZ4 (LMDB needs only the C compiler)
# Nothing else of FerrisDB needs any of it. Run it as root, or as somebody who may use sudo.
set -eu

if [ "$(id -u)" -eq 0 ]; then as_root=""; else as_root="sudo"; fi

$as_root apt-get update
# DEBIAN_FRONTEND keeps packages from asking questions; env passes it through sudo.
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends libclang-dev g++
