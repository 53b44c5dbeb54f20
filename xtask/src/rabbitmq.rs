//! A RabbitMQ of one's own: on free loopback ports, storing below a folder, stopped when dropped.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::http;
use crate::process::{Service, free_port, wait_for_answer, wait_for_port};
use crate::setup::{self, Installation};

/// An Erlang machine takes its time.
const START: Duration = Duration::from_secs(90);
const STOP: Duration = Duration::from_secs(60);

/// The ports of a RabbitMQ that the tests of a run share, AMQP's and the management API's.
const SHARED: &str = "SLUICE_TEST_RABBITMQ";

/// Which release is started, if it is not the system's: `4`. For this process and the tests that it starts.
pub const RELEASE: &str = "SLUICE_TEST_RABBITMQ_RELEASE";

/// A RabbitMQ started with `broker-config/rabbitmq/dev.conf`, and the port mapper that Erlang wants beside it.
pub struct RabbitServer {
    // Dropped in this order.
    service: Option<Service>,
    mapper: Option<Service>,
    installation: Installation,
    config: PathBuf,
    folder: PathBuf,
    ports: Ports,
}

struct Ports {
    amqp: u16,
    management: u16,
    distribution: u16,
    mapper: u16,
}

impl RabbitServer {
    /// Starts it.
    pub fn start(folder: &Path) -> Result<Self> {
        let mut server = Self::prepare(folder)?;
        server.restart()?;
        Ok(server)
    }

    /// Which release is started here.
    pub fn installation() -> Result<Installation> {
        match std::env::var(RELEASE).as_deref() {
            Ok("4") => setup::rabbitmq_4(),
            Ok(other) => bail!("{RELEASE} is `{other}`: only 4 is known"),
            Err(_) => setup::rabbitmq_server(),
        }
    }

    /// Chooses the ports and the folder, and does not start yet.
    pub fn prepare(folder: &Path) -> Result<Self> {
        let config = crate::root().join("broker-config/rabbitmq/dev.conf");
        let installation = Self::installation()?;
        let ports =
            Ports { amqp: free_port()?, management: free_port()?, distribution: free_port()?, mapper: free_port()? };
        Ok(Self { service: None, mapper: None, installation, config, folder: folder.into(), ports })
    }

    /// Starts one with the production files, as an operator would install them: with `certificates` where they say, a password
    /// for each user (`<user>-pass`), and free ports.
    pub fn production(folder: &Path, certificates: &Path) -> Result<Self> {
        let mut server = Self::prepare(folder)?;
        let files = crate::root().join("broker-config/rabbitmq");
        let mut definitions = std::fs::read_to_string(files.join("definitions.json"))?;
        for user in ["producer", "worker", "scaler", "gateway", "manager", "monitoring"] {
            let of = |key: &str, value: &str| format!(r#""name": "{user}", "{key}": "{value}""#);
            ensure!(definitions.contains(&of("password_hash", "")), "definitions.json has no user `{user}`");
            definitions = definitions.replace(&of("password_hash", ""), &of("password", &format!("{user}-pass")));
        }
        let installed = folder.join("definitions.json");
        std::fs::write(&installed, definitions)?;
        let config = std::fs::read_to_string(files.join("rabbitmq.conf"))?
            .replace("/etc/rabbitmq/tls", &certificates.display().to_string())
            .replace("/etc/rabbitmq/definitions.json", &installed.display().to_string())
            // On loopback only.
            .replace("= 5671", &format!("= 127.0.0.1:{}", server.ports.amqp))
            .replace("= 15671", &format!("= {}\nmanagement.ssl.ip = 127.0.0.1", server.ports.management))
            // A test's disk may be fuller than a server's.
            .replace("disk_free_limit.absolute = 5GB", "disk_free_limit.absolute = 100MB");
        server.config = folder.join("production.conf");
        std::fs::write(&server.config, config)?;
        server.restart()?;
        Ok(server)
    }

    fn is_production(&self) -> bool {
        self.config.ends_with("production.conf")
    }

    /// What the server and its tools need to find each other.
    fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("HOME", self.folder.display().to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
            ("ERL_EPMD_PORT", self.ports.mapper.to_string()),
            ("RABBITMQ_NODENAME", "sluice@localhost".into()),
        ]
    }

    /// Runs `rabbitmqctl` with these arguments.
    pub fn control(&self, arguments: &[&str]) -> Result<()> {
        let run = self
            .installation
            .command("rabbitmqctl")
            .args(arguments)
            .envs(self.environment())
            .current_dir(&self.folder)
            .output()?;
        ensure!(run.status.success(), "rabbitmqctl {arguments:?}: {}", String::from_utf8_lossy(&run.stderr));
        Ok(())
    }

    /// Deletes the default virtual host with all that is in it, and ends its connections.
    pub fn delete_host(&self) -> Result<()> {
        self.control(&["delete_vhost", "/"])
    }

    /// Makes the default virtual host again, with nothing in it.
    pub fn make_host(&self) -> Result<()> {
        self.control(&["add_vhost", "/"])?;
        self.control(&["set_permissions", "guest", ".*", ".*", ".*"])
    }

    /// Starts it again on the same ports and store.
    pub fn restart(&mut self) -> Result<()> {
        let Ports { amqp, management, distribution, mapper } = &self.ports;
        if self.mapper.is_none() {
            let mut command = Command::new("epmd");
            command.args(["-address", "127.0.0.1", "-port", &mapper.to_string()]);
            let mut service = Service::start("epmd", &mut command, &self.folder)?;
            wait_for_port(&mut service, *mapper, START)?;
            self.mapper = Some(service);
        }
        let mut arguments = "-kernel inet_dist_use_interface {127,0,0,1}".to_owned();
        let mut command = self.installation.command("rabbitmq-server");
        if !self.is_production() {
            arguments += &format!(" -rabbitmq_management tcp_config [{{port,{management}}},{{ip,\"127.0.0.1\"}}]");
            command.env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1").env("RABBITMQ_NODE_PORT", amqp.to_string());
        }
        // Where it would leave its crash files.
        command.current_dir(&self.folder);
        command
            // The server replaces the script then, and gets the signals itself.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .envs(self.environment())
            .env("RABBITMQ_DIST_PORT", distribution.to_string())
            .env("RABBITMQ_MNESIA_BASE", self.folder.join("rabbitmq"))
            .env("RABBITMQ_LOG_BASE", self.folder.join("rabbitmq-log"))
            .env("RABBITMQ_PID_FILE", self.folder.join("rabbitmq.pid"))
            .env("RABBITMQ_CONFIG_FILE", &self.config)
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", crate::root().join("broker-config/rabbitmq/enabled_plugins"))
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", arguments);
        let mut service = Service::start("rabbitmq", &mut command, &self.folder)?;
        // The management API comes up before the queues can be reached, or after: both are needed.
        // On a busy machine the first connection takes long: clients that wait for seconds only are not to make it. (With TLS, they are.)
        let greeting: &[u8] = if self.is_production() { b"" } else { b"AMQP\0\0\x09\x01" };
        wait_for_answer(&mut service, *amqp, greeting, START)?;
        wait_for_port(&mut service, *management, START)?;
        self.service = Some(service);
        Ok(())
    }

    /// Stops it as an operator would, and waits.
    pub fn stop(&mut self) -> Result<()> {
        match self.service.take() {
            Some(mut service) => service.stop(STOP).map(drop),
            None => Ok(()),
        }
    }

    /// Ends it without warning.
    pub fn kill(&mut self) {
        self.service = None;
    }

    /// The URL that clients connect to, with the default virtual host.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.ports.amqp)
    }

    /// The URL for a user of the production files.
    pub fn url_of(&self, user: &str) -> String {
        format!("amqps://{user}:{user}-pass@127.0.0.1:{}/sluice", self.ports.amqp)
    }

    /// The management API for a user of the production files.
    pub fn management_of(&self, user: &str) -> String {
        format!("https://{user}:{user}-pass@127.0.0.1:{}", self.ports.management)
    }

    /// Its process id while it runs.
    pub fn id(&self) -> Option<u32> {
        self.service.as_ref().map(Service::id)
    }

    /// What tests of this run need to share it: the variable and its value.
    pub fn to_share(&self) -> (&'static str, String) {
        (SHARED, format!("{} {}", self.ports.amqp, self.ports.management))
    }

    /// The management API.
    pub fn management(&self) -> String {
        format!("http://guest:guest@127.0.0.1:{}", self.ports.management)
    }
}

/// A virtual host of one's own on a RabbitMQ that others use as well, deleted when dropped.
pub struct VirtualHost {
    name: String,
    amqp: String,
    management: String,
}

impl VirtualHost {
    /// A new one on the RabbitMQ that the tests of this run share, if they do.
    pub fn on_the_runs_server() -> Result<Option<Self>> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let Ok(ports) = std::env::var(SHARED) else { return Ok(None) };
        let (amqp, management) = ports.split_once(' ').with_context(|| format!("`{SHARED}` is not two ports"))?;
        let host = Self {
            name: format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)),
            amqp: amqp.into(),
            management: management.into(),
        };
        host.make()?;
        Ok(Some(host))
    }

    /// Makes it, with nothing in it.
    pub fn make(&self) -> Result<()> {
        self.ask("PUT", &format!("/api/vhosts/{}", self.name), "{}")?;
        let all = r#"{"configure":".*","write":".*","read":".*"}"#;
        self.ask("PUT", &format!("/api/permissions/{}/guest", self.name), all)
    }

    /// Deletes it with all that is in it, and ends its connections.
    pub fn delete(&self) -> Result<()> {
        self.ask("DELETE", &format!("/api/vhosts/{}", self.name), "")
    }

    fn ask(&self, method: &str, path: &str, json: &str) -> Result<()> {
        let (status, text) = http::as_guest(method, &format!("127.0.0.1:{}", self.management), path, json)?;
        ensure!((200..300).contains(&status), "RabbitMQ answers {method} {path} with {status}: {text}");
        Ok(())
    }

    /// The URL that clients connect to.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/{}", self.amqp, self.name)
    }

    /// The management API.
    pub fn management(&self) -> String {
        format!("http://guest:guest@127.0.0.1:{}", self.management)
    }
}

impl Drop for VirtualHost {
    fn drop(&mut self) {
        let _ = self.delete();
    }
}
