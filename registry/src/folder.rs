//! A package on its way into the registry: a folder that is read and checked, every fault reported at once.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use sluice_core::Manifest;

use crate::contents::{FileEntry, sha256_of};
use crate::{RegistryError, Result};

/// More files than this are hardly a model.
const MOST_FILES: usize = 10_000;
/// A model file is a zip that stores its weights as they are. One that would grow a hundredfold when read is a bomb.
const MOST_GROWTH: u64 = 100;
/// Growth does not matter below this.
const HARMLESS: u64 = 64 * 1024 * 1024;

/// A checked folder.
#[derive(Debug)]
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
    /// What its `model.toml` says.
    pub manifest: Manifest,
    /// The text of its `model.toml`.
    pub text: String,
    /// Whether `model.toml` names a version.
    pub names_version: bool,
    /// Its files, sorted by path.
    pub files: Vec<FileEntry>,
}

impl Folder {
    /// Reads a folder and checks all of it. Hashes every file: not for the runtime's threads.
    pub fn read(path: &Path) -> Result<Self> {
        let unfit = |faults: Vec<String>| RegistryError::Unfit { package: path.to_owned(), faults };
        let manifest_file = path.join("model.toml");
        let text = fs::read_to_string(&manifest_file)
            .map_err(|error| unfit(vec![format!("model.toml: {error}; a package is a folder with a model.toml")]))?;
        let mut faults = Vec::new();
        let manifest = Manifest::parse(&text)
            .inspect_err(|error| faults.extend(error.faults().iter().map(|fault| format!("model.toml: {fault}"))))
            .ok();
        let mut files = Vec::new();
        walk(path, "", &mut files, &mut faults)?;
        if let Some(manifest) = &manifest {
            match files.iter().find(|file| file.path == manifest.file) {
                Some(_) => check_growth(&path.join(&manifest.file), &manifest.file, &mut faults),
                None => {
                    faults.push(format!("model.toml: `file` names `{}`, which is not in the folder", manifest.file))
                }
            }
        }
        match manifest {
            Some(manifest) if faults.is_empty() => {
                files.sort_by(|one, other| one.path.cmp(&other.path));
                let names_version = text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("version"));
                Ok(Self { path: path.to_owned(), manifest, text, names_version, files })
            }
            _ => Err(unfit(faults)),
        }
    }
}

/// Collects regular files; anything else is a fault. Hidden files stay where they are.
fn walk(folder: &Path, below: &str, files: &mut Vec<FileEntry>, faults: &mut Vec<String>) -> Result<()> {
    let reading = || format!("cannot read `{}`", folder.display());
    for entry in fs::read_dir(folder).map_err(RegistryError::local(reading()))? {
        let entry = entry.map_err(RegistryError::local(reading()))?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
            faults.push(format!("`{below}{}`: its name is not UTF-8", entry.file_name().to_string_lossy()));
            continue;
        };
        if name.starts_with('.') {
            continue;
        }
        let path = format!("{below}{name}");
        // Does not follow links.
        let kind = entry.file_type().map_err(RegistryError::local(reading()))?;
        if kind.is_dir() {
            walk(&entry.path(), &format!("{path}/"), files, faults)?;
        } else if kind.is_file() {
            let hashing = RegistryError::local(format!("cannot read `{}`", entry.path().display()));
            let size = entry.metadata().map_err(RegistryError::local(reading()))?.len();
            let sha256 = sha256_of(&entry.path()).map_err(hashing)?;
            files.push(FileEntry { path, size, sha256 });
        } else if kind.is_symlink() {
            faults.push(format!("`{path}` is a symbolic link: put the file itself into the package"));
        } else {
            faults.push(format!("`{path}` is a device, socket or pipe: a package holds plain files"));
        }
        if files.len() > MOST_FILES {
            faults.push(format!("more than {MOST_FILES} files"));
            return Ok(());
        }
    }
    Ok(())
}

fn check_growth(file: &Path, name: &str, faults: &mut Vec<String>) {
    // What is no zip fails when it is loaded, with a better word.
    let Ok(source) = File::open(file) else { return };
    let packed = source.metadata().map_or(0, |meta| meta.len());
    let Ok(mut archive) = zip::ZipArchive::new(source) else { return };
    let sizes = (0..archive.len()).map(|index| archive.by_index_raw(index).map_or(0, |entry| entry.size()));
    let unpacked = sizes.fold(0_u64, u64::saturating_add);
    if unpacked > HARMLESS && unpacked > packed.saturating_mul(MOST_GROWTH) {
        faults.push(format!("`{name}`: its {packed} bytes would unpack to {unpacked}: that is a bomb, not a model"));
    }
}
