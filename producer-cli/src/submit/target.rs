//! A file that is written beside its place, and moved there when it is complete: until then, what was there stays.

use std::fs::{self, File, TryLockError};
use std::io::{BufWriter, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::paths::with_suffix;

/// A file that is to be written.
#[derive(Debug, Clone)]
pub struct Target {
    /// As it was named.
    pub path: PathBuf,
    /// Where that is, links followed.
    pub place: PathBuf,
    /// Where it is written; `None` for a device or a pipe, which is written as it is.
    pub partial: Option<PathBuf>,
}

/// How a file comes to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// There must be none yet.
    New,
    /// What is there is replaced.
    Over,
    /// An earlier run wrote so many bytes that count.
    After(u64),
}

impl Target {
    pub fn of(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path);
        if metadata.as_ref().is_ok_and(fs::Metadata::is_dir) {
            bail!("`{}` is a folder: name a file", path.display());
        }
        let place = resolved(path);
        let is_file = metadata.map_or(true, |metadata| metadata.is_file());
        let partial = is_file.then(|| with_suffix(&place, ".partial"));
        Ok(Self { path: path.into(), place, partial })
    }

    /// Whether it is, or will be, a file.
    pub fn is_file(&self) -> bool {
        self.partial.is_some()
    }

    /// Where it is written.
    pub fn written(&self) -> &Path {
        self.partial.as_ref().unwrap_or(&self.path)
    }

    /// Whether what was written is in its place by now.
    pub fn is_linked(&self) -> bool {
        let file = |path: &Path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        file(&self.place).is_some_and(|place| Some(place) == file(self.written()))
    }

    /// Whether an earlier run that wrote so many bytes put them in their place.
    pub fn is_finished(&self, bytes: u64) -> bool {
        let placed = fs::metadata(&self.place).is_ok_and(|metadata| metadata.is_file() && metadata.len() == bytes);
        placed && self.partial.as_ref().is_some_and(|partial| !partial.exists())
    }

    /// Begins to write.
    pub fn open(&self, begin: Begin) -> Result<BufWriter<File>> {
        let path = self.written();
        let cannot = || format!("cannot write `{}`", path.display());
        let mut options = File::options();
        options.write(true);
        match begin {
            _ if !self.is_file() => &mut options,
            Begin::New => options.create_new(true),
            // Cut below, when it is known that no other run writes it.
            Begin::Over => options.create(true).truncate(false),
            Begin::After(_) => &mut options,
        };
        let mut file = match options.open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound && matches!(begin, Begin::After(_)) => bail!(
                "`{}`, which the earlier run wrote, is gone: if that was just about to end, `{}` is complete; --overwrite starts over",
                path.display(),
                self.path.display()
            ),
            opened => opened.with_context(cannot)?,
        };
        if self.is_file() {
            if let Err(TryLockError::WouldBlock) = file.try_lock() {
                bail!("`{}` is being written by another run", path.display());
            }
            let bytes = if let Begin::After(bytes) = begin { bytes } else { 0 };
            if file.metadata().with_context(cannot)?.len() < bytes {
                bail!(
                    "`{}` has been cut since the earlier run, so that cannot be gone on with: --overwrite starts over",
                    path.display()
                );
            }
            file.set_len(bytes).and_then(|()| file.seek(SeekFrom::Start(bytes))).with_context(cannot)?;
        }
        Ok(BufWriter::with_capacity(1 << 16, file))
    }

    /// Finds out whether it can be written, before that is needed: nothing is left of it.
    pub fn try_out(&self, begin: Begin) -> Result<()> {
        let Some(partial) = &self.partial else { return Ok(()) };
        let _held = self.open(begin)?;
        fs::remove_file(partial).with_context(|| format!("cannot remove `{}`", partial.display()))
    }

    /// Removes what an earlier run left unfinished, unless another run is writing it.
    pub fn clear(&self) -> Result<()> {
        let Some(partial) = self.partial.as_ref().filter(|partial| partial.exists()) else { return Ok(()) };
        let _held = self.open(Begin::Over)?;
        fs::remove_file(partial).with_context(|| format!("cannot remove `{}`", partial.display()))
    }

    /// Moves what is complete to its place. Only with `replace` is there anything replaced.
    pub fn finish(&self, file: &File, replace: bool) -> Result<()> {
        let Some(partial) = &self.partial else { return Ok(()) };
        let cannot = || format!("`{}` is complete, and cannot become `{}`", partial.display(), self.path.display());
        file.sync_data().with_context(|| format!("cannot write `{}`", partial.display()))?;
        if replace {
            if let Ok(before) = fs::metadata(&self.place) {
                // Whoever could read it can read it again; where that cannot be, the answers matter more.
                let _ = file.set_permissions(before.permissions());
            }
            return fs::rename(partial, &self.place).with_context(cannot);
        }
        // A link never replaces anything; not all file systems have links.
        match fs::hard_link(partial, &self.place) {
            // An earlier run may have ended between the two steps.
            Err(_) if self.is_linked() => fs::remove_file(partial).with_context(cannot),
            Ok(()) => fs::remove_file(partial).with_context(cannot),
            Err(error) if error.kind() != ErrorKind::AlreadyExists && !self.place.exists() => {
                fs::rename(partial, &self.place).with_context(cannot)
            }
            Err(_) => bail!("{}: that has come to be there meanwhile", cannot()),
        }
    }
}

/// Where a path leads: links are followed, also one to what is not there yet.
pub fn resolved(path: &Path) -> PathBuf {
    /// As many links as Linux follows.
    const MOST_LINKS: usize = 40;
    let mut path = std::path::absolute(path).unwrap_or_else(|_| path.into());
    for _ in 0..MOST_LINKS {
        let Ok(link) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("/")).join(link);
    }
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    match (folder, path.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_is_there_stays_until_the_new_is_complete_and_for_good_if_it_may_not_be_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let text = |name: &str| fs::read_to_string(at(name)).unwrap_or_default();
        fs::write(at("real"), "before").expect("writes");
        std::os::unix::fs::symlink("real", at("link")).expect("links");
        let target = Target::of(&at("link")).expect("a file");
        let mut file = target.open(Begin::New).expect("opens");
        assert!(target.open(Begin::Over).is_err(), "another run writes it");
        file.write_all(b"after").expect("writes");
        file.flush().expect("writes");
        assert_eq!((text("link").as_str(), text("real.partial").as_str()), ("before", "after"));
        let refusal = target.finish(file.get_ref(), false).expect_err("nobody said that it may be replaced");
        assert!(refusal.to_string().contains("meanwhile"), "{refusal:#}");
        assert_eq!(text("real"), "before");
        target.finish(file.get_ref(), true).expect("moves");
        assert_eq!((text("real").as_str(), text("link").as_str()), ("after", "after"));
        assert!(fs::symlink_metadata(at("link")).expect("is there").is_symlink() && !at("real.partial").exists());
    }

    #[test]
    fn an_earlier_run_is_gone_on_with_where_it_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = Target::of(&folder.path().join("out")).expect("a file");
        let refusal = target.open(Begin::After(0)).expect_err("there is none");
        assert!(refusal.to_string().contains("is gone"), "{refusal:#}");
        fs::write(target.written(), "one\ntw").expect("writes");
        assert!(target.open(Begin::New).is_err(), "somebody made it");
        let mut file = target.open(Begin::After(4)).expect("opens");
        file.write_all(b"two\n").expect("writes");
        file.flush().expect("writes");
        drop(file);
        assert_eq!(fs::read_to_string(target.written()).expect("reads"), "one\ntwo\n");
        let refusal = target.open(Begin::After(9)).expect_err("it is shorter");
        assert!(refusal.to_string().contains("has been cut"), "{refusal:#}");
        // It ended when all was in its place, but the other name not yet removed.
        fs::hard_link(target.written(), &target.place).expect("links");
        let file = target.open(Begin::After(8)).expect("opens");
        target.finish(file.get_ref(), false).expect("ends");
        assert_eq!(fs::read_to_string(&target.path).expect("reads"), "one\ntwo\n");
        assert!(!target.written().exists());
    }
}
