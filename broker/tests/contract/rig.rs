//! A broker to test against, and shorthands for what the tests do to it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use sluice_broker::{Options, Patience, connect};
use sluice_core::broker::{Broker, BrokerError, Consumer, Delivery, Limited, QueueLimits, Receipt, Submission};
use sluice_core::{Envelope, Lane, ModelName, ReplyTo};
use xtask::broker::{Kind, Server};

/// How long a test waits for what must happen.
pub const SOON: Duration = Duration::from_secs(60);
/// How long a test watches for what must not happen.
pub const A_WHILE: Duration = Duration::from_millis(700);
/// How long a test waits for its broker: one that has just begun on a loaded machine may be slow to shake hands.
pub const PATIENCE: Patience = Patience::GiveUpAfter(SOON);
/// The hold time in tests: short, so that a redelivery can be waited for.
pub const HOLD: Duration = Duration::from_secs(2);

/// A real broker in a temporary folder.
#[async_trait]
pub trait Rig: Send {
    fn url(&self) -> String;
    /// How to connect to it.
    fn options(&self) -> Options {
        Options { hold_time: Some(HOLD), patience: PATIENCE, ..Options::new(self.url(), "contract") }
    }
    /// One of the same kind that has not been started yet.
    fn absent(&self) -> Result<Box<dyn Rig>>;
    /// Ends it without warning; its store stays.
    fn kill(&mut self) -> Result<()>;
    /// Starts it again on the same port and store.
    fn restart(&mut self) -> Result<()>;
    /// Takes it away with all that it stores.
    fn wipe(&mut self) -> Result<()>;
    /// After [`Rig::wipe`]: it is there again, and empty.
    fn come_back_empty(&mut self) -> Result<()>;
    /// Makes it impossible to store dead letters.
    async fn lose_dead_letters(&self) -> Result<()>;
    /// Makes it impossible to read a lane's depth.
    async fn lose_lane(&self, model: &ModelName, lane: Lane) -> Result<()>;
    /// Makes it a deployment of before there were stored settings.
    async fn forget_settings(&self) -> Result<()>;
    /// As somebody may have done by hand; false where that cannot be.
    async fn keep_dead_letters_for_ever(&self) -> Result<bool>;
    /// About what the broker takes at most, headers included.
    fn largest_body(&self) -> usize;
    /// The length of a value of a header `their-own` that is as long as the broker takes beside `ce-id: r1` and
    /// `sluice-reply-to: inbox:_INBOX.nobody`.
    fn longest_header(&self) -> usize;
    /// Submits a message with these headers, as a careless producer might.
    async fn submit_raw(&self, model: &ModelName, headers: &[(&str, &str)], body: &[u8]) -> Result<()>;
}

pub struct NatsRig {
    server: Server,
    _folder: tempfile::TempDir,
}

impl NatsRig {
    pub fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        Ok(Self { server: Server::start(Kind::Nats, folder.path())?, _folder: folder })
    }

    async fn jetstream(&self) -> Result<async_nats::jetstream::Context> {
        Ok(async_nats::jetstream::new(async_nats::connect(self.url()).await?))
    }
}

#[async_trait]
impl Rig for NatsRig {
    fn url(&self) -> String {
        self.server.url()
    }

    fn absent(&self) -> Result<Box<dyn Rig>> {
        let folder = tempfile::tempdir()?;
        Ok(Box::new(Self { server: Server::prepare(Kind::Nats, folder.path())?, _folder: folder }))
    }

    fn kill(&mut self) -> Result<()> {
        self.server.kill()
    }

    fn restart(&mut self) -> Result<()> {
        self.server.restart()
    }

    fn wipe(&mut self) -> Result<()> {
        self.server.wipe()
    }

    fn come_back_empty(&mut self) -> Result<()> {
        self.server.come_back_empty()
    }

    fn largest_body(&self) -> usize {
        8 * 1024 * 1024
    }

    fn longest_header(&self) -> usize {
        let taken = ["NATS/1.0", "ce-id: r1", "sluice-reply-to: inbox:_INBOX.nobody", "their-own: ", ""];
        usize::from(u16::MAX) - taken.iter().map(|line| line.len() + 2).sum::<usize>()
    }

    async fn lose_dead_letters(&self) -> Result<()> {
        self.jetstream().await?.delete_stream("DEAD").await?;
        Ok(())
    }

    async fn forget_settings(&self) -> Result<()> {
        self.jetstream().await?.delete_stream("SLUICE_SETTINGS").await?;
        Ok(())
    }

    async fn keep_dead_letters_for_ever(&self) -> Result<bool> {
        let jetstream = self.jetstream().await?;
        let config = jetstream.get_stream("DEAD").await?.cached_info().config.clone();
        jetstream.update_stream(async_nats::jetstream::stream::Config { max_age: Duration::ZERO, ..config }).await?;
        Ok(true)
    }

    async fn lose_lane(&self, model: &ModelName, lane: Lane) -> Result<()> {
        self.jetstream().await?.delete_consumer_from_stream(lane.as_str(), format!("INFER_{model}")).await?;
        Ok(())
    }

    async fn submit_raw(&self, model: &ModelName, headers: &[(&str, &str)], body: &[u8]) -> Result<()> {
        let mut all = async_nats::HeaderMap::new();
        for (name, value) in headers {
            all.insert(*name, *value);
        }
        let body = Bytes::copy_from_slice(body);
        self.jetstream().await?.publish_with_headers(format!("infer.{model}.normal"), all, body).await?.await?;
        Ok(())
    }
}

pub struct AmqpRig {
    server: Server,
    _folder: tempfile::TempDir,
}

impl AmqpRig {
    /// A virtual host of its own on a RabbitMQ that the tests of a run share.
    pub fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        Ok(Self { server: Server::share(Kind::RabbitMq, folder.path())?, _folder: folder })
    }

    /// One that can be killed.
    pub fn alone() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        Ok(Self { server: Server::start(Kind::RabbitMq, folder.path())?, _folder: folder })
    }

    async fn channel(&self) -> Result<lapin::Channel> {
        let connection = lapin::Connection::connect(&self.url(), lapin::ConnectionProperties::default()).await?;
        Ok(connection.create_channel().await?)
    }
}

#[async_trait]
impl Rig for AmqpRig {
    fn url(&self) -> String {
        self.server.url()
    }

    fn options(&self) -> Options {
        Options { management: self.server.management(), patience: PATIENCE, ..Options::new(self.url(), "contract") }
    }

    fn absent(&self) -> Result<Box<dyn Rig>> {
        let folder = tempfile::tempdir()?;
        Ok(Box::new(Self { server: Server::prepare(Kind::RabbitMq, folder.path())?, _folder: folder }))
    }

    /// Stopped in good order: RabbitMQ 3.10 writes down where a new quorum queue or stream is only minutes after it was made,
    /// and killed before that it can no longer serve it.
    fn kill(&mut self) -> Result<()> {
        self.server.stop()
    }

    fn restart(&mut self) -> Result<()> {
        self.server.restart()
    }

    fn wipe(&mut self) -> Result<()> {
        self.server.wipe()
    }

    fn come_back_empty(&mut self) -> Result<()> {
        self.server.come_back_empty()
    }

    fn largest_body(&self) -> usize {
        8 * 1024 * 1024
    }

    fn longest_header(&self) -> usize {
        // A frame and a content header, and for each header its length, its type and the length of its value.
        let taken = ["ce-id", "r1", "sluice-reply-to", "inbox:_INBOX.nobody", "their-own"];
        128 * 1024 - 8 - 14 - 4 - 3 * 6 - taken.iter().map(|text| text.len()).sum::<usize>()
    }

    async fn lose_dead_letters(&self) -> Result<()> {
        let channel = self.channel().await?;
        channel.queue_delete(format!("dead.{}", model()).into(), Default::default()).await?;
        Ok(())
    }

    async fn forget_settings(&self) -> Result<()> {
        self.channel().await?.queue_delete("sluice.settings".into(), Default::default()).await?;
        Ok(())
    }

    async fn keep_dead_letters_for_ever(&self) -> Result<bool> {
        Ok(false)
    }

    async fn lose_lane(&self, model: &ModelName, lane: Lane) -> Result<()> {
        let channel = self.channel().await?;
        channel.queue_delete(format!("infer.{model}.{lane}").into(), Default::default()).await?;
        Ok(())
    }

    async fn submit_raw(&self, model: &ModelName, headers: &[(&str, &str)], body: &[u8]) -> Result<()> {
        use lapin::types::{AMQPValue, FieldTable};
        let channel = self.channel().await?;
        channel.confirm_select(Default::default()).await?;
        let mut table = FieldTable::default();
        let mut properties = lapin::BasicProperties::default();
        for (name, value) in headers {
            match *name {
                "content-type" => properties = properties.with_content_type((*value).into()),
                // As the broker writes it.
                "x-delivery-count" => {
                    table.insert((*name).into(), AMQPValue::LongLongInt(value.parse()?));
                }
                name => drop(table.insert(name.into(), AMQPValue::LongString((*value).into()))),
            }
        }
        let key = format!("infer.{model}.normal");
        let properties = properties.with_headers(table);
        channel.basic_publish("sluice.infer".into(), key.into(), Default::default(), body, properties).await?.await?;
        Ok(())
    }
}

/// A connection of its own, as another process would have.
pub async fn connection(rig: &dyn Rig) -> Result<Arc<dyn Broker>> {
    Ok(connect(&rig.options()).await?)
}

pub fn model() -> ModelName {
    "digits".parse().expect("a model name")
}

/// A connection with a queue of ordinary limits.
pub async fn with_queue(rig: &dyn Rig) -> Result<Arc<dyn Broker>> {
    with_limits(rig, 100_000, 1024 * 1024).await
}

pub async fn with_limits(rig: &dyn Rig, length: u64, message_bytes: u64) -> Result<Arc<dyn Broker>> {
    let broker = connection(rig).await?;
    assert_eq!(broker.ensure_queue(&model(), &QueueLimits { length, message_bytes }).await?, Limited::AsAsked);
    Ok(broker)
}

pub fn request(id: &str) -> Submission {
    request_in(Lane::Normal, id)
}

pub fn request_in(lane: Lane, id: &str) -> Submission {
    let reply_to = Some(ReplyTo::Inbox("_INBOX.nobody".into()));
    let envelope = Envelope { lane, reply_to, ..Envelope::new(id.parse().expect("an id")) };
    Submission::new(model(), envelope, Bytes::from_static(b"body"))
}

/// Submits, and again while the queue is full: a limit may take effect a little later.
pub async fn submit(broker: &Arc<dyn Broker>, submission: Submission) -> Result<()> {
    let deadline = tokio::time::Instant::now() + SOON;
    while let Err(error) = broker.submit(submission.clone()).await {
        if !error.is_transient() || tokio::time::Instant::now() > deadline {
            return Err(error.into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Submits `count` requests, many at a time.
pub async fn fill(broker: &Arc<dyn Broker>, lane: Lane, count: usize) -> Result<()> {
    let mut pending = tokio::task::JoinSet::new();
    for index in 0..count {
        let broker = Arc::clone(broker);
        pending.spawn(async move { broker.submit(request_in(lane, &format!("{lane}-{index}"))).await });
    }
    while let Some(receipt) = pending.join_next().await {
        assert_eq!(receipt??, Receipt::Queued);
    }
    Ok(())
}

/// The next delivery, which must come.
pub async fn next(consumer: &mut Box<dyn Consumer>) -> Result<Delivery> {
    let next = tokio::time::timeout(SOON, consumer.next()).await;
    Ok(next.context("no request was delivered")??)
}

/// Asserts that nothing is delivered for a while.
pub async fn nothing(consumer: &mut Box<dyn Consumer>) -> Result<()> {
    match tokio::time::timeout(A_WHILE, consumer.next()).await {
        Err(_) => Ok(()),
        Ok(delivery) => bail!("`{}` was delivered, which should not be", id(&delivery?)),
    }
}

pub fn id(delivery: &Delivery) -> String {
    delivery.envelope.as_ref().map_or_else(|malformed| format!("{malformed:?}"), |envelope| envelope.id.to_string())
}

/// Ready and in flight, summed over the lanes.
pub async fn counts(broker: &Arc<dyn Broker>) -> Result<(u64, u64)> {
    let lanes = broker.depth(&model()).await?;
    let ready = lanes.iter().filter_map(|lane| lane.ready.clone().known()).sum();
    let in_flight = lanes.iter().filter_map(|lane| lane.in_flight.clone().known()).sum();
    Ok((ready, in_flight))
}

/// Waits until the counts are as expected, as far as the broker tells them.
pub async fn wait_for_counts(broker: &Arc<dyn Broker>, mut expected: (u64, u64)) -> Result<()> {
    if !broker.capabilities().counts_in_flight {
        expected.1 = 0;
    }
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let found = counts(broker).await?;
        if found == expected {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            bail!("ready and in flight are {found:?}, not {expected:?}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until a consumer says that nothing can be received, whatever comes before that.
pub async fn lost(consumer: &mut Box<dyn Consumer>) -> Result<BrokerError> {
    let failing = async {
        loop {
            if let Err(error) = consumer.next().await {
                return error;
            }
        }
    };
    tokio::time::timeout(SOON, failing).await.context("the consumer waits as if nothing had happened")
}

/// The next delivery of a consumer that may still find that something is missing.
pub async fn next_after_repair(consumer: &mut Box<dyn Consumer>) -> Result<Delivery> {
    let receiving = async {
        loop {
            match consumer.next().await {
                Ok(delivery) => return delivery,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    tokio::time::timeout(SOON, receiving).await.context("nothing is received although all is there again")
}
