//! Compiles what torch-sys does not bind, and tells the linker where libtorch lives, so that this package's binaries, examples and tests
//! run without `LD_LIBRARY_PATH`. torch-sys hands its location to direct dependents only.
use std::path::{Path, PathBuf};

const SHIM: [&str; 2] = ["native/shim.cpp", "native/gpu.cpp"];

fn main() {
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    println!("cargo:rerun-if-changed=native");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's folder");
    // As it is named, which follows a cache that moves, and where that is now, which outlives the checkout.
    let named = std::path::absolute(&lib).unwrap_or_else(|_| PathBuf::from(&lib));
    compile(&named);
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", named.display());
    if let Ok(found) = named.canonicalize() {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", found.display());
    }
}

/// As torch-sys compiles its own: headers stand beside the libraries unless `LIBTORCH_INCLUDE` says where.
fn compile(lib: &Path) {
    for variable in ["LIBTORCH_INCLUDE", "LIBTORCH_CXX11_ABI"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let root = std::env::var("LIBTORCH_INCLUDE").map_or_else(|_| lib.join(".."), PathBuf::from);
    let include = root.join("include");
    let abi = std::env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    cc::Build::new()
        .cpp(true)
        .pic(true)
        .warnings(false)
        .std("c++17")
        .includes([include.clone(), include.join("torch/csrc/api/include")])
        .define("_GLIBCXX_USE_CXX11_ABI", &*abi)
        .define("GLOG_USE_GLOG_EXPORT", None)
        .files(SHIM)
        .compile("sluice_shim");
}
