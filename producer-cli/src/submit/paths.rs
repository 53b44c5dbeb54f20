//! Where a run's files go, decided before any is opened for writing: none that is read is written to, none is written twice, and none
//! that is there is replaced unasked.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::target::Target;
use crate::cli::{ReplyMode, Submit};

/// Where everything goes.
pub struct Paths {
    /// `None` for standard output.
    pub output: Option<Target>,
    pub errors: Target,
    /// Where the state of a run is kept that can be resumed.
    pub journal: Option<PathBuf>,
    /// Where it would be, of an earlier run.
    state: Option<PathBuf>,
}

impl Paths {
    pub fn of(options: &Submit) -> Result<Self> {
        let from_stdin = options.files.iter().any(|file| file == Path::new("-"));
        if from_stdin && options.files.len() > 1 {
            bail!("standard input (-) cannot be mixed with files");
        }
        let to_stdout = options.output == Path::new("-");
        let output = if to_stdout { None } else { Some(Target::of(&options.output)?) };
        // A device or a pipe has no file beside it.
        let beside = |suffix: &str| {
            output.as_ref().filter(|output| output.is_file()).map(|output| with_suffix(&output.path, suffix))
        };
        let errors = options.errors.clone().or_else(|| beside(".errors")).unwrap_or_else(|| "sluice.errors".into());
        let state = beside(".job");
        if options.resume && (state.is_none() || from_stdin) {
            bail!(
                "--resume needs files: what came from standard input or did not go to a file cannot be gone over again"
            );
        }
        if options.resume && options.reply == ReplyMode::Inbox {
            bail!("--resume needs durable answers (--reply durable): those that go straight back are kept nowhere");
        }
        let journal = state.clone().filter(|_| !from_stdin && options.reply == ReplyMode::Durable);
        let paths = Self { errors: Target::of(&errors)?, output, journal, state };
        paths.refuse_to_write_what_is_read(options)?;
        if !options.resume && !options.overwrite {
            paths.refuse_to_replace()?;
        }
        Ok(paths)
    }

    /// Once the output is begun anew, an earlier run that wrote it cannot be gone on with.
    pub fn forget_what_is_replaced(&self) -> Result<()> {
        match &self.state {
            Some(state) if self.journal.is_none() => fs::remove_file(state)
                .or_else(super::ignore_missing)
                .with_context(|| format!("cannot remove `{}`", state.display())),
            _ => Ok(()),
        }
    }

    /// All that is written, and what it is.
    fn written(&self) -> Vec<(String, Option<Identity>)> {
        let mut written = Vec::new();
        let mut add = |what: &str, path: &Path| written.push((format!("{what} `{}`", path.display()), identity(path)));
        for (what, target) in [("output", self.output.as_ref()), ("errors file", Some(&self.errors))] {
            let Some(target) = target else { continue };
            add(what, &target.path);
            // One that is in its place already has two names until the end.
            if let Some(partial) = target.partial.as_ref().filter(|_| !target.is_linked()) {
                add(&format!("unfinished {what}"), partial);
            }
        }
        if let Some(state) = &self.state {
            add("run's state", state);
            add("run's state", &with_suffix(state, ".new"));
        }
        if self.output.is_none() {
            written.push(("standard output".into(), identity_of(&io::stdout().as_fd())));
        }
        written
    }

    fn refuse_to_write_what_is_read(&self, options: &Submit) -> Result<()> {
        let read = |file: &PathBuf| match file.to_str() {
            Some("-") => ("standard input".to_owned(), identity_of(&io::stdin().as_fd())),
            _ => (format!("input `{}`", file.display()), identity(file)),
        };
        let read: Vec<_> = options.files.iter().map(read).collect();
        let written = self.written();
        for (at, (what, one)) in written.iter().enumerate() {
            let Some(one) = one else { continue };
            let mut others = read.iter().chain(&written[at + 1..]);
            if let Some((other, _)) = others.find(|(_, other)| other.as_ref() == Some(one)) {
                bail!("the {other} and the {what} are one file: choose another name");
            }
        }
        Ok(())
    }

    fn refuse_to_replace(&self) -> Result<()> {
        let name = |target: &Target| target.path.display().to_string();
        if self.state.as_ref().is_some_and(|state| state.exists()) {
            let output = self.output.as_ref().map(name).unwrap_or_default();
            bail!(
                "an earlier run that wrote `{output}` was interrupted: go on with it by --resume, or start over by --overwrite"
            );
        }
        let targets = self.output.iter().chain([&self.errors]).filter(|target| target.is_file());
        let files = targets.flat_map(|target| [Some(&target.place), target.partial.as_ref()]).flatten();
        match files.into_iter().find(|file| file.exists()) {
            Some(file) => {
                bail!("`{}` is there already: replace it by --overwrite, or choose another name", file.display())
            }
            None => Ok(()),
        }
    }
}

pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// What a path stands for, whatever its name.
#[derive(Debug, PartialEq, Eq)]
enum Identity {
    /// Device and inode: the same by any link.
    File(u64, u64),
    /// Nothing is there yet.
    Absent(PathBuf),
}

/// `None` for a device, a pipe or a folder: writing there destroys nothing, or fails.
fn identity(path: &Path) -> Option<Identity> {
    match fs::metadata(path) {
        Ok(metadata) => of_file(&metadata),
        Err(_) => Some(Identity::Absent(super::target::resolved(path))),
    }
}

fn identity_of(stream: &BorrowedFd<'_>) -> Option<Identity> {
    of_file(&File::from(stream.try_clone_to_owned().ok()?).metadata().ok()?)
}

fn of_file(metadata: &Metadata) -> Option<Identity> {
    metadata.is_file().then(|| Identity::File(metadata.dev(), metadata.ino()))
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Arguments, Command};

    /// The paths of `submit m ARGUMENTS`, names below the folder.
    pub(in crate::submit) fn of(folder: &Path, arguments: &[&str]) -> Result<Paths> {
        // Names are below the folder; options and `-` are as they are.
        let named = |argument: &&str| match argument.starts_with('-') || ["durable", "inbox"].contains(argument) {
            true => PathBuf::from(argument),
            false => folder.join(argument),
        };
        let arguments = arguments.iter().map(named);
        let all = ["sluice", "submit", "m"].map(PathBuf::from).into_iter().chain(arguments);
        match Arguments::try_parse_from(all)?.command {
            Command::Submit(options) => Paths::of(&options),
            _ => bail!("not submit"),
        }
    }

    #[test]
    fn nothing_that_is_read_is_written_and_nothing_twice_by_whatever_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = folder.path();
        fs::write(at.join("in"), "x").expect("writes");
        fs::create_dir(at.join("sub")).expect("makes");
        std::os::unix::fs::symlink("in", at.join("soft")).expect("links");
        std::os::unix::fs::symlink("../new", at.join("sub/dangling")).expect("links");
        fs::hard_link(at.join("in"), at.join("hard")).expect("links");
        for arguments in [
            ["in", "-o", "in", "--overwrite"].as_slice(),
            &["in", "-o", "sub/../in", "--overwrite"],
            &["in", "-o", "soft", "--overwrite"],
            &["in", "-o", "hard", "--overwrite"],
            &["soft", "-o", "out", "--errors", "hard", "--overwrite"],
            &["in", "-o", "out", "--errors", "out"],
            &["in", "-o", "new", "--errors", "sub/dangling"],
            &["in", "-o", "out", "--errors", "out.job"],
            &["in", "-o", "out", "--errors", "out.partial"],
            &["in", "-o", "-", "--errors", "in", "--overwrite"],
        ] {
            let refusal = of(at, arguments).err().map(|refusal| refusal.to_string()).unwrap_or_default();
            assert!(refusal.contains("are one file"), "{arguments:?}: {refusal}");
        }
        for fine in [["in", "-o", "out"].as_slice(), &["in", "in", "-o", "out"], &["in", "-o", "/dev/null"]] {
            assert!(of(at, fine).is_ok(), "{fine:?}");
        }
    }

    #[test]
    fn what_is_there_is_replaced_only_when_that_was_asked_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = folder.path();
        for name in ["in", "there", "a.errors", "b.partial", "c.job"] {
            fs::write(at.join(name), "x").expect("writes");
        }
        for arguments in [
            ["in", "-o", "there"].as_slice(),
            &["-", "-o", "there"],
            &["in", "-o", "there", "--reply", "inbox"],
            &["in", "-o", "a"],
            &["in", "-o", "b"],
            &["in", "-o", "c", "--reply", "inbox"],
            &["in", "-o", "out", "--errors", "there"],
        ] {
            let refusal = of(at, arguments).err().map(|refusal| refusal.to_string()).unwrap_or_default();
            assert!(refusal.contains("--overwrite"), "{arguments:?}: {refusal}");
            let with: Vec<&str> = arguments.iter().copied().chain(["--overwrite"]).collect();
            assert!(of(at, &with).is_ok(), "{with:?}");
        }
        let refusal = of(at, &["in", "-o", "c", "--reply", "inbox", "--resume"]).err().expect("refused");
        assert!(refusal.to_string().contains("--reply durable"), "{refusal}");
        assert!(of(at, &["-", "-o", "c", "--resume"]).is_err());
        assert!(of(at, &["in", "-o", "c", "--resume"]).is_ok());
        fs::hard_link(at.join("there"), at.join("there.partial")).expect("links");
        assert!(of(at, &["in", "-o", "there", "--resume"]).is_ok(), "a run that was ending");
    }
}
