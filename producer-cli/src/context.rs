//! What a command runs with: the configuration file, which the services share, under what flags and the environment say.
//! `sluice context` shows it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
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
    /// Whether it is said which broker is meant.
    #[serde(skip)]
    names_broker: bool,
    /// What the environment says without the file.
    #[serde(skip)]
    environment: Options,
}

impl Configured {
    /// Reads the file that is named, else the user's own if there is one; and the environment's `SLUICE_SECTION__KEY`.
    pub fn read(named: Option<PathBuf>) -> Result<Self> {
        let file = named.or_else(|| users_file().filter(|file| file.is_file()));
        let read: Self = config::load(file.as_deref())?;
        let environment: Self = config::load(None)?;
        let names_broker = names_broker(file.as_deref())?;
        Ok(Self { file, names_broker, environment: environment.broker, ..read })
    }
}

fn names_broker(file: Option<&Path>) -> Result<bool> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Said {
        broker: BTreeMap<String, serde_json::Value>,
    }
    Ok(config::load::<Said>(file)?.broker.contains_key("url"))
}

/// `sluice.toml` in the user's configuration folder.
fn users_file() -> Option<PathBuf> {
    let folder = std::env::var_os("XDG_CONFIG_HOME").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".config"));
    Some(folder.or_else(home)?.join("sluice.toml"))
}

impl Global {
    /// How to reach the broker. What the file says of one broker is not for another: who is let in there, and whose management API it is.
    pub fn options(&self) -> Options {
        let broker = self.configured.broker.clone();
        let own = if self.is_another_broker() { self.configured.environment.clone() } else { broker.clone() };
        Options {
            url: self.broker.clone().unwrap_or(broker.url),
            name: "sluice (command line)".into(),
            management: self.management.clone().or(own.management),
            credentials: self.credentials.clone().or(own.credentials),
            tls_ca: self.tls_ca.clone().or(broker.tls_ca),
            tls_certificate: own.tls_certificate,
            tls_key: own.tls_key,
            ..broker
        }
    }

    fn is_another_broker(&self) -> bool {
        let configured = &self.configured;
        let another = |url: &String| *url != configured.broker.url && !configured.broker.names(url);
        configured.names_broker && self.broker.as_ref().is_some_and(another)
    }

    /// What the file says of its broker that is not used, since another is meant; for people.
    pub fn left_out(&self) -> Option<String> {
        let (file, used) = (&self.configured.broker, self.options());
        let keys = [
            ("management", file.management.is_some() && used.management.is_none()),
            ("credentials", file.credentials.is_some() && used.credentials.is_none()),
            ("tls_certificate", file.tls_certificate.is_some() && used.tls_certificate.is_none()),
            ("tls_key", file.tls_key.is_some() && used.tls_key.is_none()),
        ];
        let keys: Vec<String> =
            keys.iter().filter(|(_, left_out)| *left_out).map(|(key, _)| format!("`broker.{key}`")).collect();
        (!keys.is_empty()).then(|| {
            format!(
                "--broker or SLUICE_BROKER names another broker than the configuration, which says {} of its own: that is not used",
                keys.join(", ")
            )
        })
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
    if let Some(left_out) = global.left_out() {
        println!("               {left_out}");
    }
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
    fn what_the_file_says_of_its_broker_is_not_for_another() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("sluice.toml");
        let said = "management = 'http://m'\ncredentials = '/u.creds'\ntls_certificate = '/c'\ntls_key = '/k'\ntls_ca = '/ca'\n";
        let of_one = format!("[broker]\nurl = 'nats://127.0.0.1:4222'\n{said}");
        let of_any = format!("[broker]\n{said}");
        let with = |text: &str, arguments: &[&str]| {
            std::fs::write(&file, text).expect("written");
            Global { configured: Configured::read(Some(file.clone())).expect("it reads"), ..global(arguments) }
        };
        let used = |global: &Global| {
            let options = global.options();
            assert!(options.tls_ca.is_some());
            [options.management, options.credentials.map(|file| file.display().to_string())]
                .map(|value| value.unwrap_or_default())
                .into_iter()
                .chain([options.tls_certificate, options.tls_key].map(|file| file.is_some().to_string()))
                .collect::<Vec<_>>()
                .join(" ")
        };
        let whole = "http://m /u.creds true true";
        for (text, url) in [(&of_one, "nats://me:mine@127.0.0.1"), (&of_any, "nats://staging")] {
            let global = with(text, &["--broker", url]);
            assert_eq!((used(&global).as_str(), global.left_out()), (whole, None), "{url}");
        }
        let global = with(&of_one, &["--broker", "nats://staging"]);
        assert_eq!(used(&global), "  false false");
        assert!(global.left_out().is_some_and(|told| told.contains("`broker.management`, `broker.credentials`")));
        let global = with(&of_one, &["--broker", "nats://staging", "--management", "http://s", "--credentials", "/s"]);
        assert_eq!(used(&global), "http://s /s false false");
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
