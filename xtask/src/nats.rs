//! A nats-server of one's own: on a free loopback port, storing below a folder, stopped when dropped.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::process::{Service, free_port, wait_for_port};

/// A nats-server started from one of the files in `broker-config/nats/`, storing below `folder`.
pub struct NatsServer {
    service: Option<Service>,
    binary: PathBuf,
    config: PathBuf,
    folder: PathBuf,
    port: u16,
    monitor: Option<u16>,
    environment: Vec<(String, String)>,
}

impl NatsServer {
    /// Starts it on a free port. `environment` fills the configuration's `$VARIABLES`.
    pub fn start(config: &str, folder: &Path, environment: &[(&str, &str)]) -> Result<Self> {
        let mut server = Self::prepare(config, folder)?;
        server.environment = environment.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        server.restart()?;
        Ok(server)
    }

    /// As [`NatsServer::start`], with its monitoring on a port of its own.
    pub fn monitored(config: &str, folder: &Path, environment: &[(&str, &str)]) -> Result<Self> {
        let mut server = Self::prepare(config, folder)?;
        server.environment = environment.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        server.monitor = Some(free_port()?);
        server.restart()?;
        Ok(server)
    }

    /// Starts one with the production file and with `certificate.pem` and `key.pem` of that folder. Its users have passwords as
    /// [`production_environment`] says.
    pub fn production(folder: &Path, certificates: &Path) -> Result<Self> {
        let environment = production_environment(certificates)?;
        let environment: Vec<(&str, &str)> =
            environment.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        Self::start("production.conf", folder, &environment)
    }

    /// Chooses the port and the folder, and does not start yet.
    pub fn prepare(config: &str, folder: &Path) -> Result<Self> {
        Ok(Self {
            service: None,
            binary: crate::setup::nats_server()?,
            config: crate::root().join("broker-config/nats").join(config),
            folder: folder.into(),
            port: free_port()?,
            monitor: None,
            environment: Vec::new(),
        })
    }

    /// Ends it without warning and deletes its store.
    pub fn wipe(&mut self) -> Result<()> {
        self.kill();
        Ok(std::fs::remove_dir_all(self.folder.join("nats"))?)
    }

    /// Starts it again on the same port and store.
    pub fn restart(&mut self) -> Result<()> {
        let mut command = Command::new(&self.binary);
        command.arg("--config").arg(&self.config).args(["--addr", "127.0.0.1", "--port", &self.port.to_string()]);
        command.args(self.monitor.iter().flat_map(|port| ["--http_port".to_owned(), port.to_string()]));
        command.env("SLUICE_NATS_STORE", self.folder.join("nats"));
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        let mut service = Service::start("nats-server", &mut command, &self.folder)?;
        wait_for_port(&mut service, self.port, Duration::from_secs(20))?;
        self.service = Some(service);
        Ok(())
    }

    /// Stops it as an operator would, and waits.
    pub fn stop(&mut self) -> Result<()> {
        match self.service.take() {
            Some(mut service) => service.stop(Duration::from_secs(60)).map(drop),
            None => Ok(()),
        }
    }

    /// Ends it without warning.
    pub fn kill(&mut self) {
        self.service = None;
    }

    /// The port of its monitoring, if that is a port of its own.
    pub fn monitor(&self) -> Option<u16> {
        self.monitor
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL that clients connect to.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The URL for a user of the production file.
    pub fn url_of(&self, user: &str) -> String {
        format!("tls://{user}:{user}-pass@127.0.0.1:{}", self.port)
    }

    /// Its process id while it runs.
    pub fn id(&self) -> Option<u32> {
        self.service.as_ref().map(Service::id)
    }
}

/// What the production files want to know: where certificates are, and a password for each user (`<user>-pass`).
pub fn production_environment(certificates: &Path) -> Result<Vec<(String, String)>> {
    let file = |name: &str| format!("'{}'", certificates.join(name).display());
    let mut environment = vec![
        ("SLUICE_TLS_CA".to_owned(), file("ca.pem")),
        ("SLUICE_TLS_CERTIFICATE".to_owned(), file("certificate.pem")),
        ("SLUICE_TLS_KEY".to_owned(), file("key.pem")),
        ("SLUICE_NATS_MONITOR".to_owned(), format!("'127.0.0.1:{}'", free_port()?)),
    ];
    for user in ["producer", "worker", "scaler", "gateway", "manager", "monitoring", "staging", "admin"] {
        environment.push((format!("SLUICE_{}_PASSWORD", user.to_uppercase()), format!("'{user}-pass'")));
    }
    Ok(environment)
}
