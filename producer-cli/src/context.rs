//! What a command runs with: the configuration file, which the services share, under what flags and the environment say.
//! `sluice context` shows it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sluice_broker::Options;
use sluice_registry::Location;
use sluice_service::config;

use crate::cli::{Context, Global};
use crate::common;

/// What of the file concerns this program.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Configured {
    pub broker: Options,
    pub registry: Location,
    /// Where it was read, if there is a file.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

impl Configured {
    /// Reads the file that is named, else the user's own if there is one; and the environment's `SLUICE_SECTION__KEY`.
    pub fn read(named: Option<PathBuf>) -> Result<Self> {
        let file = named.or_else(|| users_file().filter(|file| file.is_file()));
        let read: Self = config::load(file.as_deref())?;
        Ok(Self { file, ..read })
    }
}

/// `sluice.toml` in the user's configuration folder.
fn users_file() -> Option<PathBuf> {
    let folder = std::env::var_os("XDG_CONFIG_HOME").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".config"));
    Some(folder.or_else(home)?.join("sluice.toml"))
}

impl Global {
    /// How to reach the broker.
    pub fn options(&self) -> Options {
        let broker = self.configured.broker.clone();
        Options {
            url: self.broker.clone().unwrap_or(broker.url),
            name: "sluice (command line)".into(),
            management: self.management.clone().or(broker.management),
            credentials: self.credentials.clone().or(broker.credentials),
            tls_ca: self.tls_ca.clone().or(broker.tls_ca),
            ..broker
        }
    }

    /// Where models are kept. `named` is what the command's own option says.
    pub fn registry(&self, named: Option<&str>) -> Location {
        let registry = self.configured.registry.clone();
        Location { url: named.map_or(registry.url, str::to_owned), ..registry }
    }
}

pub fn show(global: &Global, options: &Context) -> Result<ExitCode> {
    let (broker, registry) = (global.options(), global.registry(options.registry.as_deref()));
    let file = global.configured.file.as_deref();
    if options.json {
        let shown = json!({ "config": file, "broker": broker.shown_url(), "registry": registry.shown_url() });
        println!("{shown}");
        return Ok(ExitCode::SUCCESS);
    }
    let from = |flag: bool, name: &str, configured: bool| match (flag, configured) {
        (true, _) => format!("as {name} says"),
        (false, true) => "as the configuration says".into(),
        (false, false) => "by default".into(),
    };
    match (file, users_file()) {
        (Some(file), _) => println!("configuration  {}", file.display()),
        (None, Some(file)) => println!("configuration  none (`{}` is not there)", file.display()),
        (None, None) => println!("configuration  none"),
    }
    let configured = global.configured.broker.url != Options::default().url;
    let source = from(global.broker.is_some(), "--broker or SLUICE_BROKER", configured);
    println!("broker         {} ({source})", common::plain(&broker.shown_url()));
    let source = from(options.registry.is_some(), "--registry or SLUICE_REGISTRY", !registry.url.is_empty());
    let url = if registry.url.is_empty() { "the broker's own store".into() } else { registry.shown_url() };
    println!("registry       {} ({source})", common::plain(&url));
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Arguments;
    use clap::Parser;

    fn global(arguments: &[&str]) -> Global {
        let all = ["sluice"].iter().chain(arguments).chain(&["context"]);
        Arguments::try_parse_from(all).expect("it parses").global
    }

    #[test]
    fn flags_go_over_the_file_which_is_the_services_own() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("sluice.toml");
        let text = "[broker]\nurl = 'nats://file:1'\ntls_ca = '/ca.pem'\n[registry]\nurl = 'file:///models'\n\
                    options = { aws_region = 'here' }\n[worker]\nhost = 'a'\n[scaler]\nname = 'b'\n";
        std::fs::write(&file, text).expect("written");
        let configured = Configured::read(Some(file.clone())).expect("it reads");
        assert_eq!(configured.file.as_deref(), Some(file.as_path()));
        let plain = Global { configured: configured.clone(), broker: None, ..global(&[]) };
        assert_eq!(plain.options().url, "nats://file:1");
        assert_eq!(plain.registry(None).url, "file:///models");
        let flagged = Global { configured, ..global(&["--broker", "nats://flag:1"]) };
        let options = flagged.options();
        assert_eq!((options.url.as_str(), options.tls_ca.is_some()), ("nats://flag:1", true));
        let registry = flagged.registry(Some("s3://models"));
        assert_eq!((registry.url.as_str(), registry.options.len()), ("s3://models", 1));
    }

    #[test]
    fn a_file_with_a_typing_error_is_refused_with_its_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("mine.toml");
        std::fs::write(&file, "[broker]\nurll = 'x'\n").expect("written");
        let error = Configured::read(Some(file)).expect_err("a typing error").to_string();
        assert!(error.contains("mine.toml") && error.contains("`broker.urll`"), "{error}");
        assert!(Configured::read(Some("/nowhere/sluice.toml".into())).is_err(), "what is named must be there");
    }
}
