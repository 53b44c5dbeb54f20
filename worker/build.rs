//! Tells the linker where libtorch lives, so that this package's binaries, examples and tests run
//! without `LD_LIBRARY_PATH`. torch-sys hands its location to direct dependents only.
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's folder");
    // As it is named, which follows a cache that moves, and where that is now, which outlives the checkout.
    let named = std::path::absolute(&lib).unwrap_or_else(|_| PathBuf::from(&lib));
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", named.display());
    if let Ok(found) = named.canonicalize() {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", found.display());
    }
}
