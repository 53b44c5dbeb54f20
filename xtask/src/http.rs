//! Plain HTTP on loopback: what tests and the demo need of it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result};

/// A GET: the status code and the body.
pub fn get(address: &str, path: &str) -> Result<(u16, String)> {
    send(address, &format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n"))
}

/// A PUT without a body: the status code and the body.
pub fn put(address: &str, path: &str) -> Result<(u16, String)> {
    send(address, &format!("PUT {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n"))
}

/// Any method with a JSON body, as RabbitMQ's user guest: the status code and the body.
pub fn as_guest(method: &str, address: &str, path: &str, json: &str) -> Result<(u16, String)> {
    // `guest:guest` in base 64, as HTTP wants it.
    let head = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\nAuthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n");
    let length = json.len();
    send(address, &format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{json}"))
}

fn send(address: &str, request: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("nothing listens on {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("not an HTTP answer")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("not an HTTP status line")?;
    Ok((status, body.to_owned()))
}
