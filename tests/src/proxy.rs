//! A way to a server that can be cut: nothing passes, and neither end is told. When it is healed, what was sent meanwhile arrives.
//!
//! Where that is permitted, whoever uses the way lives in a network namespace of its own, whose one interface is taken down: the kernel
//! itself drops what is sent then. Elsewhere the way merely stops passing things on.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// How often a cut way looks whether it is healed.
const LOOK: Duration = Duration::from_millis(20);

/// A way to a server on this machine.
pub struct Proxy {
    port: u16,
    network: Option<Network>,
    cut: Arc<AtomicBool>,
}

impl Proxy {
    /// To a port of this machine.
    pub fn start(target: u16) -> Result<Self> {
        let network = match Network::new() {
            Ok(network) => Some(network),
            Err(reason) => {
                println!("a network namespace: skipped: {reason:#}");
                None
            }
        };
        let cut = Arc::new(AtomicBool::new(false));
        let mut way = Self { port: 0, network, cut };
        way.port = way.also(target)?;
        Ok(way)
    }

    /// Another server on the same way; gives the port for those inside.
    pub fn also(&self, target: u16) -> Result<u16> {
        let listener = self.inside(|| TcpListener::bind("127.0.0.1:0"))??;
        let port = listener.local_addr()?.port();
        let shared = Arc::clone(&self.cut);
        // The listener stays where it was made; what connects to the server is out here.
        std::thread::spawn(move || {
            for from in listener.incoming().flatten() {
                let Ok(to) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                let (Ok(back), Ok(answers)) = (from.try_clone(), to.try_clone()) else { continue };
                // Small messages must not wait for the acknowledgement of those before.
                if from.set_nodelay(true).and(to.set_nodelay(true)).is_err() {
                    continue;
                }
                for (source, sink) in [(from, to), (answers, back)] {
                    let cut = Arc::clone(&shared);
                    std::thread::spawn(move || pass(source, sink, &cut));
                }
            }
        });
        Ok(port)
    }

    /// Where it listens, for those inside.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs something, such as the start of a process, where this way is the only one.
    pub fn inside<R: Send>(&self, run: impl FnOnce() -> R + Send) -> Result<R> {
        inside(self.network.as_ref(), run)
    }

    /// Lets nothing pass.
    pub fn cut(&self) -> Result<()> {
        self.set(true)
    }

    /// Lets everything pass again.
    pub fn heal(&self) -> Result<()> {
        self.set(false)
    }

    fn set(&self, cut: bool) -> Result<()> {
        if self.network.is_some() {
            return self.inside(|| set_loopback(if cut { "down" } else { "up" }))?;
        }
        self.cut.store(cut, Ordering::Relaxed);
        Ok(())
    }
}

fn inside<R: Send>(network: Option<&Network>, run: impl FnOnce() -> R + Send) -> Result<R> {
    let Some(network) = network else { return Ok(run()) };
    std::thread::scope(|scope| {
        // A thread's namespace is its own, and that of the processes that it starts.
        let thread = scope.spawn(|| {
            network.enter()?;
            anyhow::Ok(run())
        });
        thread.join().map_err(|_| anyhow::anyhow!("what ran inside panicked"))?
    })
}

/// A network namespace with nothing but a loopback interface. It lasts as long as somebody is in it.
struct Network(File);

#[cfg(target_os = "linux")]
impl Network {
    fn new() -> Result<Self> {
        let made = std::thread::spawn(|| {
            // SAFETY: it changes this thread alone, which ends at once.
            let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            ensure!(done == 0, "it is not permitted here: {}", std::io::Error::last_os_error());
            set_loopback("up")?;
            Ok(Self(File::open("/proc/thread-self/ns/net").context("it cannot be kept")?))
        });
        made.join().map_err(|_| anyhow::anyhow!("making one panicked"))?
    }

    fn enter(&self) -> Result<()> {
        use std::os::fd::AsRawFd;
        // SAFETY: it changes this thread alone, and the file is open.
        let done = unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) };
        ensure!(done == 0, "cannot enter a network namespace: {}", std::io::Error::last_os_error());
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
impl Network {
    fn new() -> Result<Self> {
        anyhow::bail!("only Linux has them")
    }

    fn enter(&self) -> Result<()> {
        Ok(())
    }
}

/// Of the namespace that the calling thread is in.
fn set_loopback(state: &str) -> Result<()> {
    let output = Command::new("ip").args(["link", "set", "lo", state]).output().context("`ip` cannot be run")?;
    ensure!(output.status.success(), "`ip link set lo {state}`: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn pass(mut source: TcpStream, mut sink: TcpStream, cut: &AtomicBool) {
    let mut buffer = [0; 64 * 1024];
    while let Ok(count @ 1..) = source.read(&mut buffer) {
        while cut.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK);
        }
        if sink.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = sink.shutdown(std::net::Shutdown::Write);
}
