//! Child processes with their logs in files, stopped when dropped; and loopback ports for them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A child process with its log in a file. Dropping it ends the process.
pub struct Service {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Service {
    /// Starts `command` with both outputs appended to `<folder>/<name>.log`.
    pub fn start(name: &str, command: &mut Command, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {name}: `{}`", command.get_program().display()))?;
        Ok(Self { name: name.into(), child, log })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a Unix signal.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: kill has no memory effects; the child has not been waited for, so its id is still its own.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} has not ended after {limit:?}; its log:\n{}", self.name, tail(&self.log()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to stop (SIGTERM) and waits.
    pub fn stop(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM);
        self.wait(limit)
    }

    /// Ends it at once (SIGKILL), as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for a line of the log that contains `text`, and returns that line.
    pub fn wait_for_line(&mut self, text: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            let log = self.log();
            if let Some(line) = log.lines().find(|line| line.contains(text)) {
                return Ok(line.to_string());
            }
            if let Some(status) = self.ended() {
                bail!("{} ended ({status}) before it printed `{text}`; its log:\n{}", self.name, tail(&log));
            }
            if Instant::now() > deadline {
                bail!("{} did not print `{text}` within {limit:?}; its log:\n{}", self.name, tail(&log));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// A loopback port that nothing listens on now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Waits until something accepts connections on a loopback port.
pub fn wait_for_port(service: &mut Service, port: u16, limit: Duration) -> Result<()> {
    wait_for_answer(service, port, b"", limit)
}

/// Waits until something accepts connections on a loopback port and says something to whoever says this; nothing need be said.
pub fn wait_for_answer(service: &mut Service, port: u16, greeting: &[u8], limit: Duration) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let patience = Duration::from_secs(1);
    let answers = || -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        if greeting.is_empty() {
            return Ok(());
        }
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(greeting)?;
        stream.read_exact(&mut [0])
    };
    let deadline = Instant::now() + limit;
    while answers().is_err() {
        if let Some(status) = service.ended() {
            bail!("{} ended ({status}); its log:\n{}", service.name, tail(&service.log()));
        }
        if Instant::now() > deadline {
            bail!("{} does not answer on {address}; its log:\n{}", service.name, tail(&service.log()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
