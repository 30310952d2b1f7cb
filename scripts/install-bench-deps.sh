#!/bin/sh
# Installs what the benchmarks need beyond a Rust toolchain, on Debian and Ubuntu. For `--features peers`:
#   libclang-dev  bindgen reads RocksDB's C header with it
#   g++           compiles RocksDB and LZ4 (LMDB needs only the C compiler)
# With the argument `servers` it installs instead what `ferrisdb-bench servers` (`--features servers`) starts, each in a directory of its own:
#   etcd-server, redis-server, postgresql
# Nothing else of FerrisDB needs any of it. Run it as root, or as somebody who may use sudo.
set -eu

if [ "$(id -u)" -eq 0 ]; then as_root=""; else as_root="sudo"; fi

case "${1:-peers}" in
peers) packages="libclang-dev g++" ;;
servers) packages="etcd-server redis-server postgresql" ;;
*)
    echo "usage: $0 [peers|servers]" >&2
    exit 2
    ;;
esac

$as_root apt-get update
# The packages are words of their own, not one. DEBIAN_FRONTEND keeps packages from asking questions; env passes it through sudo.
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $packages
