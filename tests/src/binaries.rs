//! The binaries under test, beside the test's own executable.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

/// The path of a workspace binary, built with the same profile as this test.
pub fn path(name: &str) -> Result<PathBuf> {
    build_once()?;
    let folder = profile_folder()?;
    let path = folder.join(name);
    if !path.is_file() {
        bail!("`{}` is not there: run `cargo build --workspace --bins`", path.display());
    }
    Ok(path)
}

/// The path of an example's executable.
pub fn example(name: &str) -> Result<PathBuf> {
    path(&format!("examples/{name}"))
}

/// `target/<profile>`.
fn profile_folder() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let mut folder = own.parent().context("an executable stands in a folder")?;
    if folder.ends_with("deps") || folder.ends_with("examples") {
        folder = folder.parent().context("`deps` stands in a profile's folder")?;
    }
    Ok(folder.to_path_buf())
}

/// `cargo test -p sluice-e2e` alone would run binaries of yesterday. `cargo xtask test` has built them already.
fn build_once() -> Result<()> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    if std::env::var_os("SLUICE_TEST_BINARIES_BUILT").is_some() {
        return Ok(());
    }
    let built = BUILT.get_or_init(|| {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args([
            "build",
            "--quiet",
            "-p",
            "sluice",
            "-p",
            "sluice-worker",
            "-p",
            "sluice-scaler",
            "--bins",
            "--examples",
        ]);
        if profile_folder().is_ok_and(|folder| folder.ends_with("release")) {
            cargo.arg("--release");
        }
        match cargo.current_dir(root()).status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("`cargo build` of the binaries under test ended with {status}")),
            Err(error) => Err(format!("cannot run cargo: {error}")),
        }
    });
    built.clone().map_err(anyhow::Error::msg)
}

/// The checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}
