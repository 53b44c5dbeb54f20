//! What the demo runs: `sluice dev`, a broker beside it where that has none, and a burst of requests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::broker::{Kind, Server};
use xtask::http;
use xtask::process::Service;
use xtask::setup;

use super::{Options, target_folder};

/// How many times the whole file comes at once, to make slots come and go.
pub const BURST: usize = 40;

/// What Ctrl-C has to clean up.
static RUNNING: Mutex<Option<Running>> = Mutex::new(None);

struct Running {
    // Dropped in this order: the deployment drains while the broker is still there.
    deployment: Option<Service>,
    server: Option<Server>,
    _folder: tempfile::TempDir,
}

impl Running {
    fn stop(&mut self) {
        if let Some(mut deployment) = self.deployment.take() {
            let _ = deployment.stop(Duration::from_secs(40));
        }
        if let Some(mut server) = self.server.take() {
            let _ = server.stop();
        }
    }
}

pub fn stop_everything() {
    if let Some(mut running) = RUNNING.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take() {
        running.stop();
    }
}

/// Where everything is.
pub struct Deployment {
    pub sluice: PathBuf,
    pub url: String,
    pub management: Option<String>,
    pub registry: String,
    pub worker: String,
    pub scaler: String,
}

impl Deployment {
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.sluice);
        command.env("SLUICE_BROKER", &self.url).env("SLUICE_REGISTRY", &self.registry);
        command.envs(self.management.iter().map(|url| ("SLUICE_MANAGEMENT", url)));
        command
    }

    /// Slots that hosts have or will have.
    pub fn slots(&self) -> Result<u64> {
        let (_, text) = http::get(&self.scaler, "/metrics")?;
        let sample = text.lines().find(|line| line.starts_with("sluice_scaler_slots{") && line.contains("\"placed\""));
        Ok(sample.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0) as u64)
    }
}

/// Starts `sluice dev` with the model, and a broker for it if it has none of its own.
pub fn start(options: &Options, folder: tempfile::TempDir) -> Result<Deployment> {
    let path = folder.path().to_path_buf();
    let sluice = target_folder().join("release/sluice");
    let mut command = Command::new(&sluice);
    command.args(["dev", "--models"]).arg(xtask::root().join("models/digits")).arg("--folder").arg(path.join("dev"));
    let mut running = Running { deployment: None, server: None, _folder: folder };
    match options.broker {
        Kind::Nats => _ = command.env("NATS_SERVER", setup::nats_server()?),
        Kind::RabbitMq => {
            let server = Server::start(options.broker, &path)?;
            command.arg("--external").env("SLUICE_BROKER", server.url());
            command.envs(server.management().map(|url| ("SLUICE_MANAGEMENT", url)));
            running.server = Some(server);
        }
    }
    let management = running.server.as_ref().and_then(Server::management);
    let mut dev = Service::start("sluice-dev", &mut command, &path)?;
    let ready = dev.wait_for_line("in another terminal", Duration::from_secs(120)).map(drop);
    let log = dev.log();
    running.deployment = Some(dev);
    *RUNNING.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(running);
    ready?;
    let value = |name: &str| {
        let line = log
            .lines()
            .find(|line| line.starts_with(&format!("  {name:<8}  ")))
            .with_context(|| format!("no {name} in the log"))?;
        anyhow::Ok(
            line.rsplit(' ')
                .next()
                .unwrap_or_default()
                .trim_start_matches("http://")
                .trim_end_matches("/metrics")
                .to_owned(),
        )
    };
    let (url, registry, worker, scaler) = (value("broker")?, value("registry")?, value("worker")?, value("scaler")?);
    Ok(Deployment { sluice, url, management, registry, worker, scaler })
}

/// Watches how many slots there are while a burst comes and after it, until there are none.
pub fn burst(deployment: &Deployment, data: &Path, path: &Path) -> Result<Vec<(Duration, u64)>> {
    let mut command = deployment.command();
    command.args(["submit", "digits"]).args(vec![data; BURST]).args(["--columns", "0-63", "--json"]);
    command.args(["--window", "4096", "--output"]).arg(path.join("burst.jsonl"));
    let began = Instant::now();
    let mut seen = vec![(Duration::ZERO, deployment.slots()?)];
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot run sluice")?;
    let mut ended = None;
    loop {
        let slots = deployment.slots()?;
        if seen.last().is_none_or(|(_, last)| *last != slots) {
            seen.push((began.elapsed(), slots));
        }
        if ended.is_none()
            && let Some(status) = child.try_wait()?
        {
            ensure!(status.success(), "the burst was not answered: `sluice submit` ended with {status}");
            ended = Some(Instant::now());
        }
        if ended.is_some() && slots == 0 {
            return Ok(seen);
        }
        ensure!(
            ended.is_none_or(|ended| ended.elapsed() < Duration::from_secs(60)),
            "{slots} slots are left a minute after the burst"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}
