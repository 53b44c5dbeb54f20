//! The profile: what a person tunes of a model while it is deployed. It goes over the manifest's own values, so that a new
//! version brings its new defaults and keeps what was tuned.

use std::fmt;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::{Manifest, ManifestError, check};

/// The manifest's sections that can be tuned; the others say what the model is.
const SECTIONS: [&str; 5] = ["batching", "limits", "resources", "serving", "scaling"];

/// Values that go over a manifest's, by section and key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Profile(Table);

/// A setting that there is not.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no setting `{given}`; there are {known}")]
pub struct UnknownSetting {
    given: String,
    known: String,
}

/// One setting of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// `batching.max_rows`.
    pub key: String,
    /// As TOML.
    pub value: String,
    /// Whether the profile says so, and not the manifest.
    pub tuned: bool,
}

impl Profile {
    /// Whether nothing was tuned.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads a profile that a person wrote as TOML. What it says is checked when it is applied.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let table: Table = toml::from_str(text).map_err(ManifestError::syntax)?;
        match table.keys().find(|section| !SECTIONS.contains(&section.as_str())) {
            Some(other) => Err(ManifestError::new(vec![format!(
                "`{other}` cannot be tuned: a profile has the sections {}",
                SECTIONS.join(", ")
            )])),
            None => Ok(Self(table.into_iter().filter(|(_, values)| !is_empty(values)).collect())),
        }
    }

    /// Sets a value, written as in TOML or as bare text; `None` returns to the manifest's.
    pub fn set(&mut self, key: &str, value: Option<&str>, manifest: &Manifest) -> Result<(), UnknownSetting> {
        let unknown = || UnknownSetting {
            given: key.chars().take(80).collect(),
            known: settings(manifest).iter().map(|(key, _)| format!("`{key}`")).collect::<Vec<_>>().join(", "),
        };
        let (section, name) = key.split_once('.').ok_or_else(unknown)?;
        if !settings(manifest).iter().any(|(known, _)| known == key) {
            return Err(unknown());
        }
        match value {
            Some(text) => {
                let parsed = toml::from_str::<Table>(&format!("value = {text}"));
                let value = parsed.ok().and_then(|mut table| table.remove("value"));
                let entry = self.0.entry(section.to_owned()).or_insert_with(|| Value::Table(Table::new()));
                if let Value::Table(section) = entry {
                    section.insert(name.to_owned(), value.unwrap_or_else(|| Value::String(text.to_owned())));
                }
            }
            None => {
                if let Some(Value::Table(table)) = self.0.get_mut(section) {
                    table.remove(name);
                    if table.is_empty() {
                        self.0.remove(section);
                    }
                }
            }
        }
        Ok(())
    }

    /// The manifest with these values in place of its own, checked.
    pub fn apply(&self, manifest: &Manifest) -> Result<Manifest, ManifestError> {
        let mut whole = as_table(manifest);
        for (section, values) in &self.0 {
            let (Some(Value::Table(own)), Value::Table(values)) = (whole.get_mut(section), values) else {
                return Err(ManifestError::new(vec![format!("`{section}` is not a section of a profile")]));
            };
            own.extend(values.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        let text = toml::to_string(&whole).map_err(|error| ManifestError::new(vec![error.to_string()]))?;
        let tuned: Manifest = toml::from_str(&text).map_err(|error| ManifestError::new(vec![self.explain(&error)]))?;
        check::check(&tuned)?;
        Ok(tuned)
    }

    /// Every setting of a model with this manifest, in the manifest's order.
    pub fn settings(&self, manifest: &Manifest) -> Vec<Setting> {
        let tuned = |key: &str| {
            let (section, name) = key.split_once('.')?;
            self.0.get(section)?.get(name).cloned()
        };
        let setting = |(key, value): (String, Value)| match tuned(&key) {
            Some(value) => Setting { key, value: value.to_string(), tuned: true },
            None => Setting { key, value: value.to_string(), tuned: false },
        };
        settings(manifest).into_iter().map(setting).collect()
    }

    /// The place in a text that nobody has seen would help nobody: the values are named instead.
    fn explain(&self, error: &toml::de::Error) -> String {
        format!("{} (tuned are: {self})", error.message().trim_end())
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.0.iter().flat_map(|(section, values)| {
            let values = values.as_table().into_iter().flatten();
            values.map(move |(key, value)| format!("{section}.{key}={value}"))
        });
        formatter.write_str(&values.collect::<Vec<_>>().join(", "))
    }
}

/// A section in which everything is a comment says nothing.
fn is_empty(section: &Value) -> bool {
    section.as_table().is_some_and(Table::is_empty)
}

fn as_table(manifest: &Manifest) -> Table {
    Table::try_from(manifest).expect("a manifest consists of what TOML can say")
}

fn settings(manifest: &Manifest) -> Vec<(String, Value)> {
    let mut whole = as_table(manifest);
    let sections = SECTIONS.iter().filter_map(|section| Some((*section, whole.remove(*section)?)));
    let mut settings = Vec::new();
    for (section, values) in sections {
        if let Value::Table(values) = values {
            settings.extend(values.into_iter().map(|(key, value)| (format!("{section}.{key}"), value)));
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn manifest() -> Manifest {
        Manifest::parse(
            r#"
            name = "m"
            engine = "torchscript"
            file = "model.pt"
            inputs = [{ name = "x", datatype = "FP32", shape = [-1, 4] }]
            outputs = [{ name = "y", datatype = "FP32", shape = [-1, 4] }]
            [batching]
            max_rows = 16
            "#,
        )
        .expect("a manifest")
    }

    fn tuned(values: &[(&str, &str)]) -> Profile {
        let mut profile = Profile::default();
        for (key, value) in values {
            profile.set(key, Some(value), &manifest()).expect("a known setting");
        }
        profile
    }

    #[test]
    fn tuned_values_go_over_the_manifests_and_the_others_stay() {
        let profile = tuned(&[("batching.max_delay", "5ms"), ("limits.attempts", "7")]);
        let applied = profile.apply(&manifest()).expect("applies");
        assert_eq!(applied.batching.max_delay, Duration::from_millis(5));
        assert_eq!((applied.limits.attempts, applied.batching.max_rows), (7, 16));
        let settings = profile.settings(&manifest());
        let attempts = settings.iter().find(|setting| setting.key == "limits.attempts").expect("is there");
        assert_eq!((attempts.value.as_str(), attempts.tuned), ("7", true));
        assert!(settings.iter().any(|setting| setting.key == "batching.max_rows" && !setting.tuned));
    }

    #[test]
    fn a_value_can_be_taken_back() {
        let mut profile = tuned(&[("limits.attempts", "7")]);
        profile.set("limits.attempts", None, &manifest()).expect("a known setting");
        assert!(profile.is_empty());
    }

    #[test]
    fn what_there_is_not_and_what_cannot_be_is_refused_by_name() {
        let unknown = Profile::default().set("batching.max_row", Some("1"), &manifest()).expect_err("unknown");
        assert!(unknown.to_string().contains("`batching.max_rows`"), "{unknown}");
        assert!(Profile::default().set("name", Some("x"), &manifest()).is_err());
        let zero = tuned(&[("batching.max_rows", "0")]).apply(&manifest()).expect_err("zero rows");
        assert!(zero.to_string().contains("`batching.max_rows` must be greater than 0"), "{zero}");
        let text = tuned(&[("limits.attempts", "many")]).apply(&manifest()).expect_err("not a number");
        assert!(text.to_string().contains("limits.attempts=\"many\""), "{text}");
        assert!(Profile::parse("[inputs]\nx = 1").is_err());
        assert!(Profile::parse("[batching]\n# max_rows = 1\n[limits]").expect("nothing is tuned").is_empty());
    }

    #[test]
    fn a_profile_survives_being_written() {
        let profile = tuned(&[("batching.max_delay", "5ms"), ("batching.max_rows", "64")]);
        let text = toml::to_string(&profile).expect("writes");
        assert_eq!(Profile::parse(&text).expect("reads"), profile);
    }
}
