//! The ceiling that Sluice is measured against on RabbitMQ: a minimal hand-written loop over lapin and nothing else.
//! Confirmed publish to a quorum queue, consume, reply to an exclusive queue, acknowledge; no checks, no batching. Both ways
//! carry what Sluice's protocol cannot do without and nothing more, in headers as Sluice does: the id and the way back,
//! and the id of the reply.
//!
//! `raw_amqp serve URL` answers until it is killed; `raw_amqp ask URL WINDOW SECONDS BYTES` prints what it measured as
//! JSON. `cargo xtask bench` runs both.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties};

const QUEUE: &str = "raw";
const REPLY_TO: &str = "reply-to";
const ID: &str = "id";
/// Above any window, so that the prefetch is never what limits.
const PREFETCH: u16 = 2000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", url] => serve(url).await,
        ["ask", url, window, seconds, bytes] => ask(url, window.parse()?, seconds.parse()?, bytes.parse()?).await,
        _ => bail!("usage: raw_amqp serve URL | raw_amqp ask URL WINDOW SECONDS BYTES"),
    }
}

fn headers<const N: usize>(pairs: [(&str, &str); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in pairs {
        table.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    table
}

fn text(properties: &BasicProperties, name: &str) -> Result<String> {
    let value = properties.headers().as_ref().and_then(|table| table.inner().get(name));
    match value {
        Some(AMQPValue::LongString(text)) => Ok(text.to_string()),
        _ => bail!("a message has no `{name}`"),
    }
}

async fn serve(url: &str) -> Result<()> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let (taking, telling) = (connection.create_channel().await?, connection.create_channel().await?);
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let quorum = headers([("x-queue-type", "quorum")]);
    taking.queue_declare(QUEUE.into(), options, quorum).await?;
    taking.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let mut messages =
        taking.basic_consume(QUEUE.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default()).await?;
    println!("serving");
    while let Some(message) = messages.next().await {
        let message = message?;
        let inbox: ShortString = text(&message.properties, REPLY_TO)?.into();
        let id = headers([(ID, &text(&message.properties, ID)?)]);
        let properties = BasicProperties::default().with_headers(id);
        telling.basic_publish("".into(), inbox, BasicPublishOptions::default(), &message.data, properties).await?;
        message.acker.ack(BasicAckOptions::default()).await?;
    }
    Ok(())
}

async fn ask(url: &str, window: usize, seconds: f64, bytes: usize) -> Result<()> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let (asking, hearing) = (connection.create_channel().await?, connection.create_channel().await?);
    asking.confirm_select(ConfirmSelectOptions::default()).await?;
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let inbox = hearing.queue_declare("".into(), options, FieldTable::default()).await?.name().to_string();
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let mut answers = hearing.basic_consume(inbox.as_str().into(), "".into(), options, FieldTable::default()).await?;
    let body = vec![b'x'; bytes];
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let began = Instant::now();
    let mut open: HashMap<u64, Instant> = HashMap::new();
    let mut confirms = FuturesUnordered::new();
    let mut latencies: Vec<u64> = Vec::new();
    let mut next = 0_u64;
    loop {
        let now = Instant::now();
        while open.len() < window && now < until {
            let table = headers([(ID, &format!("{inbox}-{next}")), (REPLY_TO, &inbox)]);
            let properties = BasicProperties::default().with_delivery_mode(2).with_headers(table);
            open.insert(next, Instant::now());
            next += 1;
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            confirms.push(asking.basic_publish("".into(), QUEUE.into(), options, &body, properties).await?);
        }
        if open.is_empty() {
            break;
        }
        tokio::select! {
            biased;
            Some(answer) = answers.next() => {
                let id = text(&answer?.properties, ID)?;
                let number: u64 = id[inbox.len() + 1..].parse()?;
                let sent = open.remove(&number).context("an answer comes once")?;
                latencies.push(sent.elapsed().as_micros() as u64);
            }
            Some(confirm) = confirms.next() => stored(confirm?)?,
        }
    }
    let elapsed = began.elapsed().as_secs_f64();
    while let Some(confirm) = confirms.next().await {
        stored(confirm?)?;
    }
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
    let (count, p50, p99) = (latencies.len(), at(0.5), at(0.99));
    println!("{}", serde_json::json!({ "requests": count, "seconds": elapsed, "p50_ms": p50, "p99_ms": p99 }));
    Ok(())
}

fn stored(confirmation: Confirmation) -> Result<()> {
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        other => bail!("not stored: {other:?}"),
    }
}
