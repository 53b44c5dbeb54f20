//! `cargo xtask gpu-kit`: what checks Sluice on a machine that has a GPU and PyTorch, and neither Rust nor a network.
//!
//! The worker of the kit is linked to the libtorch that PyTorch of that version brings, by the bindings that were made for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use xtask::setup;

use crate::demo::target_folder;
use crate::test::cargo;

/// Versions of PyTorch, and the versions of `tch` and `torch-sys` that were made for each.
const BINDINGS: [(&str, &str); 2] = [("2.11.0", "0.24"), ("2.13.0", "0.26")];
const DEFAULT: &str = BINDINGS[0].0;
/// What the folder may have, so that it goes where files are limited.
const LARGEST: u64 = 45_000_000;
/// Built here; the worker goes elsewhere, behind a script that names PyTorch's libraries.
const BINARIES: [&str; 3] = ["sluice", "sluice-scaler", "sluice-gpu-check"];

const HELP: &str = "\
Usage: cargo xtask gpu-kit [--pytorch VERSION] [--check]

Writes target/gpu-kit/sluice-gpu-kit, to be copied to a machine with Linux on x86-64, a GPU, and python3 with PyTorch of that
version (2.11.0), where its gpu-check.sh writes a report. docs/gpu.md says more.

  --check   build it quickly instead, unoptimized, and run all of it here that needs no GPU, with a PyTorch that is fetched (5 GB)
";

pub fn run(arguments: &[String]) -> Result<()> {
    let (mut pytorch, mut check) = (DEFAULT.to_owned(), false);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--pytorch" => pytorch.clone_from(arguments.next().context("--pytorch needs a value, such as 2.11.0")?),
            "--check" => check = true,
            "--help" | "-h" => {
                print!("{HELP}");
                return Ok(());
            }
            other => bail!("`{other}` is not an option\n{HELP}"),
        }
    }
    if check { self::check(&pytorch) } else { build(&pytorch, true).map(drop) }
}

/// Builds a kit quickly, and runs it here.
pub fn check(pytorch: &str) -> Result<()> {
    let kit = build(pytorch, false)?;
    // It left its binaries in the place of this checkout's own.
    cargo(&["build", "--workspace", "--bins"])?;
    let report = target_folder().join("gpu-kit/report");
    let mut command = Command::new(kit.join("gpu-check.sh"));
    command.arg("--report").arg(&report).env("PYTHONPATH", setup::pytorch(pytorch)?);
    let status = command.stdin(Stdio::null()).status().context("cannot run gpu-check.sh")?;
    ensure!(status.success(), "the check failed: see {}.md", report.display());
    Ok(())
}

/// The same of the version that is taken if none is said.
pub fn check_default() -> Result<()> {
    check(DEFAULT)
}

/// Builds a kit, and returns its folder.
fn build(pytorch: &str, optimized: bool) -> Result<PathBuf> {
    ensure!(cfg!(all(target_os = "linux", target_arch = "x86_64")), "a kit is for Linux on x86-64, and is built there");
    let Some((_, bindings)) = BINDINGS.iter().find(|(version, _)| *version == pytorch) else {
        let known = BINDINGS.map(|(version, _)| version).join(", ");
        bail!("no bindings are known for PyTorch {pytorch}: there are some for {known}");
    };
    let folder = target_folder().join("gpu-kit");
    let checkout = folder.join("checkout");
    copy_checkout(&checkout, bindings)?;
    // What depends on nothing of this repository is built already where the profile is the same.
    let built = if optimized { folder.join("build") } else { target_folder() };
    let profile = if optimized { "release" } else { "dev" };
    eprintln!("building against PyTorch {pytorch}, with tch {bindings}, in {}", checkout.display());
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--workspace", "--bins", "--profile", profile]).current_dir(&checkout);
    cargo.env("LIBTORCH", setup::libtorch_of(pytorch)?).env("CARGO_TARGET_DIR", std::path::absolute(&built)?);
    ensure!(cargo.status().context("cannot run cargo")?.success(), "the build failed");
    let built = built.join(if optimized { "release" } else { "debug" });
    let kit = folder.join("sluice-gpu-kit");
    pack(&built, &checkout, &kit)?;
    fs::write(kit.join("VERSION"), format!("{pytorch}\n"))?;
    let size = size_of(&kit)?;
    eprintln!("{}: {:.1} MB", kit.display(), size as f64 / 1e6);
    ensure!(!optimized || size < LARGEST, "the kit has {size} bytes, and may have {LARGEST}");
    Ok(kit)
}

/// This checkout's files, as they are now, with other bindings. What has not changed is left alone, so that it is not built again.
fn copy_checkout(target: &Path, bindings: &str) -> Result<()> {
    let root = xtask::root();
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(&root)
        .output()
        .context("cannot run git")?;
    ensure!(listed.status.success(), "`git ls-files` failed: {}", String::from_utf8_lossy(&listed.stderr));
    for name in String::from_utf8(listed.stdout)?.split('\0').filter(|name| !name.is_empty()) {
        let (from, to) = (root.join(name), target.join(name));
        // One that is deleted and not committed yet is listed all the same.
        let Ok(mut content) = fs::read(&from) else { continue };
        match name {
            "Cargo.toml" => content = with_bindings(&String::from_utf8(content)?, bindings)?.into_bytes(),
            // It is of the other bindings: cargo completes the one that it wrote.
            "Cargo.lock" if to.exists() => continue,
            _ => {}
        }
        if fs::read(&to).ok().as_ref() != Some(&content) {
            fs::create_dir_all(to.parent().context("a file stands in a folder")?)?;
            fs::write(&to, content).with_context(|| format!("cannot write `{}`", to.display()))?;
            fs::set_permissions(&to, fs::metadata(&from)?.permissions())?;
        }
    }
    Ok(())
}

fn with_bindings(manifest: &str, bindings: &str) -> Result<String> {
    let mut changed = 0;
    let line = |line: &str| match line.split_once(" = \"") {
        Some((name @ ("tch" | "torch-sys"), _)) => {
            changed += 1;
            format!("{name} = \"{bindings}\"\n")
        }
        _ => format!("{line}\n"),
    };
    let text = manifest.lines().map(line).collect();
    ensure!(changed == 2, "Cargo.toml does not name tch and torch-sys as it did");
    Ok(text)
}

fn pack(built: &Path, checkout: &Path, kit: &Path) -> Result<()> {
    let staged = tempfile::tempdir()?;
    let inside = |name: &str| staged.path().join(name);
    for folder in ["bin", "lib", "models/digits", "broker-config/nats"] {
        fs::create_dir_all(inside(folder))?;
    }
    for name in BINARIES {
        strip(&built.join(name), &inside("bin").join(name))?;
    }
    strip(&built.join("sluice-worker"), &inside("lib/sluice-worker"))?;
    let mut files: Vec<(PathBuf, PathBuf)> = vec![
        (checkout.join("tests/gpu/sluice-worker.sh"), inside("bin/sluice-worker")),
        (which(&setup::nats_server()?)?, inside("bin/nats-server")),
    ];
    files.extend(
        ["models.py", "alone.py", "train.py"].map(|name| (checkout.join("tests/gpu").join(name), inside(name))),
    );
    for folder in ["models/digits", "broker-config/nats"] {
        for entry in fs::read_dir(checkout.join(folder))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                files.push((entry.path(), inside(folder).join(entry.file_name())));
            }
        }
    }
    for (from, to) in files {
        fs::copy(&from, &to).with_context(|| format!("cannot copy `{}`", from.display()))?;
    }
    if kit.exists() {
        fs::remove_dir_all(kit)?;
    }
    fs::create_dir_all(kit)?;
    fs::copy(checkout.join("tests/gpu/gpu-check.sh"), kit.join("gpu-check.sh"))?;
    let mut tar = Command::new("tar");
    tar.arg("-C")
        .arg(staged.path())
        .arg("--use-compress-program=gzip -9")
        .arg("-cf")
        .arg(kit.join("kit.tar.gz"))
        .arg(".");
    ensure!(tar.status().context("cannot run tar")?.success(), "tar failed: is the disk full?");
    Ok(())
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    let status =
        Command::new("strip").arg("-o").arg(to).arg(from).status().context("cannot run strip (of binutils)")?;
    ensure!(status.success(), "`strip {}` failed", from.display());
    Ok(())
}

/// The file of a program that may be named as PATH has it.
fn which(program: &Path) -> Result<PathBuf> {
    if program.components().count() > 1 {
        return Ok(program.to_path_buf());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file());
    found.with_context(|| format!("`{}` is not on PATH", program.display()))
}

fn size_of(folder: &Path) -> Result<u64> {
    fs::read_dir(folder)?.try_fold(0, |sum, entry| Ok(sum + entry?.metadata()?.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bindings_are_changed_and_nothing_else() {
        let manifest = "[workspace.dependencies]\ntch = \"0.26\"\ntorch-sys = \"0.26\"\ntoml = \"1\"\n";
        let changed = with_bindings(manifest, "0.24").expect("both are there");
        assert_eq!(changed, "[workspace.dependencies]\ntch = \"0.24\"\ntorch-sys = \"0.24\"\ntoml = \"1\"\n");
        assert!(with_bindings("tch = { version = \"1\" }\n", "0.24").is_err());
    }
}
