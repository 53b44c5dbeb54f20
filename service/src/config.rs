//! Configuration: environment `SLUICE_SECTION__KEY` over the file over defaults. Unknown keys are refused, and all
//! of them are reported at once with their paths.

use std::path::{Path, PathBuf};

use config::{Config, Environment, File, FileFormat};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sluice_core::shown;
use toml::Value;

/// What a deployment's file may hold; each binary reads what it knows of them.
const SECTIONS: [&str; 5] = ["broker", "registry", "worker", "scaler", "gateway"];

/// Configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{source_name}: {}", .faults.join("\n  "))]
pub struct ConfigError {
    source_name: String,
    faults: Vec<String>,
}

impl ConfigError {
    /// Faults found by a later check, each with its key's path.
    pub fn new(source_name: impl Into<String>, faults: Vec<String>) -> Self {
        Self { source_name: source_name.into(), faults }
    }
}

/// How a binary is told its configuration.
#[derive(clap::Args)]
pub struct Choice {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only check the configuration
    #[arg(long)]
    check_config: bool,
    /// Show the configuration as it is used, with secrets masked
    #[arg(long)]
    print_config: bool,
}

impl Choice {
    /// Reads and checks it; `None` if that was all that was asked for.
    pub fn load<T>(&self, check: impl FnOnce(&T) -> Result<(), ConfigError>) -> Result<Option<T>, ConfigError>
    where
        T: DeserializeOwned + Serialize,
    {
        let config = load(self.config.as_deref())?;
        check(&config)?;
        if self.print_config {
            print!("{}", show(&config));
        }
        Ok((!self.check_config && !self.print_config).then_some(config))
    }
}

/// Reads `file`, if given, and the environment.
pub fn load<T: DeserializeOwned>(file: Option<&Path>) -> Result<T, ConfigError> {
    load_with(
        file,
        std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?))),
    )
}

fn load_with<T: DeserializeOwned>(
    file: Option<&Path>,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<T, ConfigError> {
    let source_name = file.map_or_else(|| "configuration".into(), |file| format!("configuration `{}`", file.display()));
    let refuse = |faults: Vec<String>| ConfigError { source_name: source_name.clone(), faults };
    let mut builder = Config::builder();
    if let Some(file) = file {
        let text = std::fs::read_to_string(file).map_err(|error| refuse(vec![error.to_string()]))?;
        builder = builder.add_source(File::from_str(&text, FileFormat::Toml));
    }
    // SLUICE_WORKER__HOST is `worker.host`; without a section they are not configuration: SLUICE_BROKER is the command line's.
    let variables = variables.into_iter().filter(|(key, _)| key.contains("__")).collect();
    let environment = Environment::with_prefix("SLUICE").source(Some(variables));
    let environment = environment.prefix_separator("_").separator("__").try_parsing(true).ignore_empty(true);
    let merged = builder.add_source(environment).build().map_err(|error| refuse(vec![error.to_string()]))?;
    let mut unknown = Vec::new();
    let parsed = serde_ignored::deserialize(merged, |path| {
        let path = path.to_string();
        // A section of another binary: a deployment has one file.
        if SECTIONS.contains(&path.as_str()) {
            return;
        }
        unknown.push(format!("unknown key `{path}`"));
    });
    match parsed {
        Ok(parsed) if unknown.is_empty() => Ok(parsed),
        Ok(_) => Err(refuse(unknown)),
        Err(error) => {
            unknown.push(error.to_string());
            Err(refuse(unknown))
        }
    }
}

/// The configuration as TOML, with secrets masked.
pub fn show(config: &impl Serialize) -> String {
    let shown = toml::Table::try_from(config).and_then(|table| {
        let table: toml::Table = table.into_iter().map(|(key, value)| mask(vec![key], value)).collect();
        toml::to_string_pretty(&table)
    });
    shown.unwrap_or_else(|error| format!("# cannot be shown: {error}\n"))
}

/// The last key of `path`, and its value as people may see it.
fn mask(path: Vec<String>, value: Value) -> (String, Value) {
    let keys: Vec<&str> = path.iter().map(String::as_str).collect();
    let shown = match (&keys[..], value) {
        (_, Value::Table(table)) => {
            let entries = table.into_iter().map(|(key, value)| mask([path.clone(), vec![key]].concat(), value));
            Value::Table(entries.collect())
        }
        // Of a command its program; among its arguments there may be anything.
        (["scaler", "when_short"], Value::Array(words)) => {
            let program = words.first().cloned();
            program.into_iter().chain(words.iter().skip(1).map(|_| shown::MASK.into())).collect::<Vec<_>>().into()
        }
        (_, Value::Array(values)) => {
            values.into_iter().map(|value| mask(path.clone(), value).1).collect::<Vec<_>>().into()
        }
        (["registry", "options", name], value) => {
            // Whoever wrote a number meant it as text.
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            shown::option(name, &text).into_owned().into()
        }
        ([.., "url" | "management"], Value::String(text)) => shown::url(&text).into(),
        (_, Value::String(text)) if text.contains("://") => shown::url(&text).into(),
        (_, value) => value,
    };
    (path.last().cloned().unwrap_or_default(), shown)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, Serialize, PartialEq)]
    struct Whole {
        #[serde(default)]
        worker: Section,
    }

    #[derive(Debug, Deserialize, Serialize, PartialEq, Default)]
    #[serde(default)]
    struct Section {
        host: String,
        slots: usize,
        url: String,
    }

    fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Whole, ConfigError> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("worker.toml");
        std::fs::write(&file, text).expect("written");
        load_with(Some(&file), variables.iter().map(|(key, value)| (key.to_string(), value.to_string())))
    }

    #[test]
    fn the_environment_goes_over_the_file() {
        let text = "[worker]\nhost = 'a'\nslots = 2";
        assert_eq!(parse(text, &[]).expect("parses").worker.slots, 2);
        let whole = parse(text, &[("SLUICE_WORKER__SLOTS", "5")]).expect("parses");
        assert_eq!((whole.worker.host.as_str(), whole.worker.slots), ("a", 5));
        // What the command line is told by does not disturb the others.
        assert_eq!(
            parse(text, &[("SLUICE_WORKER", "nats://a"), ("SLUICE_CACHE", "/c")]).expect("parses").worker.slots,
            2
        );
    }

    #[test]
    fn all_unknown_keys_are_named_with_their_paths() {
        let error = parse("[worker]\nhots = 'a'\nslot = 2\n[wroker]\nx = 1", &[]).expect_err("typing errors");
        for key in ["`worker.hots`", "`worker.slot`", "`wroker`"] {
            assert!(error.to_string().contains(key), "{key} is not in: {error}");
        }
    }

    #[test]
    fn a_wrong_type_names_its_key() {
        let error = parse("[worker]\nslots = 'many'", &[]).expect_err("not a number");
        assert!(error.to_string().contains("worker.slots") && error.to_string().contains("many"), "{error}");
    }

    #[test]
    fn secrets_are_masked() {
        let text = r#"
            [broker]
            url = "nats://hush1@h1:4222,nats://hush2@h2:4222"
            management = "https://user:hush3@host:15671"
            credentials = "/etc/sluice/worker.creds"
            [registry]
            url = "s3://key:hush4@bucket/x"
            [registry.options]
            azure_storage_account_key = "hush5"
            google_service_account_key = '{"private_key": "hush6"}'
            aws_secret_access_key = """hush7
            hush8"""
            aws_region = "here"
            [scaler]
            when_short = ["/opt/grow", "--token", "hush9"]
            groups = [{ name = "a", weight = 1.0 }]
            [worker]
            labels = { page = "http://user:hush10@host", zone = "a" }
        "#;
        let config: toml::Table = text.parse().expect("it parses");
        let shown = show(&config);
        assert!(!shown.contains("hush"), "{shown}");
        let shown: toml::Table = shown.parse().expect("it can be read again");
        for (section, key, value) in [
            ("broker", "url", "nats://***@h1:4222,nats://***@h2:4222"),
            ("broker", "management", "https://user:***@host:15671/"),
            ("broker", "credentials", "/etc/sluice/worker.creds"),
            ("registry", "url", "s3://key:***@bucket/x"),
        ] {
            assert_eq!(shown[section][key].as_str(), Some(value), "{section}.{key}");
        }
        assert_eq!(shown["registry"]["options"]["aws_region"].as_str(), Some("here"));
        assert_eq!(shown["scaler"]["when_short"][0].as_str(), Some("/opt/grow"));
        assert_eq!(shown["scaler"]["groups"], config["scaler"]["groups"]);
        assert_eq!(shown["worker"]["labels"]["zone"].as_str(), Some("a"));
    }
}
