//! Unpacking an archive that a stranger may have made: nothing leaves the folder, nothing is but a plain file, and nothing grows
//! beyond what was allowed.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Component, Path};
use std::rc::Rc;

use flate2::read::GzDecoder;
use tar::{Archive, EntryType};

use crate::{RegistryError, Result};

/// More entries than this are hardly a package.
const MOST_ENTRIES: usize = 10_000;

/// What a header may have beside 512 bytes: a long name, attributes.
const LARGEST_HEADER: u64 = 1 << 20;

/// Unpacks a `.tar`, `.tar.gz` or `.tgz` into a folder that is there, at most `largest` bytes. Not for the runtime's threads.
pub fn unpack(archive: &Path, into: &Path, largest: u64) -> Result<()> {
    let mut left = largest;
    each_file(archive, MOST_ENTRIES, |path, size, content| {
        left = left.checked_sub(size).ok_or_else(|| {
            format!("it would unpack to more than {largest} bytes: raise the limit if it is not a bomb")
        })?;
        let target = into.join(path);
        let mut write = || {
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent)?;
            }
            // Twice the same name is an attempt to replace a file that was checked.
            io::copy(content, &mut File::create_new(&target)?)
        };
        write().map(drop).map_err(|error| format!("entry `{}`: {error}", path.display()))
    })
}

/// Hands each plain file of an archive over, by its path, which stays inside any folder. The size that an entry claims is all that can
/// be read of it.
pub(crate) fn each_file(
    archive: &Path,
    most_entries: usize,
    mut take: impl FnMut(&Path, u64, &mut dyn Read) -> std::result::Result<(), String>,
) -> Result<()> {
    let refuse = |reason: String| RegistryError::Archive { archive: archive.to_owned(), reason };
    let broken = |error: io::Error| refuse(format!("it cannot be read: {error}"));
    let file = File::open(archive).map_err(broken)?;
    let name = archive.to_string_lossy();
    let budget = Rc::new(Cell::new(LARGEST_HEADER));
    let source: Box<dyn Read> = if name.ends_with(".gz") || name.ends_with(".tgz") {
        Box::new(GzDecoder::new(BufReader::new(file)))
    } else {
        Box::new(BufReader::new(file))
    };
    let mut archive = Archive::new(Budgeted { source, left: Rc::clone(&budget) });
    let mut entries = archive.entries().map_err(broken)?;
    for count in 0.. {
        // What is read from here to the next entry is that entry's name and attributes.
        budget.set(LARGEST_HEADER);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(broken)?;
        let path = entry.path().map_err(broken)?.into_owned();
        if count == most_entries {
            return Err(refuse(format!("it has more than {most_entries} entries")));
        }
        let plain: std::path::PathBuf = path.components().filter(|part| !matches!(part, Component::CurDir)).collect();
        if !plain.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(refuse(format!("entry `{}` leads out of its folder", path.display())));
        }
        match entry.header().entry_type() {
            EntryType::Directory => {}
            EntryType::Regular | EntryType::Continuous => {
                let size = entry.size();
                budget.set(size);
                take(&plain, size, &mut entry).map_err(refuse)?;
            }
            other => {
                return Err(refuse(format!(
                    "entry `{}` is a {}: only plain files and folders are taken",
                    path.display(),
                    kind(other)
                )));
            }
        }
    }
    Ok(())
}

/// A reader that gives no more than it is told, so that an archive of little size cannot be read for ever.
struct Budgeted<R> {
    source: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Budgeted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left.get() == 0 && !into.is_empty() {
            return Err(io::Error::other("an entry has more than it says, or a name or attributes without end"));
        }
        let most = usize::try_from(self.left.get()).unwrap_or(usize::MAX).min(into.len());
        let read = self.source.read(&mut into[..most])?;
        self.left.set(self.left.get() - read as u64);
        Ok(read)
    }
}

fn kind(entry: EntryType) -> &'static str {
    match entry {
        EntryType::Symlink => "symbolic link",
        EntryType::Link => "hard link",
        EntryType::Char | EntryType::Block => "device",
        EntryType::Fifo => "pipe",
        _ => "special entry",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(fill: impl FnOnce(&mut tar::Builder<File>)) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.tar");
        let mut builder = tar::Builder::new(File::create(&path).expect("a file"));
        fill(&mut builder);
        builder.finish().expect("written");
        (folder, path)
    }

    /// An entry whose name the builder itself would refuse.
    fn entry(builder: &mut tar::Builder<File>, name: &str, kind: EntryType, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, content).expect("appended");
    }

    fn refusal(fill: impl FnOnce(&mut tar::Builder<File>)) -> String {
        let (folder, path) = archive(fill);
        let into = folder.path().join("into");
        fs::create_dir(&into).expect("a folder");
        unpack(&path, &into, 1000).expect_err("a refusal").to_string()
    }

    #[test]
    fn plain_files_are_unpacked() {
        let (folder, path) = archive(|builder| {
            entry(builder, "./model.toml", EntryType::Regular, b"name");
            entry(builder, "deep/er/", EntryType::Directory, b"");
            entry(builder, "deep/er/model.pt", EntryType::Regular, b"weights");
        });
        let into = folder.path().join("into");
        fs::create_dir(&into).expect("a folder");
        unpack(&path, &into, 1000).expect("unpacks");
        assert_eq!(fs::read(into.join("model.toml")).expect("there"), b"name");
        assert_eq!(fs::read(into.join("deep/er/model.pt")).expect("there"), b"weights");
    }

    #[test]
    fn what_is_packed_small_and_unpacks_large_is_refused_before_it_fills_the_disk() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.tar.gz");
        let packed = flate2::write::GzEncoder::new(File::create(&path).expect("a file"), flate2::Compression::best());
        let mut builder = tar::Builder::new(packed);
        let mut header = tar::Header::new_gnu();
        header.set_size(64 << 20);
        builder.append_data(&mut header, "zeros", io::repeat(0).take(64 << 20)).expect("appended");
        builder.into_inner().expect("written").finish().expect("written");
        assert!(fs::metadata(&path).expect("it is there").len() < 100_000);
        let into = folder.path().join("into");
        fs::create_dir(&into).expect("a folder");
        let text = unpack(&path, &into, 1 << 20).expect_err("a refusal").to_string();
        assert!(text.contains("more than 1048576 bytes"), "{text}");
        assert_eq!(fs::read_dir(&into).expect("it is there").count(), 0);
    }

    #[test]
    fn what_leads_out_links_or_grows_is_refused_by_name() {
        for (name, kind, word) in [
            ("../evil", EntryType::Regular, "leads out"),
            ("/etc/evil", EntryType::Regular, "leads out"),
            ("a/../../evil", EntryType::Regular, "leads out"),
            ("evil", EntryType::Symlink, "symbolic link"),
            ("evil", EntryType::Link, "hard link"),
            ("evil", EntryType::Char, "device"),
            ("evil", EntryType::Fifo, "pipe"),
        ] {
            let text = refusal(|builder| entry(builder, name, kind, b""));
            assert!(text.contains(name) && text.contains(word), "{text}");
        }
        let text = refusal(|builder| entry(builder, "big", EntryType::Regular, &[0; 1001]));
        assert!(text.contains("more than 1000 bytes"), "{text}");
        // Long names and attributes, which a reader keeps in memory.
        for kind in [EntryType::GNULongName, EntryType::XHeader] {
            let text = refusal(|builder| entry(builder, "long", kind, &vec![b'a'; 3 << 20]));
            assert!(text.contains("without end"), "{text}");
        }
        let text = refusal(|builder| (0..=MOST_ENTRIES).for_each(|_| entry(builder, "dir", EntryType::Directory, b"")));
        assert!(text.contains("more than 10000 entries"), "{text}");
        let text = refusal(|builder| {
            entry(builder, "same", EntryType::Regular, b"a");
            entry(builder, "same", EntryType::Regular, b"b");
        });
        assert!(text.contains("`same`"), "{text}");
    }
}
