//! A way to a server that can be cut: nothing passes, and neither end is told. When it is healed, what was sent meanwhile arrives.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;

/// How often a cut way looks whether it is healed.
const LOOK: Duration = Duration::from_millis(20);

/// A way to a server on this machine.
pub struct Proxy {
    port: u16,
    cut: Arc<AtomicBool>,
}

impl Proxy {
    /// To a port of this machine.
    pub fn start(target: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let cut = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&cut);
        std::thread::spawn(move || {
            for from in listener.incoming().flatten() {
                let Ok(to) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                let (Ok(back), Ok(answers)) = (from.try_clone(), to.try_clone()) else { continue };
                for (source, sink) in [(from, to), (answers, back)] {
                    let cut = Arc::clone(&shared);
                    std::thread::spawn(move || pass(source, sink, &cut));
                }
            }
        });
        Ok(Self { port, cut })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Lets nothing pass.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        self.cut.store(false, Ordering::Relaxed);
    }
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
