//! A host's copies.

use std::time::Duration;

use anyhow::Result;
use sluice_core::ModelName;
use sluice_registry::Cache;

use crate::rig::{Kind, Rig};

fn m() -> ModelName {
    "m".parse().expect("a name")
}

pub async fn a_package_is_fetched_once_and_a_damaged_copy_again(rig: &Rig) -> Result<()> {
    rig.registry.publish(&rig.package("m", b"weights", "")?, None, &|_| ()).await?;
    let cache = Cache::open(rig.folder().join("cache"), u64::MAX)?;
    let folder = cache.package(&rig.registry, &m(), "1").await?;
    let file = folder.folder().join("model.pt");
    assert_eq!(std::fs::read(&file)?, b"weights");
    let fetched = std::fs::metadata(&file)?.modified()?;
    cache.package(&rig.registry, &m(), "1").await?;
    assert_eq!(std::fs::metadata(&file)?.modified()?, fetched, "not fetched again");
    std::fs::write(&file, b"weightz")?;
    cache.package(&rig.registry, &m(), "1").await?;
    assert_eq!(std::fs::read(&file)?, b"weights");
    Ok(())
}

pub async fn what_is_damaged_in_the_registry_is_an_error_that_names_the_file(rig: &Rig) -> Result<()> {
    let package = rig.package("m", b"weights", "")?;
    let file = package.path.join("model.pt");
    // A file that changes while it is uploaded is noticed.
    std::fs::write(&file, b"weightz")?;
    let text = rig.registry.publish(&package, None, &|_| ()).await.expect_err("changed").to_string();
    assert!(text.contains("`model.pt` changed while it was uploaded"), "{text}");
    std::fs::write(&file, b"weights")?;
    rig.registry.publish(&package, None, &|_| ()).await?;
    std::fs::write(&file, b"weightz")?;
    let weights = package.files.iter().find(|file| file.path == "model.pt").expect("the weights");
    rig.registry.store().upload(&format!("blobs/m/{}", weights.sha256), &file, &|_| ()).await?;
    let cache = Cache::open(rig.folder().join("cache"), u64::MAX)?;
    let text = cache.package(&rig.registry, &m(), "1").await.expect_err("damaged").to_string();
    assert!(text.contains("file `model.pt` of model `m` version `1` is damaged"), "{text}");
    assert!(!rig.folder().join("cache/m/1/model.pt").exists());
    Ok(())
}

pub async fn the_least_recently_used_goes_first(rig: &Rig) -> Result<()> {
    for version in ["1", "2", "3"] {
        let weights = version.repeat(10_000);
        rig.registry.publish(&rig.package("m", weights.as_bytes(), "")?, Some(version), &|_| ()).await?;
    }
    let cache = Cache::open(rig.folder().join("cache"), 25_000)?;
    // Version 1 is used again before the third comes: the second goes.
    for version in ["1", "2", "1", "3"] {
        cache.package(&rig.registry, &m(), version).await?;
        // File systems tell times by some milliseconds.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let there = |version: &str| rig.folder().join("cache/m").join(version).exists();
    assert_eq!([there("1"), there("2"), there("3")], [true, false, true]);
    // A copy serves while the registry is away.
    if rig.kind == Kind::Folder {
        let moved = rig.folder().join("moved");
        std::fs::rename(rig.folder().join("registry"), &moved)?;
        std::fs::write(rig.folder().join("registry"), b"not a folder")?;
        cache.package(&rig.registry, &m(), "3").await?;
        assert!(cache.package(&rig.registry, &m(), "2").await.is_err());
    }
    Ok(())
}
