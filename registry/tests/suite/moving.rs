//! What is moved as a whole.

use std::fs::File;
use std::io::Read;
use std::path::Path;
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

pub async fn an_archive_brings_nothing_that_its_index_does_not_name(rig: &Rig) -> Result<()> {
    let model: ModelName = "m".parse()?;
    rig.deploy(&rig.package("m", b"weights", "")?, None).await?;
    let sound = rig.folder().join("backup.tar");
    export(&rig.registry, std::slice::from_ref(&model), &sound, &|_| ()).await?;
    rig.registry.remove(&model).await?;
    let hostile = rig.folder().join("hostile.tar");
    let keep = |text: String| text;
    // The version would become a folder on hosts.
    let escaping = |text: String| text.replace("models.m.versions.1", "models.m.versions.\"../x\"");
    // A checksum is a part of a path, too.
    let climbing = |text: String| text.replace("sha256 = \"", "sha256 = \"../../");
    let anothers = |text: String| text.replace("name = \"m\"", "name = \"n\"");
    // The index is what the limit is held against.
    let larger = |text: String| text.replace("size = 7", "size = 6");
    for (index, added, word) in [
        (&escaping as &dyn Fn(String) -> String, None, "`../x` is not a version"),
        (&climbing, None, "which is none"),
        (&anothers, None, "its model.toml is that of model `n`"),
        (&larger, None, "has 7 bytes; the index says 6"),
        (&keep, Some("blobs/m/other"), "entry `blobs/m/other` is not in the index"),
        (&keep, Some("index.toml"), "entry `index.toml` is not in the index"),
    ] {
        rewrite(&sound, &hostile, index, added)?;
        let text = import(&rig.registry, &hostile, LARGEST, &|_| ()).await.expect_err(word).to_string();
        assert!(text.contains(word), "{text}");
        assert!(rig.registry.models().await?.is_empty());
    }
    // What is not hostile survives the same way.
    rewrite(&sound, &hostile, keep, None)?;
    assert_eq!(import(&rig.registry, &hostile, LARGEST, &|_| ()).await?, [model]);
    Ok(())
}

/// The same archive with another index, and with one entry more.
fn rewrite(from: &Path, to: &Path, index: impl Fn(String) -> String, added: Option<&str>) -> Result<()> {
    let mut builder = tar::Builder::new(File::create(to)?);
    let mut append = |path: &Path, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content)
    };
    for entry in tar::Archive::new(File::open(from)?).entries()? {
        let mut entry = entry?;
        let (path, mut content) = (entry.path()?.into_owned(), Vec::new());
        entry.read_to_end(&mut content)?;
        if path == Path::new("index.toml") {
            content = index(String::from_utf8(content)?).into_bytes();
        }
        append(&path, &content)?;
    }
    if let Some(path) = added {
        append(Path::new(path), b"more")?;
    }
    Ok(builder.finish()?)
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
