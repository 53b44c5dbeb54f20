//! What a manifest must keep beyond its syntax. Every fault is reported, with its key.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use super::{DeviceKind, Dimension, Manifest, TensorSpec};

/// A `model.toml` that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}", .faults.join("\n"))]
pub struct ManifestError {
    faults: Vec<String>,
}

impl ManifestError {
    pub(super) fn new(faults: Vec<String>) -> Self {
        Self { faults }
    }

    pub(super) fn syntax(error: toml::de::Error) -> Self {
        Self { faults: vec![error.to_string().trim_end().to_owned()] }
    }

    /// Each fault with its key.
    pub fn faults(&self) -> &[String] {
        &self.faults
    }
}

/// What [`is_version`] asks for.
pub const VERSION_RULE: &str = "a version is 1 to 64 of A-Z, a-z, 0-9, ., _ and -, and begins with a letter or a digit";

/// Whether a text can be a version: it stands in keys, headers and file names.
pub fn is_version(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        && text.as_bytes()[0].is_ascii_alphanumeric()
}

pub(super) fn check(manifest: &Manifest) -> Result<(), ManifestError> {
    let mut faults = Vec::new();
    let mut fault = |key: &str, reason: String| faults.push(format!("`{key}` {reason}"));
    let file = Path::new(&manifest.file);
    if manifest.file.is_empty() || !file.components().all(|part| matches!(part, Component::Normal(_))) {
        fault("file", format!("is `{}`: it must be a path inside the package", manifest.file));
    }
    if !is_version(&manifest.version) {
        fault("version", format!("is `{}`: {VERSION_RULE}", manifest.version));
    }
    let mut known = BTreeSet::new();
    for (key, specs) in [("inputs", &manifest.inputs), ("outputs", &manifest.outputs)] {
        if specs.is_empty() {
            fault(key, "is empty: a model has at least one".into());
        }
        let mut names = BTreeSet::new();
        for (index, spec) in specs.iter().enumerate() {
            let key = format!("{key}[{index}]");
            if spec.name.is_empty() || !names.insert(&spec.name) {
                fault(&key, format!("has the name `{}`: names must be there, and each only once", spec.name));
            }
            check_shape(&format!("{key}.shape"), spec, &mut fault);
        }
        if key == "inputs" {
            known = specs.iter().flat_map(|spec| spec.shape.iter().filter_map(Dimension::name)).collect();
        }
    }
    for (name, padding) in &manifest.padding {
        if !known.contains(name.as_str()) {
            fault(&format!("padding.{name}"), "names no dimension of an input".into());
        }
        if padding.multiple_of == 0 {
            fault(&format!("padding.{name}.multiple_of"), "must be at least 1".into());
        }
    }
    for (name, sizes) in &manifest.sizes {
        if !known.contains(name.as_str()) {
            fault(&format!("sizes.{name}"), "names no dimension of an input".into());
        }
        if sizes.smallest < 1 {
            fault(&format!("sizes.{name}.smallest"), "must be at least 1".into());
        }
        if let Some(example) = sizes.example.filter(|example| *example < sizes.smallest.max(1)) {
            let reason = format!("is {example}: less than the smallest, {}", sizes.smallest.max(1));
            fault(&format!("sizes.{name}.example"), reason);
        }
    }
    let positive = [
        ("batching.max_rows", manifest.batching.max_rows as u64),
        ("limits.queue_length", manifest.limits.queue_length),
        ("limits.body_bytes", manifest.limits.body_bytes),
        ("limits.attempts", u64::from(manifest.limits.attempts)),
        ("limits.batch_time", manifest.limits.batch_time.as_millis() as u64),
        ("resources.threads", manifest.resources.threads as u64),
    ];
    for (key, value) in positive {
        if value == 0 {
            fault(key, "must be greater than 0".into());
        }
    }
    if manifest.resources.device == DeviceKind::Cpu && manifest.resources.threads > 1024 {
        fault("resources.threads", format!("is {}: no host has as many processors", manifest.resources.threads));
    }
    manifest.scaling.check(&mut fault);
    if faults.is_empty() { Ok(()) } else { Err(ManifestError { faults }) }
}

fn check_shape(key: &str, spec: &TensorSpec, fault: &mut impl FnMut(&str, String)) {
    if spec.shape.first() != Some(&Dimension::Size(-1)) {
        fault(key, "must begin with -1, the rows".into());
    }
    for dimension in spec.shape.iter().skip(1) {
        match dimension {
            Dimension::Size(size) if *size < 1 => {
                fault(key, format!("holds {size}: a size that varies has a name instead, such as \"tokens\""));
            }
            Dimension::Named(name) if name.is_empty() => fault(key, "holds an empty name".into()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Manifest;

    const GOOD: &str = r#"
        name = "bert"
        engine = "torchscript"
        file = "model.pt"
        inputs = [{ name = "ids", datatype = "INT64", shape = [-1, "tokens"] }]
        outputs = [{ name = "embedding", datatype = "FP32", shape = [-1, 384] }]
        [padding]
        tokens = { value = 0, multiple_of = 8 }
        [batching]
        max_delay = "2ms"
    "#;

    #[test]
    fn a_manifest_needs_little_and_the_rest_has_defaults() {
        let manifest = Manifest::parse(GOOD).expect("a good manifest");
        assert_eq!(manifest.batching.max_delay.as_millis(), 2);
        assert_eq!(manifest.batching.max_rows, 32);
        assert_eq!(manifest.inputs[0].signature(), "INT64 [-1, tokens]");
        assert!(manifest.inputs[0].fits(&[7, 12]));
        assert!(!manifest.inputs[0].fits(&[7]));
        assert!(!manifest.outputs[0].fits(&[7, 12]));
    }

    #[test]
    fn all_faults_are_reported_at_once_with_their_keys() {
        let bad = GOOD
            .replace("model.pt", "../model.pt")
            .replace("[-1, 384]", "[384, -1]")
            .replace("tokens = { value = 0, multiple_of = 8 }", "words = { multiple_of = 0 }")
            .replace("max_delay = \"2ms\"", "max_rows = 0")
            + "[sizes]\nwords = { smallest = 9, example = 8 }\ntokens = { smallest = 0 }\n";
        let error = Manifest::parse(&bad).expect_err("a bad manifest");
        for key in [
            "`file`",
            "`outputs[0].shape`",
            "`padding.words`",
            "`padding.words.multiple_of`",
            "`sizes.words` names",
            "`sizes.words.example` is 8",
            "`sizes.tokens.smallest`",
            "`batching.max_rows`",
        ] {
            assert!(error.faults().iter().any(|fault| fault.starts_with(key)), "{key} is not in {error}");
        }
    }

    #[test]
    fn a_size_is_the_example_or_no_less_than_is_needed() {
        let of = |more: &str| {
            let manifest = Manifest::parse(&format!("{GOOD}{more}")).expect("a good manifest");
            (manifest.example_size("tokens"), manifest.smallest_size("tokens"))
        };
        assert_eq!(of(""), (8, 1));
        assert_eq!(of("[sizes]\ntokens = { smallest = 400 }"), (400, 400));
        assert_eq!(of("[sizes]\ntokens = { smallest = 2, example = 128 }"), (128, 2));
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = Manifest::parse(&GOOD.replace("max_delay", "max_dealy")).expect_err("a typing error");
        assert!(error.to_string().contains("max_dealy"), "{error}");
    }
}
