//! The ceiling that Sluice is measured against: a minimal hand-written loop over NATS JetStream and nothing else.
//! Durable publish, pull, reply to an inbox, acknowledge; no checks, no batching. Both ways carry what Sluice's protocol
//! cannot do without and nothing more, in headers as Sluice does: the id and the way back, and the id of the reply.
//!
//! `raw_nats serve URL` answers until it is killed; `raw_nats ask URL WINDOW SECONDS BYTES` prints what it measured as
//! JSON. `cargo xtask bench` runs both.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

const STREAM: &str = "RAW";
const SUBJECT: &str = "raw";
const SUBMISSION_ID: &str = "Nats-Msg-Id";
const REPLY_TO: &str = "reply-to";
const ID: &str = "id";
/// Pulled at once; far above any window, so that pulling is never what limits.
const PULL: usize = 2048;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", url] => serve(url).await,
        ["ask", url, window, seconds, bytes] => ask(url, window.parse()?, seconds.parse()?, bytes.parse()?).await,
        _ => bail!("usage: raw_nats serve URL | raw_nats ask URL WINDOW SECONDS BYTES"),
    }
}

async fn serve(url: &str) -> Result<()> {
    let client = async_nats::connect(url).await?;
    let jetstream = async_nats::jetstream::new(client.clone());
    let config = Config {
        name: STREAM.into(),
        subjects: vec![SUBJECT.into()],
        retention: RetentionPolicy::WorkQueue,
        ..Default::default()
    };
    jetstream.get_or_create_stream(config).await?;
    let consumer = pull::Config {
        durable_name: Some("raw".into()),
        ack_policy: AckPolicy::Explicit,
        max_ack_pending: 100_000,
        ..Default::default()
    };
    let consumer = jetstream.create_consumer_on_stream(consumer, STREAM).await?;
    let mut messages = consumer.stream().max_messages_per_batch(PULL).messages().await?;
    println!("serving");
    while let Some(message) = messages.next().await {
        let message = message?;
        let asked = message.headers.as_ref().context("a request has headers")?;
        let inbox = asked.get(REPLY_TO).context("a way back")?.as_str().to_owned();
        let mut headers = HeaderMap::new();
        headers.insert(ID, asked.get(SUBMISSION_ID).context("an id")?.as_str());
        client.publish_with_headers(inbox, headers, message.payload.clone()).await?;
        let reply = message.message.reply.clone().context("an acknowledgement's subject")?;
        client.publish(reply, Bytes::from_static(b"+ACK")).await?;
    }
    Ok(())
}

async fn ask(url: &str, window: usize, seconds: f64, bytes: usize) -> Result<()> {
    let client = async_nats::connect(url).await?;
    let jetstream =
        async_nats::jetstream::context::ContextBuilder::new().max_ack_inflight(20_000).build(client.clone());
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    client.flush().await?;
    let body = Bytes::from(vec![b'x'; bytes]);
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let began = Instant::now();
    let mut open: HashMap<u64, Instant> = HashMap::new();
    let mut acks = FuturesUnordered::new();
    let mut latencies: Vec<u64> = Vec::new();
    let mut next = 0_u64;
    loop {
        let now = Instant::now();
        while open.len() < window && now < until {
            let mut headers = HeaderMap::new();
            headers.insert(SUBMISSION_ID, format!("{inbox}-{next}"));
            headers.insert(REPLY_TO, inbox.as_str());
            open.insert(next, Instant::now());
            next += 1;
            acks.push(jetstream.publish_with_headers(SUBJECT, headers, body.clone()).await?.into_future());
        }
        if open.is_empty() {
            break;
        }
        tokio::select! {
            biased;
            Some(answer) = answers.next() => {
                let id = answer.headers.as_ref().and_then(|headers| headers.get(ID)).context("a reply has an id")?;
                let number: u64 = id.as_str()[inbox.len() + 1..].parse()?;
                let sent = open.remove(&number).context("an answer comes once")?;
                latencies.push(sent.elapsed().as_micros() as u64);
            }
            Some(ack) = acks.next() => drop(ack?),
        }
    }
    let elapsed = began.elapsed().as_secs_f64();
    while let Some(ack) = acks.next().await {
        ack?;
    }
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
    let (count, p50, p99) = (latencies.len(), at(0.5), at(0.99));
    println!("{}", serde_json::json!({ "requests": count, "seconds": elapsed, "p50_ms": p50, "p99_ms": p99 }));
    Ok(())
}
