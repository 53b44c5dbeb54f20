//! Versions and revisions.

use anyhow::Result;
use sluice_core::ModelName;
use sluice_core::manifest::Profile;
use sluice_registry::{Action, Change, Folder, RegistryError};

use crate::rig::{Rig, change};

fn m() -> ModelName {
    "m".parse().expect("a name")
}

pub async fn a_published_version_is_complete_and_never_changes(rig: &Rig) -> Result<()> {
    let package = rig.package("m", b"weights", "")?;
    let published = rig.registry.publish(&package, Some("1.0"), &|_| ()).await?;
    assert!(published.new && published.version == "1.0");
    let contents = rig.registry.contents(&m(), "1.0").await?;
    assert_eq!(contents.files, package.files);
    assert_eq!(contents.manifest("1.0")?.version, "1.0");
    // Again the same is no change; something else is refused.
    assert!(!rig.registry.publish(&package, Some("1.0"), &|_| ()).await?.new);
    let other = rig.package("m", b"other weights", "")?;
    let taken = rig.registry.publish(&other, Some("1.0"), &|_| ()).await.expect_err("taken");
    assert!(matches!(taken, RegistryError::VersionTaken { .. }), "{taken}");
    assert_eq!(rig.registry.contents(&m(), "1.0").await?, contents);
    let unknown = rig.registry.contents(&m(), "9").await.expect_err("unknown").to_string();
    assert!(unknown.contains("no version `9`; it has 1.0"), "{unknown}");
    assert!(rig.registry.publish(&package, Some("../1"), &|_| ()).await.is_err());
    Ok(())
}

pub async fn versions_without_a_name_are_counted_and_the_same_is_not_published_twice(rig: &Rig) -> Result<()> {
    let one = rig.package("m", b"one", "")?;
    let two = rig.package("m", b"two", "")?;
    let mut versions = Vec::new();
    for package in [&one, &two, &one] {
        versions.push(rig.registry.publish(package, None, &|_| ()).await?);
    }
    let versions: Vec<_> = versions.iter().map(|published| (published.version.as_str(), published.new)).collect();
    assert_eq!(versions, [("1", true), ("2", true), ("1", false)]);
    assert_eq!(rig.registry.versions(&m()).await?, ["1", "2"]);
    Ok(())
}

pub async fn a_half_uploaded_version_is_not_visible_and_its_upload_goes_on(rig: &Rig) -> Result<()> {
    let package = rig.package("m", b"weights", "")?;
    // The last file is gone when it is to be uploaded: the first is there, and the version is not.
    let manifest = package.path.join("model.toml");
    let text = std::fs::read(&manifest)?;
    std::fs::remove_file(&manifest)?;
    assert!(rig.registry.publish(&package, None, &|_| ()).await.is_err());
    assert!(rig.registry.versions(&m()).await?.is_empty());
    std::fs::write(&manifest, text)?;
    // The file that is there already is not read again.
    std::fs::remove_file(package.path.join("model.pt"))?;
    assert!(rig.registry.publish(&package, None, &|_| ()).await?.new);
    assert_eq!(rig.registry.versions(&m()).await?, ["1"]);
    Ok(())
}

pub async fn of_two_writers_one_gets_a_conflict_that_names_the_other(rig: &Rig) -> Result<()> {
    let package = rig.package("m", b"weights", "")?;
    let first = rig.deploy(&package, None).await?;
    let other = rig.another().await?;
    for round in 0..10 {
        let known = rig.registry.deployed(&m()).await?;
        let one = Change { by: "one".into(), ..change(Action::Start, &first.version) };
        let two = Change { by: "two".into(), ..change(Action::Stop, &first.version) };
        let model = m();
        let (left, right) =
            tokio::join!(rig.registry.append(&model, Some(&known), one), other.append(&model, Some(&known), two));
        let (winner, conflict) = match (left, right) {
            (Ok(winner), Err(conflict)) | (Err(conflict), Ok(winner)) => (winner, conflict),
            both => panic!("round {round}: exactly one should win: {both:?}"),
        };
        assert_eq!(winner.number, known.number + 1);
        assert_eq!(rig.registry.deployed(&m()).await?, winner);
        let text = conflict.to_string();
        assert!(text.contains(&format!("revision {}", winner.number)) && text.contains(&winner.by), "{text}");
    }
    Ok(())
}

pub async fn history_only_grows_and_the_newest_is_the_truth(rig: &Rig) -> Result<()> {
    let package = rig.package("m", b"weights", "")?;
    assert!(matches!(rig.registry.history(&m()).await, Err(RegistryError::NotDeployed(_))));
    let mut expected = vec![rig.deploy(&package, None).await?];
    // Past ten, where numbers as text would change their order.
    for _ in 0..11 {
        let newest = expected.last();
        expected.push(rig.registry.append(&m(), newest, change(Action::Start, "1")).await?);
    }
    assert_eq!(rig.registry.history(&m()).await?, expected);
    assert_eq!(rig.registry.newest(&m()).await?.as_ref(), expected.last());
    let unknown = rig.registry.append(&m(), expected.last(), change(Action::Start, "7")).await.expect_err("unknown");
    assert!(matches!(unknown, RegistryError::NoVersion { .. }), "{unknown}");
    rig.deploy(&rig.package("other", b"weights", "")?, None).await?;
    assert_eq!(rig.registry.models().await?, [m(), "other".parse()?]);
    Ok(())
}

pub async fn a_profile_that_does_not_fit_is_not_written(rig: &Rig) -> Result<()> {
    let package = rig.package("m", b"weights", "[batching]\nmax_rows = 8")?;
    let first = rig.deploy(&package, None).await?;
    let tuned = |text: &str| {
        let profile = Profile::parse(text).expect("a profile");
        Change { profile, ..change(Action::Profile, "1") }
    };
    let refused = rig.registry.append(&m(), Some(&first), tuned("[batching]\nmax_rows = 0")).await.expect_err("zero");
    assert!(refused.to_string().contains("`batching.max_rows`"), "{refused}");
    let second = rig.registry.append(&m(), Some(&first), tuned("[batching]\nmax_rows = 64")).await?;
    let read = rig.registry.deployed(&m()).await?;
    assert_eq!((read.number, &read.profile), (2, &second.profile));
    assert_eq!(rig.registry.effective(&m(), "1", &read.profile).await?.batching.max_rows, 64);
    Ok(())
}

pub async fn a_removed_model_leaves_nothing(rig: &Rig) -> Result<()> {
    let package = rig.package("m", b"weights", "")?;
    rig.deploy(&package, None).await?;
    rig.deploy(&rig.package("m", b"other weights", "")?, None).await?;
    rig.deploy(&rig.package("m2", b"weights", "")?, None).await?;
    rig.registry.remove(&m()).await?;
    assert_eq!(rig.registry.models().await?, ["m2".parse()?], "its namesake stays");
    assert!(rig.registry.versions(&m()).await?.is_empty());
    // It can come back, and begins anew.
    assert_eq!(rig.deploy(&package, None).await?.number, 1);
    let cache = sluice_registry::Cache::open(rig.folder().join("cache"), u64::MAX)?;
    let fetched = cache.package(&rig.registry, &m(), "1").await?;
    assert_eq!(std::fs::read(fetched.folder().join("model.pt"))?, b"weights");
    Ok(())
}

#[test]
fn every_fault_of_a_package_is_reported_at_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    assert!(Folder::read(path).expect_err("empty").to_string().contains("a package is a folder with a model.toml"));
    std::fs::write(
        path.join("model.toml"),
        crate::rig::manifest("m", "[batching]\nmax_rows = 0\n[limits]\nattempts = 0"),
    )?;
    std::os::unix::fs::symlink("/etc/passwd", path.join("link"))?;
    let _socket = std::os::unix::net::UnixListener::bind(path.join("socket"))?;
    std::fs::write(path.join(".hidden"), b"not part of it")?;
    let text = Folder::read(path).expect_err("unfit").to_string();
    for fault in ["`batching.max_rows`", "`limits.attempts`", "`link` is a symbolic link", "`socket` is a device"] {
        assert!(text.contains(fault), "{fault} is not in {text}");
    }
    std::fs::write(path.join("model.toml"), crate::rig::manifest("m", ""))?;
    std::fs::remove_file(path.join("link"))?;
    std::fs::remove_file(path.join("socket"))?;
    let text = Folder::read(path).expect_err("no file").to_string();
    assert!(text.contains("`file` names `model.pt`, which is not in the folder"), "{text}");
    Ok(())
}

#[test]
fn a_model_file_that_grows_without_measure_is_refused() -> Result<()> {
    use std::io::Write;
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("model.toml"), crate::rig::manifest("m", ""))?;
    let mut archive = zip::ZipWriter::new(std::fs::File::create(folder.path().join("model.pt"))?);
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    archive.start_file("m/data/0", options)?;
    for _ in 0..80 {
        archive.write_all(&vec![0; 1 << 20])?;
    }
    archive.finish()?;
    let text = Folder::read(folder.path()).expect_err("a bomb").to_string();
    assert!(text.contains("bomb"), "{text}");
    Ok(())
}
