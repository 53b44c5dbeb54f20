//! RabbitMQ: the system's own, installed by apt where that can be done; and release 4 from Debian 13, which lies in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::cache;

/// Where Debian's package has its scripts: themselves, since the wrappers on PATH would start them as another user.
const PACKAGED: &str = "/usr/lib/rabbitmq/bin";
/// The release of Debian that has RabbitMQ 4.
const DEBIAN: &str = "trixie";

/// A RabbitMQ that can be started.
pub struct Installation {
    /// The folder of its scripts, as they see it.
    scripts: PathBuf,
    /// The `/usr` that they need in place of this machine's.
    usr: Option<PathBuf>,
}

impl Installation {
    /// The command that runs one of its scripts.
    pub fn command(&self, script: &str) -> Command {
        let script = self.scripts.join(script);
        let Some(usr) = &self.usr else { return Command::new(script) };
        // In a view of the file system of its own; each program here replaces the one before, and so gets the signals.
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", r#"mount --bind "$0" /usr && exec "$@""#]);
        command.arg(usr).arg(script);
        command
    }
}

/// The system's RabbitMQ. Installed by apt where that can be done.
pub fn rabbitmq_server() -> Result<Installation> {
    let found = || {
        let own = std::env::var_os("RABBITMQ_SERVER").map(PathBuf::from);
        let server = own
            .into_iter()
            .chain([Path::new(PACKAGED).join("rabbitmq-server")])
            .find(|path| path.is_file())
            .or_else(|| on_path("rabbitmq-server"))?;
        Some(Installation { scripts: server.parent()?.into(), usr: None })
    };
    if let Some(found) = found() {
        return Ok(found);
    }
    if !is_root() || on_path("apt-get").is_none() {
        bail!(
            "there is no RabbitMQ: install it (`apt-get install rabbitmq-server`), or set RABBITMQ_SERVER to its `rabbitmq-server`"
        );
    }
    let _lock = cache::lock(&cache::directory()?)?;
    if found().is_none() {
        apt_install("rabbitmq-server").context("install RabbitMQ by hand, or set RABBITMQ_SERVER")?;
    }
    found().context("apt-get installed rabbitmq-server, and it is not there")
}

/// RabbitMQ 4 with its Erlang, beside whatever this machine has: a small Debian in the cache, whose `/usr` the server sees as its own.
pub fn rabbitmq_4() -> Result<Installation> {
    const ROOT: &str = "it is set up by debootstrap and started in a mount namespace";
    ensure!(is_root(), "RabbitMQ 4 can be had as root only: {ROOT}");
    ensure!(Path::new("/lib").is_symlink(), "RabbitMQ 4 needs a system whose `/lib` leads into `/usr`: {ROOT}");
    let cache = cache::directory()?;
    let folder = cache.join(format!("rabbitmq-{DEBIAN}"));
    if !cache::is_complete(&folder) {
        let _lock = cache::lock(&cache)?;
        if !cache::is_complete(&folder) {
            if on_path("debootstrap").is_none() {
                apt_install("debootstrap").context("RabbitMQ 4 is set up by debootstrap")?;
            }
            bootstrap(&folder)?;
            cache::seal(&folder)?;
        }
    }
    let found = Installation { scripts: PACKAGED.into(), usr: Some(folder.join("usr")) };
    let mut trial = Installation { scripts: "/usr/bin".into(), usr: found.usr.clone() }.command("true");
    let trial = trial.stdin(Stdio::null()).output().context("RabbitMQ 4 needs `unshare`")?;
    ensure!(
        trial.status.success(),
        "RabbitMQ 4 needs mount namespaces, which are not permitted here: {}",
        String::from_utf8_lossy(&trial.stderr).trim()
    );
    Ok(found)
}

/// Makes the small Debian, and keeps its `/usr`.
fn bootstrap(folder: &Path) -> Result<()> {
    eprintln!("fetching RabbitMQ 4: debootstrap of Debian {DEBIAN} (about a minute, 0.4 GB)");
    let whole = tempfile::tempdir_in(folder.parent().context("the cache has a folder for it")?)?;
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", "--include=rabbitmq-server", DEBIAN]).arg(whole.path()).stdin(Stdio::null());
    let output = command.output().context("cannot run debootstrap")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.trim().lines().last().unwrap_or_default();
    ensure!(output.status.success(), "debootstrap of Debian {DEBIAN} failed: {last}");
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot remove `{}`", folder.display()))?;
    }
    std::fs::create_dir(folder)?;
    std::fs::rename(whole.path().join("usr"), folder.join("usr"))?;
    Ok(())
}

fn is_root() -> bool {
    // SAFETY: geteuid only reads.
    unsafe { libc::geteuid() == 0 }
}

fn apt_install(package: &str) -> Result<()> {
    eprintln!("apt-get install {package}");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(Stdio::null());
        Ok::<bool, anyhow::Error>(command.status().context("cannot run apt-get")?.success())
    };
    let install = ["install", "--yes", "--no-install-recommends", package];
    if !apt(&install)? {
        apt(&["update"])?;
        ensure!(apt(&install)?, "`apt-get install {package}` failed");
    }
    Ok(())
}

fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}
