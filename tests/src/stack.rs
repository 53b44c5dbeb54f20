//! A broker, workers and callers, stopped when dropped.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use sluice_broker::Options;
use sluice_core::broker::{Broker, Replies, Reply, Submission};
use sluice_core::codec::{self, ContentType};
use sluice_core::{Datatype, Envelope, InferRequest, JobId, ModelName, ReplyTo, RequestId, Tensor};
use sluice_registry::{Location, Registry};
use tempfile::TempDir;
use xtask::broker::{Kind, Server};
use xtask::certificates::Certificates;
use xtask::cluster::NatsCluster;
use xtask::process::Service;

use crate::binaries;
use crate::proxy::Proxy;

/// How long a test waits for what must happen.
pub const SOON: Duration = Duration::from_secs(60);

/// What workers log, as `RUST_LOG` says it; if set, the log is shown when a worker ends.
const LOG: &str = "SLUICE_TEST_LOG";

/// A broker and a folder.
pub struct Stack {
    /// The broker's server.
    pub server: Server,
    folder: TempDir,
    /// If each part has a user of its own, as in production: the authority of the server's certificate.
    authority: Option<PathBuf>,
    started: usize,
    /// What the next worker is called, instead of a name of its own.
    named: Option<String>,
    admins: Vec<String>,
}

/// A worker process.
pub struct Worker {
    /// The process.
    pub process: Service,
    admin: String,
}

impl Stack {
    /// Starts a broker, or takes a part of one that the tests of a run share.
    pub fn start(kind: Kind) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        Ok(Self::of(Server::share(kind, folder.path())?, folder))
    }

    /// Starts a broker that can be stopped and started again.
    pub fn alone(kind: Kind) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        Ok(Self::of(Server::start(kind, folder.path())?, folder))
    }

    /// Starts a broker with the production files: TLS, and each part with its own user and no more permissions than that has.
    pub fn production(kind: Kind) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let authority = Certificates::make(folder.path())?.authority;
        let server = Server::production(kind, folder.path(), folder.path())?;
        Ok(Self { authority: Some(authority), ..Self::of(server, folder) })
    }

    /// Starts three NATS nodes with the production files.
    pub fn cluster() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let authority = Certificates::make(folder.path())?.authority;
        let server = Server::Cluster(NatsCluster::start(folder.path(), folder.path())?);
        Ok(Self { authority: Some(authority), ..Self::of(server, folder) })
    }

    fn of(server: Server, folder: TempDir) -> Self {
        Self { server, folder, authority: None, started: 0, named: None, admins: Vec::new() }
    }

    /// How a part reaches the broker.
    fn broker(&self, role: &str) -> Options {
        let (url, management) = match self.authority {
            Some(_) => self.server.urls_of(role),
            None => (self.server.url(), self.server.management()),
        };
        Options { management, tls_ca: self.authority.clone(), ..Options::new(url, role) }
    }

    /// The folder of this stack.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts a worker with these packages and slots, and waits until it is ready. `extra` goes into its
    /// configuration's `[broker]` section.
    pub fn worker(&mut self, packages: &[(&Path, usize)], extra: &str) -> Result<Worker> {
        let mut worker = self.launch(packages, extra)?;
        worker.process.wait_for_line(": ready", SOON)?;
        Ok(worker)
    }

    /// Starts a worker that serves a model of the registry, or all (`*`), and waits until it is ready. `extra` goes into its
    /// configuration's `[worker]` section.
    pub fn follower(&mut self, model: &str, extra: &str) -> Result<Worker> {
        let cache = self.folder().join("packages");
        let registry = self.registry_url();
        let slots = format!(
            "{extra}\ncache = \"{}\"\n[[worker.slots]]\nmodel = \"{model}\"\n[registry]\nurl = \"{registry}\"\n",
            cache.display()
        );
        let mut worker = self.start_worker("", &slots)?;
        worker.process.wait_for_line(": ready", SOON)?;
        Ok(worker)
    }

    /// Starts a host that runs what a scaler says, with room for so many slots, and waits until it is ready.
    pub fn host(&mut self, capacity: usize) -> Result<Worker> {
        let mut worker = self.launch_host(capacity)?;
        worker.process.wait_for_line(": ready", SOON)?;
        Ok(worker)
    }

    /// Starts another host of a name that one may have already, and waits until it is ready.
    pub fn host_named(&mut self, name: &str, capacity: usize) -> Result<Worker> {
        self.named = Some(name.to_owned());
        let worker = self.launch_host(capacity);
        self.named = None;
        let mut worker = worker?;
        worker.process.wait_for_line(": ready", SOON)?;
        Ok(worker)
    }

    /// Starts a host that runs what a scaler says and does not wait.
    pub fn launch_host(&mut self, capacity: usize) -> Result<Worker> {
        self.launch_host_of("cpu", capacity)
    }

    /// The same with room for so many slots on `cpu` or `cuda:N` alone.
    pub fn launch_host_of(&mut self, device: &str, capacity: usize) -> Result<Worker> {
        let (cache, registry) = (self.folder().join("packages"), self.registry_url());
        let config = format!(
            "capacity = {{ \"{device}\" = {capacity} }}\ncache = \"{}\"\n[registry]\nurl = \"{registry}\"\n",
            cache.display()
        );
        self.start_worker("", &config)
    }

    /// Starts a scaler and does not wait. `extra` goes into its configuration's `[scaler]` section.
    pub fn scaler(&mut self, extra: &str) -> Result<Service> {
        self.started += 1;
        let name = format!("scaler-{}", self.started);
        let admin = xtask::process::free_port()?;
        let registry = self.registry_url();
        let config = format!(
            "{}[registry]\nurl = \"{registry}\"\n[scaler]\nname = \"{name}\"\nadmin = \"127.0.0.1:{admin}\"\n{extra}\n",
            broker_section(&self.broker("scaler"), "")
        );
        let file = self.file(&format!("{name}.toml"), config)?;
        let mut command = Command::new(binaries::path("sluice-scaler")?);
        command.arg("--config").arg(file).env_remove("RUST_LOG");
        Service::start(&name, &mut command, self.folder())
    }

    /// Starts a host that reaches the broker by a way of its own.
    pub fn host_behind(&mut self, proxy: &Proxy, capacity: usize) -> Result<Worker> {
        let (cache, registry) = (self.folder().join("packages"), self.registry_url());
        let url = self.url_by(proxy)?;
        let config = format!(
            "capacity = {{ cpu = {capacity} }}\ncache = \"{}\"\n[registry]\nurl = \"{registry}\"\n",
            cache.display()
        );
        let mut broker = Options { url, ..self.broker("worker") };
        if let Some(management) = &broker.management {
            let port = port_of(management)?;
            broker.management = Some(management.replace(&format!(":{port}"), &format!(":{}", proxy.also(port)?)));
        }
        let mut worker = proxy.inside(|| self.start_worker_at(&broker, "", &config))??;
        worker.process.wait_for_line(": ready", SOON)?;
        Ok(worker)
    }

    /// The broker's address for those who take this way.
    pub fn url_by(&self, proxy: &Proxy) -> Result<String> {
        let port = self.server_port()?;
        Ok(self.server.url().replace(&format!(":{port}"), &format!(":{}", proxy.port())))
    }

    /// The broker's port.
    pub fn server_port(&self) -> Result<u16> {
        port_of(&self.server.url())
    }

    /// Starts a worker and does not wait.
    pub fn launch(&mut self, packages: &[(&Path, usize)], extra: &str) -> Result<Worker> {
        let slot = |(package, count): &(&Path, usize)| {
            format!("[[worker.slots]]\npackage = \"{}\"\ncount = {count}\n", package.display())
        };
        let slots: String = packages.iter().map(slot).collect();
        self.start_worker(extra, &slots)
    }

    fn start_worker(&mut self, broker: &str, slots: &str) -> Result<Worker> {
        self.start_worker_at(&self.broker("worker"), broker, slots)
    }

    fn start_worker_at(&mut self, broker: &Options, extra: &str, slots: &str) -> Result<Worker> {
        self.started += 1;
        let name = format!("worker-{}", self.started);
        let admin = xtask::process::free_port()?;
        let mut config = broker_section(broker, extra);
        let host = self.named.as_ref().unwrap_or(&name);
        config += &format!("[worker]\nhost = \"{host}\"\nadmin = \"127.0.0.1:{admin}\"\n");
        config += slots;
        let file = self.folder().join(format!("{name}.toml"));
        std::fs::write(&file, config)?;
        let mut command = Command::new(binaries::path("sluice-worker")?);
        command.arg("--config").arg(file).env_remove("RUST_LOG");
        if let Ok(filter) = std::env::var(LOG) {
            command.env("RUST_LOG", filter);
        }
        let process = Service::start(&name, &mut command, self.folder())?;
        let admin = format!("127.0.0.1:{admin}");
        self.admins.push(admin.clone());
        Ok(Worker { process, admin })
    }

    /// Runs the command line to its end.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        self.cli_as("manager", arguments)
    }

    /// Runs the command line of somebody with this role to its end.
    pub fn cli_as(&self, role: &str, arguments: &[&str]) -> Result<Output> {
        self.command_as(role, arguments)?.output().context("cannot run sluice")
    }

    /// The command line, not started.
    pub fn cli_command(&self, arguments: &[&str]) -> Result<Command> {
        self.command_as("manager", arguments)
    }

    fn command_as(&self, role: &str, arguments: &[&str]) -> Result<Command> {
        let broker = self.broker(role);
        let mut command = Command::new(binaries::path("sluice")?);
        command
            .args(arguments)
            .env("SLUICE_BROKER", broker.url)
            .env("SLUICE_REGISTRY", self.registry_url())
            .envs(broker.management.map(|url| ("SLUICE_MANAGEMENT", url)))
            .envs(broker.tls_ca.map(|file| ("SLUICE_TLS_CA", file)))
            // Not that of whoever runs the tests.
            .env("XDG_CONFIG_HOME", self.folder())
            .current_dir(self.folder())
            .env_remove("RUST_LOG");
        Ok(command)
    }

    /// NATS keeps models itself; beside RabbitMQ a folder does.
    fn registry_url(&self) -> String {
        match self.server.kind() {
            Kind::Nats => String::new(),
            Kind::RabbitMq => format!("file://{}/registry", self.folder().display()),
        }
    }

    /// The registry, by a way of one's own.
    pub async fn registry(&self) -> Result<Registry> {
        Ok(sluice_registry::open(&Location::new(self.registry_url()), &self.broker("manager")).await?)
    }

    /// A connection of a caller's own.
    pub async fn connect(&self) -> Result<Arc<dyn Broker>> {
        self.connect_as("producer").await
    }

    /// A connection of somebody with this role.
    pub async fn connect_as(&self, role: &str) -> Result<Arc<dyn Broker>> {
        Ok(sluice_broker::connect(&self.broker(role)).await?)
    }

    /// Waits until nothing of a model waits or runs any more.
    pub async fn wait_until_empty(&self, broker: &Arc<dyn Broker>, model: &ModelName) -> Result<()> {
        let deadline = Instant::now() + SOON;
        loop {
            let lanes = broker.depth(model).await?;
            let waiting: u64 = lanes.iter().map(|lane| lane.ready.clone().known().unwrap_or(1)).sum();
            let running: u64 = lanes.iter().map(|lane| lane.in_flight.clone().known().unwrap_or(0)).sum();
            // Not every broker tells what runs; hosts do.
            let held: f64 = self.admins.iter().filter_map(|admin| metric(admin, "sluice_in_flight", &[]).ok()).sum();
            if waiting == 0 && running == 0 && held == 0.0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{waiting} requests of model `{model}` still wait, {running} run, {held} are held: {lanes:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Writes a file into the stack's folder.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.folder().join(name);
        std::fs::write(&path, content)?;
        Ok(path)
    }
}

fn broker_section(broker: &Options, extra: &str) -> String {
    let mut section = format!("[broker]\nurl = \"{}\"\n{extra}\n", broker.url);
    if let Some(management) = &broker.management {
        section += &format!("management = \"{management}\"\n");
    }
    if let Some(authority) = &broker.tls_ca {
        section += &format!("tls_ca = \"{}\"\n", authority.display());
    }
    section
}

impl Worker {
    /// A path of the admin port: the status code and the body.
    pub fn admin(&self, path: &str) -> Result<(u16, String)> {
        xtask::http::get(&self.admin, path)
    }

    /// The sum of a metric's samples whose labels contain all of `labels`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        metric(&self.admin, name, labels)
    }
}

fn metric(admin: &str, name: &str, labels: &[&str]) -> Result<f64> {
    let (_, text) = xtask::http::get(admin, "/metrics")?;
    let samples = text.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' '])) && labels.iter().all(|label| line.contains(label))
    });
    Ok(samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::env::var_os(LOG).is_some() {
            eprintln!("{}", self.process.log());
        }
    }
}

/// Rows of four floats as a request for a doubler.
pub fn rows(values: &[[f32; 4]]) -> Bytes {
    let data: Vec<u8> = values.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    let shape = vec![values.len() as i64, 4];
    let input = Tensor { name: "x".into(), datatype: Datatype::Fp32, shape, data: data.into() };
    codec::encode_request(ContentType::MessagePack, &InferRequest { inputs: vec![input], outputs: vec![] })
}

/// The floats of a reply's only output, or the error's code and message.
pub fn floats(reply: &Reply) -> Result<Vec<f32>, String> {
    if reply.error.is_some() {
        let failure = codec::decode_failure(reply.content_type, &reply.body);
        return Err(format!("{}: {}", failure.code, failure.message));
    }
    let response = codec::decode_response(reply.content_type, &reply.body).map_err(|failure| failure.message)?;
    let data = &response.outputs[0].data;
    Ok(data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

/// An envelope with an id and a way back.
pub fn envelope(id: &str, replies: &dyn Replies) -> Envelope {
    Envelope { reply_to: Some(replies.reply_to()), ..Envelope::new(id.parse().expect("an id")) }
}

/// Submits, and again while the broker is away or the queue is full.
pub async fn submit(broker: &Arc<dyn Broker>, submission: Submission) -> Result<()> {
    let deadline = Instant::now() + SOON;
    loop {
        match broker.submit(submission.clone()).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_transient() && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The durable results `r0`, `r1` and so on of a job: as they come, and those of which the word was lost, as they are stored.
pub struct Durable {
    broker: Arc<dyn Broker>,
    job: JobId,
    replies: Box<dyn Replies>,
    awaited: BTreeSet<RequestId>,
    found: Vec<Reply>,
}

impl Durable {
    /// So many of a job's.
    pub async fn open(broker: &Arc<dyn Broker>, job: &str, count: usize) -> Result<Box<dyn Replies>> {
        let job: JobId = job.parse()?;
        let awaited = (0..count).map(|index| format!("r{index}").parse()).collect::<Result<_, _>>()?;
        let replies = broker.results(&job).await?;
        Ok(Box::new(Self { broker: Arc::clone(broker), job, replies, awaited, found: Vec::new() }))
    }
}

#[async_trait::async_trait]
impl Replies for Durable {
    fn reply_to(&self) -> ReplyTo {
        self.replies.reply_to()
    }

    async fn next(&mut self) -> sluice_core::broker::Result<Reply> {
        loop {
            while let Some(reply) = self.found.pop() {
                if self.awaited.remove(&reply.id) {
                    return Ok(reply);
                }
            }
            match tokio::time::timeout(Duration::from_secs(1), self.replies.next()).await {
                Ok(reply) => self.found.push(reply?),
                Err(_) if self.broker.capabilities().reads_results_from_the_first => {}
                Err(_) => {
                    let ids: Vec<RequestId> = self.awaited.iter().cloned().collect();
                    match self.broker.stored_results(&self.job, &ids).await {
                        Ok(found) => self.found.extend(found),
                        Err(error) if error.is_transient() => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }
}

/// The next reply, which must come.
pub async fn next(replies: &mut Box<dyn Replies>) -> Result<Reply> {
    Ok(tokio::time::timeout(SOON, replies.next()).await.context("no answer came")??)
}

fn port_of(url: &str) -> Result<u16> {
    let after = url.rsplit(':').next().unwrap_or_default();
    let port: String = after.chars().take_while(char::is_ascii_digit).collect();
    port.parse().with_context(|| format!("no port in {url}"))
}
