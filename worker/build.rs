//! Tells the linker where libtorch lives, so that this package's binaries, examples and tests run
//! without `LD_LIBRARY_PATH`. torch-sys hands its location to direct dependents only.
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's folder");
    let lib = PathBuf::from(&lib).canonicalize().unwrap_or_else(|_| lib.into());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
