//! Where the programs are that a deployment is made of.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Another program of Sluice: installed beside this one, else on PATH.
pub fn beside(program: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?.with_file_name(program);
    match own.is_file() {
        true => Ok(own),
        false => on_path(program).with_context(|| format!("`{program}` is neither beside this program nor on PATH")),
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// From NATS_SERVER, from PATH, or from the cache that `cargo xtask setup` fills.
pub fn nats_server() -> Result<PathBuf> {
    if let Some(own) = std::env::var_os("NATS_SERVER") {
        return Ok(own.into());
    }
    let cache = std::env::var_os("SLUICE_CACHE").map(PathBuf::from).or_else(|| {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        Some(base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?.join("sluice"))
    });
    on_path("nats-server").or_else(|| find(&cache?, "nats-server", 6)).context(
        "there is no nats-server: install one of at least 2.12 on PATH, name it in NATS_SERVER, run `cargo xtask setup`, or use a broker \
         that runs, with --external and --broker URL",
    )
}

/// A file of this name below a folder.
fn find(folder: &Path, name: &str, depth: usize) -> Option<PathBuf> {
    let entries: Vec<PathBuf> = std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let here = entries.iter().find(|path| path.is_file() && path.file_name().is_some_and(|file| file == name));
    let below = || {
        let folders = entries.iter().filter(|path| path.is_dir());
        // Of the cache, only what can hold it: libtorch alone has thousands of files.
        let likely = folders
            .filter(|path| depth < 6 || path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)));
        likely.filter_map(|path| find(path, name, depth.checked_sub(1)?)).next()
    };
    here.cloned().or_else(|| if depth == 0 { None } else { below() })
}
