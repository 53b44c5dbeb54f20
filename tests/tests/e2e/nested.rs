//! Headers within headers: RabbitMQ takes tables as deep as a frame holds, and whoever receives them reads them by recursion.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_core::broker::Submission;
use sluice_e2e::fixture;
use sluice_e2e::stack::{SOON, Stack, envelope, floats, next, rows};
use xtask::broker::Kind;

/// As deep as a frame of 128 KiB holds: the server's own limit.
const DEPTH: usize = 20_000;

#[tokio::test(flavor = "multi_thread")]
async fn tables_within_tables_end_no_worker() -> Result<()> {
    let mut stack = Stack::start(Kind::RabbitMq)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "")?;
    let worker = stack.worker(&[(&package, 1)], "")?;
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    let mut publisher = Publisher::connect(&stack.server.url())?;
    publisher.publish("infer.m.normal", &nested(DEPTH))?;
    let taken = tokio::time::Instant::now() + SOON;
    while worker.metric("sluice_requests_total", &[])? < 1.0 {
        ensure!(tokio::time::Instant::now() < taken, "it was not settled");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    broker.submit(Submission::new("m".parse()?, envelope("r1", &*inbox), rows(&[[1.0; 4]]))).await?;
    ensure!(floats(&next(&mut inbox).await?) == Ok(vec![2.0; 4]));
    Ok(())
}

/// A header that is a table with a table in it, and so on; the innermost is void. Each takes six bytes: a type, a length and an empty name.
fn nested(depth: usize) -> Vec<u8> {
    let mut header = short("evil");
    for within in (0..depth as u32).rev() {
        header.push(b'F');
        header.extend((within * 6 + 2).to_be_bytes());
        header.push(0);
    }
    header.push(b'V');
    header
}

fn short(text: &str) -> Vec<u8> {
    [&[text.len() as u8], text.as_bytes()].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

/// Just enough of AMQP 0-9-1 to write what no client library would.
struct Publisher(TcpStream);

impl Publisher {
    fn connect(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("amqp://").context("an AMQP URL")?;
        let (login, place) = rest.split_once('@').context("a login")?;
        let (user, password) = login.split_once(':').context("a password")?;
        let (address, vhost) = place.split_once('/').unwrap_or((place, "/"));
        let mut publisher = Self(TcpStream::connect(address)?);
        publisher.0.set_read_timeout(Some(SOON))?;
        publisher.0.write_all(b"AMQP\0\0\x09\x01")?;
        publisher.read()?;
        let plain = format!("\0{user}\0{password}");
        publisher.method(0, (10, 11), &[long(b""), short("PLAIN"), long(plain.as_bytes()), short("en_US")].concat())?;
        let tune = publisher.read()?;
        publisher.method(0, (10, 31), &[&tune[4..10], &[0, 0]].concat())?;
        publisher.method(0, (10, 40), &[short(&vhost.replace("%2f", "/")), vec![0, 0]].concat())?;
        publisher.read()?;
        publisher.method(1, (20, 10), &[0])?;
        publisher.read()?;
        Ok(publisher)
    }

    fn publish(&mut self, key: &str, headers: &[u8]) -> Result<()> {
        let method = [&[0, 0][..], &short("sluice.infer"), &short(key), &[0]].concat();
        self.method(1, (60, 40), &method)?;
        let content = [&[0, 60, 0, 0][..], &1_u64.to_be_bytes(), &0x2000_u16.to_be_bytes(), &long(headers)].concat();
        self.frame(2, 1, &content)?;
        self.frame(3, 1, b"x")
    }

    fn method(&mut self, channel: u16, (class, method): (u16, u16), arguments: &[u8]) -> Result<()> {
        self.frame(1, channel, &[&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat())
    }

    fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) -> Result<()> {
        let size = (payload.len() as u32).to_be_bytes();
        let frame = [&[kind][..], &channel.to_be_bytes(), &size, payload, &[0xce]].concat();
        Ok(self.0.write_all(&frame)?)
    }

    /// The payload of the next frame.
    fn read(&mut self) -> Result<Vec<u8>> {
        let mut head = [0; 7];
        self.0.read_exact(&mut head)?;
        let mut payload = vec![0; u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize + 1];
        self.0.read_exact(&mut payload)?;
        Ok(payload)
    }
}
