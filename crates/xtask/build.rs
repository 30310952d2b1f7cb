//! Tells xtask for which target it is built: the one that the sanitizer's build names.

fn main() {
    let target = std::env::var("TARGET").expect("cargo gives a build script TARGET");
    println!("cargo::rustc-env=XTASK_HOST={target}");
    println!("cargo::rerun-if-changed=build.rs");
}
