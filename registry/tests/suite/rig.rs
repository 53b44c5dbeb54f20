//! A store of each kind, and packages to put into it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sluice_broker::Options;
use sluice_registry::{Action, Change, Folder, Location, Registry, Revision, open};
use tempfile::TempDir;
use xtask::nats::NatsServer;
use xtask::process::{Service, free_port, wait_for_port};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Folder,
    Nats,
    S3,
}

pub struct Rig {
    pub kind: Kind,
    pub registry: Registry,
    folder: TempDir,
    location: Location,
    broker: Options,
    _server: Option<Server>,
}

enum Server {
    Nats { _server: NatsServer },
    S3 { _server: Service },
}

impl Rig {
    pub async fn start(kind: Kind) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut broker = Options::default();
        let (location, server) = match kind {
            Kind::Folder => (Location::new(format!("file://{}/registry", folder.path().display())), None),
            Kind::Nats => {
                let server = NatsServer::start("dev.conf", folder.path(), &[])?;
                broker = Options::new(server.url(), "test");
                (Location::default(), Some(Server::Nats { _server: server }))
            }
            Kind::S3 => {
                let (location, server) = start_s3(folder.path())?;
                (location, Some(Server::S3 { _server: server }))
            }
        };
        let registry = open(&location, &broker).await?;
        Ok(Self { kind, registry, folder, location, broker, _server: server })
    }

    /// The same store, by a connection of its own.
    pub async fn another(&self) -> Result<Registry> {
        Ok(open(&self.location, &self.broker).await?)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A package whose weights are these bytes.
    pub fn package(&self, model: &str, weights: &[u8], extra: &str) -> Result<Folder> {
        let path = self.package_folder(model, weights, extra)?;
        Ok(Folder::read(&path)?)
    }

    pub fn package_folder(&self, model: &str, weights: &[u8], extra: &str) -> Result<PathBuf> {
        let path = tempfile::tempdir_in(self.folder.path())?.keep();
        std::fs::write(path.join("model.pt"), weights)?;
        std::fs::write(path.join("model.toml"), manifest(model, extra))?;
        Ok(path)
    }

    /// Publishes and writes the next revision.
    pub async fn deploy(&self, package: &Folder, version: Option<&str>) -> Result<Revision> {
        let model = &package.manifest.name;
        let published = self.registry.publish(package, version, &|_| ()).await?;
        let newest = self.registry.newest(model).await?;
        let change = change(Action::Deploy, &published.version);
        Ok(self.registry.append(model, newest.as_ref(), change).await?)
    }
}

pub fn manifest(model: &str, extra: &str) -> String {
    format!(
        "name = \"{model}\"\nengine = \"torchscript\"\nfile = \"model.pt\"\n\
         inputs = [{{ name = \"x\", datatype = \"FP32\", shape = [-1, 4] }}]\n\
         outputs = [{{ name = \"y\", datatype = \"FP32\", shape = [-1, 4] }}]\n{extra}\n"
    )
}

pub fn change(action: Action, version: &str) -> Change {
    Change {
        by: "tester".into(),
        action,
        version: version.into(),
        started: true,
        of: None,
        profile: Default::default(),
    }
}

/// moto looks whether an object is there and then writes it, in threads: two could do so at once, as in no real store. So one request
/// at a time.
const S3_SERVER: &str = "
import sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

app = DomainDispatcherApplication(create_backend_app)
one_at_a_time = threading.Lock()

def serve(environ, start_response):
    with one_at_a_time:
        return list(app(environ, start_response))

run_simple('127.0.0.1', int(sys.argv[1]), serve, threaded=True)
";

fn start_s3(folder: &Path) -> Result<(Location, Service)> {
    let port = free_port()?;
    let mut command = Command::new("python3");
    command.args(["-c", S3_SERVER, &port.to_string()]);
    command.env("PYTHONPATH", xtask::setup::s3_server()?);
    let mut server = Service::start("s3", &mut command, folder)?;
    wait_for_port(&mut server, port, Duration::from_secs(60))?;
    let address = format!("127.0.0.1:{port}");
    let (status, body) = xtask::http::put(&address, "/sluice").context("making a bucket")?;
    if status != 200 {
        bail!("the S3 server answered {status} when a bucket was made: {body}");
    }
    let options = [
        ("aws_endpoint", format!("http://{address}")),
        ("aws_allow_http", "true".into()),
        ("aws_access_key_id", "test".into()),
        ("aws_secret_access_key", "test".into()),
        ("aws_region", "us-east-1".into()),
    ];
    let options: BTreeMap<String, String> = options.into_iter().map(|(name, value)| (name.into(), value)).collect();
    Ok((Location { url: "s3://sluice/models".into(), options }, server))
}
