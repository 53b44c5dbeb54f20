//! The folder outside the checkout where fetched tools live, and the lock that lets two commands share it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// `$SLUICE_CACHE`, else `sluice` in the user's cache directory.
pub fn directory() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SLUICE_CACHE").filter(|path| !path.is_empty()) {
        return std::path::absolute(PathBuf::from(path)).context("SLUICE_CACHE is not a usable path");
    }
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => match std::env::var_os("HOME") {
            Some(home) => PathBuf::from(home).join(".cache"),
            None => bail!("neither SLUICE_CACHE nor HOME is set: set SLUICE_CACHE to a folder with 3 GB free"),
        },
    };
    Ok(base.join("sluice"))
}

/// Held while something is fetched, so that two commands do not fetch it twice into the same place.
pub struct Lock(#[allow(dead_code)] File);

/// Waits for the cache's lock.
pub fn lock(cache: &Path) -> Result<Lock> {
    fs::create_dir_all(cache).with_context(|| format!("cannot create the cache `{}`", cache.display()))?;
    let path = cache.join(".lock");
    let file = File::create(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("waiting for another command that is filling {}", cache.display());
        file.lock().with_context(|| format!("cannot lock `{}`", path.display()))?;
    }
    Ok(Lock(file))
}

/// The list of files that a complete folder holds, with their sizes, written last.
#[derive(Serialize, Deserialize)]
struct Inventory {
    files: Vec<(PathBuf, u64)>,
}

const INVENTORY: &str = ".complete.json";

/// Whether every file that was unpacked into `folder` is still there in its full size. It may have grown: some machines add
/// certificates of their own to those that Python packages bring.
pub fn is_complete(folder: &Path) -> bool {
    let Ok(text) = fs::read(folder.join(INVENTORY)) else { return false };
    let Ok(inventory) = serde_json::from_slice::<Inventory>(&text) else { return false };
    inventory.files.iter().all(|(path, size)| fs::metadata(folder.join(path)).is_ok_and(|found| found.len() >= *size))
}

/// Records what `folder` holds; from then on [`is_complete`] is true until something changes.
pub fn seal(folder: &Path) -> Result<()> {
    let mut files = Vec::new();
    list(folder, Path::new(""), &mut files)?;
    files.sort();
    fs::write(folder.join(INVENTORY), serde_json::to_vec(&Inventory { files })?)?;
    Ok(())
}

fn list(folder: &Path, below: &Path, files: &mut Vec<(PathBuf, u64)>) -> Result<()> {
    for entry in fs::read_dir(folder.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        // Python writes these anew as it likes.
        if entry.file_name() == "__pycache__" {
            continue;
        }
        // Where a symbolic link leads may be seen only by whoever has this folder as its root.
        let kind = entry.file_type()?;
        if kind.is_dir() {
            list(folder, &path, files)?;
        } else if kind.is_file() {
            files.push((path, entry.metadata()?.len()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_complete_until_a_file_shrinks_or_goes() -> Result<()> {
        let folder = tempfile::tempdir()?;
        fs::create_dir(folder.path().join("lib"))?;
        let library = folder.path().join("lib/libtorch.so");
        fs::write(&library, b"weights")?;
        assert!(!is_complete(folder.path()), "nothing says yet that it is complete");
        seal(folder.path())?;
        assert!(is_complete(folder.path()));
        fs::write(&library, b"we")?;
        assert!(!is_complete(folder.path()), "an interrupted write left it short");
        fs::remove_file(&library)?;
        assert!(!is_complete(folder.path()));
        Ok(())
    }
}
