//! What somebody else on the host tries, so that another file is loaded than the one that was checked, or a file of the worker's is overwritten.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sluice_core::ModelName;
use sluice_registry::Cache;
use xtask::process::Service;

use crate::rig::{Kind, Rig};

/// The user that has nothing.
const NOBODY: u32 = 65534;
const ROUNDS: usize = 30;

/// Tries to get into `cache`, over and over, until there is a file `stop`: by files, folders, links and renames, at the names that are
/// known and at those that it can see. What it managed stands in `log`.
const INTRUDER: &str = r#"
cd "$1"
echo weightz > own/weights
while [ ! -e stop ]; do
  for name in m m/1 m/1/model.pt m/1/.contents.toml .unfinished .unfinished/x cache/.unfinished/*; do
    target="cache/${name#cache/}"
    cp own/weights "$target" 2>/dev/null && echo "wrote $target" >> own/log
    ln -sfn "$PWD/own/weights" "$target" 2>/dev/null && echo "linked $target" >> own/log
    mv "$target" own/taken 2>/dev/null && echo "took $target" >> own/log
  done
  mkdir "cache/other" 2>/dev/null && echo "made a folder" >> own/log
  cat cache/m/1/model.pt >/dev/null 2>&1 && echo "read the weights" >> own/log
  echo tried >> own/tries
done
"#;

fn m() -> ModelName {
    "m".parse().expect("a name")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_puts_a_file_in_the_place_of_one_that_was_checked() -> Result<()> {
    // SAFETY: it only asks the system.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: only root can run something as somebody else");
        return Ok(());
    }
    let rig = Rig::start(Kind::Folder).await?;
    rig.registry.publish(&rig.package("m", b"weights", "")?, None, &|_| ()).await?;
    let base = rig.folder();
    fs::set_permissions(base, fs::Permissions::from_mode(0o755))?;
    let own = base.join("own");
    fs::create_dir(&own)?;
    std::os::unix::fs::chown(&own, Some(NOBODY), None)?;
    let cache = Cache::open(base.join("cache"), u64::MAX)?;
    let mut intruder = Command::new("sh");
    intruder.args(["-c", INTRUDER, "sh"]).arg(base).uid(NOBODY).gid(NOBODY);
    let mut intruder = Service::start("intruder", &mut intruder, base)?;
    let tries = || fs::read_to_string(own.join("tries")).map_or(0, |text| text.lines().count());
    let deadline = Instant::now() + Duration::from_secs(60);
    for _ in 0..ROUNDS {
        // At least one attempt in each round.
        let before = tries();
        let package = cache.package(&rig.registry, &m(), "1").await?;
        while tries() <= before {
            ensure!(Instant::now() < deadline, "nobody tries anything");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let loaded = fs::read(package.folder().join("model.pt"))?;
        assert_eq!(loaded, b"weights");
        drop(package);
        fs::remove_dir_all(base.join("cache/m"))?;
    }
    fs::write(base.join("stop"), b"")?;
    intruder.wait(Duration::from_secs(60))?;
    let managed = fs::read_to_string(own.join("log")).unwrap_or_default();
    assert_eq!(managed, "", "somebody else got in");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_through_a_link_at_a_name_that_can_be_guessed() -> Result<()> {
    let rig = Rig::start(Kind::Folder).await?;
    let package = rig.package("m", b"weights", "")?;
    rig.registry.publish(&package, None, &|_| ()).await?;
    let base = rig.folder();
    let cache = Cache::open(base.join("cache"), u64::MAX)?;
    let victim = base.join("victim");
    fs::write(&victim, b"precious")?;
    let link = |at: &str| -> Result<()> {
        let at = base.join("cache").join(at);
        fs::create_dir_all(at.parent().context("it stands in a folder")?)?;
        Ok(symlink(&victim, at)?)
    };
    // What follows from the package: paths, hashes, and the ways in which unfinished files are usually called.
    for file in &package.files {
        for name in [&file.path, &file.sha256, &format!("m-1-{}", file.path)] {
            for ending in ["", ".tmp", ".part", ".partial", ".new", "~"] {
                link(&format!(".unfinished/{name}{ending}"))?;
            }
        }
        for ending in [".tmp", ".part", ".partial", ".new", "~"] {
            link(&format!("m/1/{}{ending}", file.path))?;
        }
    }
    for ending in ["", ".tmp", ".part", ".partial", ".new", "~"] {
        link(&format!("m/1/.contents.toml{ending}"))?;
    }
    let fetched = cache.package(&rig.registry, &m(), "1").await?;
    assert_eq!(fs::read(fetched.folder().join("model.pt"))?, b"weights");
    assert_eq!(fs::read(&victim)?, b"precious");
    let is_link = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
    assert!(!is_link(&fetched.folder().join(".contents.toml")) && !is_link(&fetched.folder().join("model.pt")));
    // In the place of a file of the package itself it is refused.
    fs::remove_file(fetched.folder().join("model.pt"))?;
    drop(fetched);
    link("m/1/model.pt")?;
    let told = cache.package(&rig.registry, &m(), "1").await.expect_err("a link").to_string();
    assert!(told.contains("is no plain file: remove it"), "{told}");
    assert_eq!(fs::read(&victim)?, b"precious");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_others_may_write_into_holds_no_copies_and_a_version_leads_nowhere_else() -> Result<()> {
    let rig = Rig::start(Kind::Folder).await?;
    rig.registry.publish(&rig.package("m", b"weights", "")?, None, &|_| ()).await?;
    let folder = rig.folder().join("cache");
    fs::create_dir(&folder)?;
    let set = |mode| fs::set_permissions(&folder, fs::Permissions::from_mode(mode));
    let shared = "others may write into it";
    set(0o777)?;
    let told = Cache::open(folder.clone(), u64::MAX).err().context("others write there")?.to_string();
    assert!(told.contains(shared), "{told}");
    set(0o700)?;
    let cache = Cache::open(folder.clone(), u64::MAX)?;
    // Since it was opened, too.
    set(0o777)?;
    let told = cache.package(&rig.registry, &m(), "1").await.expect_err("others write there").to_string();
    assert!(told.contains(shared), "{told}");
    set(0o700)?;
    let told = cache.package(&rig.registry, &m(), "../../own").await.expect_err("no version").to_string();
    assert!(told.contains(sluice_core::manifest::VERSION_RULE), "{told}");
    assert_eq!(fs::read_dir(&folder)?.count(), 0);
    cache.package(&rig.registry, &m(), "1").await?;
    Ok(())
}
