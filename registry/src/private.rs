//! A folder that is this user's alone: what is checked in it is what is loaded from it, and no link in it leads elsewhere.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use crate::{RegistryError, Result};

const ROOT: u32 = 0;
/// Bits of a mode that let others write.
const OTHERS_WRITE: u32 = 0o022;
/// What is left to this user alone.
const OWN: u32 = 0o700;

/// Makes the folder, or makes sure that it is this user's and that others can neither write nor read there.
pub(crate) fn folder(path: &Path) -> Result<()> {
    let making = |error| RegistryError::local(format!("cannot make `{}`", path.display()))(error);
    let reading = |error| RegistryError::local(format!("cannot use `{}`", path.display()))(error);
    let refuse = |reason: String| {
        Err(RegistryError::Unusable(format!(
            "folder `{}` cannot hold copies of packages: {reason}; name another, such as by `worker.cache`",
            path.display()
        )))
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(making)?;
    }
    match DirBuilder::new().mode(OWN).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(making(error)),
        _ => {}
    }
    // SAFETY: it only asks the system.
    let us = unsafe { libc::geteuid() };
    let link = fs::symlink_metadata(path).map_err(reading)?;
    // A supervisor's link, as systemd makes them, leads to what is judged below.
    if link.is_symlink() && ![us, ROOT].contains(&link.uid()) {
        return refuse(format!("it is a link that user {} made, and this is user {us}", link.uid()));
    }
    let found = fs::metadata(path).map_err(reading)?;
    if !found.is_dir() {
        return refuse("it is no folder".into());
    }
    if found.uid() != us {
        return refuse(format!("it belongs to user {}, and this is user {us}", found.uid()));
    }
    if found.mode() & OTHERS_WRITE != 0 {
        return refuse("others may write into it, and may have done so (if nobody did, `chmod 700` mends it)".into());
    }
    if found.mode() & 0o777 != OWN {
        fs::set_permissions(path, fs::Permissions::from_mode(OWN)).map_err(reading)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_folder_is_this_users_alone_or_is_refused() {
        let base = tempfile::tempdir().expect("a folder");
        let mode = |path: &Path| fs::metadata(path).expect("it is there").mode() & 0o777;
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is set");
        let own = base.path().join("deep/own");
        folder(&own).expect("it is made");
        assert_eq!(mode(&own), 0o700);
        set(&own, 0o755);
        folder(&own).expect("it is tightened");
        assert_eq!(mode(&own), 0o700);
        let linked = base.path().join("linked");
        symlink(&own, &linked).expect("a link");
        folder(&linked).expect("our own link");
        for shared in [0o770, 0o777, 0o1777] {
            set(&own, shared);
            for path in [&own, &linked] {
                let told = folder(path).expect_err("others write there").to_string();
                assert!(told.contains("others may write into it") && told.contains("`worker.cache`"), "{told}");
            }
        }
        let file = base.path().join("file");
        fs::write(&file, b"").expect("written");
        assert!(folder(&file).expect_err("a file").to_string().contains("it is no folder"));
        // SAFETY: it only asks the system.
        if unsafe { libc::geteuid() } != ROOT {
            println!("skipped: only root can give a folder away");
            return;
        }
        set(&own, 0o700);
        std::os::unix::fs::lchown(&linked, Some(65534), None).expect("it is given away");
        let told = folder(&linked).expect_err("somebody else's link").to_string();
        assert!(told.contains("a link that user 65534 made"), "{told}");
        std::os::unix::fs::chown(&own, Some(65534), None).expect("it is given away");
        let told = folder(&own).expect_err("somebody else's").to_string();
        assert!(told.contains("it belongs to user 65534"), "{told}");
    }
}
