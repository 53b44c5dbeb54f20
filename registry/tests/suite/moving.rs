//! What is moved as a whole.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use sluice_core::ModelName;
use sluice_registry::{Action, Cache, Location, export, import, open};

use crate::rig::{Rig, change};

const LARGEST: u64 = 1 << 30;

pub async fn an_archive_brings_back_versions_and_history(rig: &Rig) -> Result<()> {
    let model: ModelName = "m".parse()?;
    rig.deploy(&rig.package("m", b"one", "")?, None).await?;
    let second = rig.deploy(&rig.package("m", b"two", "")?, None).await?;
    rig.registry.append(&model, Some(&second), change(Action::Rollback, "1")).await?;
    let archive = rig.folder().join("backup.tar");
    export(&rig.registry, std::slice::from_ref(&model), &archive, &|_| ()).await?;

    let occupied = import(&rig.registry, &archive, LARGEST, &|_| ()).await.expect_err("it is there").to_string();
    assert!(occupied.contains("model `m` is deployed already"), "{occupied}");
    let history = rig.registry.history(&model).await?;
    let contents = rig.registry.contents(&model, "2").await?;
    rig.registry.remove(&model).await?;
    assert_eq!(import(&rig.registry, &archive, LARGEST, &|_| ()).await?, std::slice::from_ref(&model));
    assert_eq!(rig.registry.history(&model).await?, history);
    assert_eq!(rig.registry.contents(&model, "2").await?, contents);
    let cache = Cache::open(rig.folder().join("cache"), u64::MAX)?;
    assert_eq!(std::fs::read(cache.package(&rig.registry, &model, "2").await?.folder().join("model.pt"))?, b"two");

    // A flipped byte of a file, and an archive that was cut short, change nothing.
    let whole = std::fs::read(&archive)?;
    let at = whole.windows(3).rposition(|bytes| bytes == b"two").expect("the weights");
    let mut damaged = whole.clone();
    damaged[at] = b'T';
    let elsewhere = Location::new(format!("file://{}/elsewhere", rig.folder().display()));
    let elsewhere = open(&elsewhere, &Default::default()).await?;
    // A path that leads out of a package, on whatever host fetches it.
    let path = replaced(whole.clone(), b"path = \"model.pt\"", b"path = \"../el.pt\"");
    // A revision's version becomes a folder there.
    let version =
        replaced(whole.clone(), b"\nversion = \"1\"\nstarted = true\n", b"\nversion=\"../x\"\nstarted=true\n");
    for (escaping, word) in [(path, "`../el.pt` is not a plain path"), (version, "version `../x`")] {
        std::fs::write(&archive, escaping)?;
        let text = import(&elsewhere, &archive, LARGEST, &|_| ()).await.expect_err("a refusal").to_string();
        assert!(text.contains(word), "{text}");
    }
    std::fs::write(&archive, &whole)?;
    let text = import(&elsewhere, &archive, 100, &|_| ()).await.expect_err("a refusal").to_string();
    assert!(text.contains("more than the 100 that are allowed: --largest"), "{text}");
    for (bytes, word) in [(&damaged[..], "is damaged"), (&whole[..at - 512], "is missing")] {
        std::fs::write(&archive, bytes)?;
        let text = import(&elsewhere, &archive, LARGEST, &|_| ()).await.expect_err("a refusal").to_string();
        assert!(text.contains(word), "{text}");
        assert!(elsewhere.models().await?.is_empty());
    }
    Ok(())
}

/// Larger than a part of any upload.
pub async fn a_large_file_arrives_whole(rig: &Rig) -> Result<()> {
    let weights: Vec<u8> = (0..40_000_000_u64).map(|at| ((at * at) >> 7) as u8).collect();
    let package = rig.package("m", &weights, "")?;
    let moved = AtomicU64::new(0);
    rig.registry.publish(&package, None, &|bytes| _ = moved.fetch_add(bytes, Ordering::Relaxed)).await?;
    let total: u64 = package.files.iter().map(|file| file.size).sum();
    assert_eq!(moved.load(Ordering::Relaxed), total, "progress tells all of it");
    let cache = Cache::open(rig.folder().join("cache"), u64::MAX)?;
    let folder = cache.package(&rig.registry, &"m".parse()?, "1").await?;
    assert!(std::fs::read(folder.folder().join("model.pt"))? == weights);
    Ok(())
}

/// Every occurrence replaced by what is as long.
fn replaced(mut bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    while let Some(at) = bytes.windows(from.len()).position(|window| window == from) {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    bytes
}
