//! Reading a stream queue from its beginning: dead letters and durable results.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};

use sluice_core::broker::{BrokerError, Result};

use super::connect::Link;
use super::error::may_pass;
use super::queue;

/// Messages on their way at once.
const PREFETCH: u16 = 500;
/// After as many messages as the broker counted, a pause of this length is the end.
const END: Duration = Duration::from_millis(300);
/// Before that, one of this length.
const LATE: Duration = Duration::from_secs(5);

/// A reader of a stream.
pub(super) struct Reader {
    consumer: Consumer,
    _channel: Channel,
}

/// A message and its place.
pub(super) struct Entry {
    pub offset: u64,
    pub delivery: Delivery,
}

impl Reader {
    pub(super) async fn open(link: &Link, queue: &str, from: u64) -> Result<Self> {
        Self::at(link, queue, AMQPValue::LongLongInt(i64::try_from(from).unwrap_or(i64::MAX))).await
    }

    /// Begins with what was written last, which is one message if it was written alone.
    pub(super) async fn at_the_last(link: &Link, queue: &str) -> Result<Self> {
        Self::at(link, queue, AMQPValue::LongString("last".into())).await
    }

    async fn at(link: &Link, queue: &str, place: AMQPValue) -> Result<Self> {
        let what = format!("reading stream `{queue}`");
        let channel = link.channel().await?;
        link.standing.within(&what, channel.basic_qos(PREFETCH, BasicQosOptions::default())).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), place);
        let options = BasicConsumeOptions::default();
        let consumer =
            link.standing.within(&what, channel.basic_consume(queue.into(), "".into(), options, arguments)).await?;
        Ok(Self { consumer, _channel: channel })
    }

    /// The next message; `None` once the connection is lost.
    pub(super) async fn next(&mut self) -> Option<Entry> {
        let delivery = self.consumer.next().await?.ok()?;
        // Nothing is removed by this: it only asks for more.
        delivery.acker.ack(BasicAckOptions::default()).await.ok()?;
        let headers = delivery.properties.headers().as_ref();
        let offset = match headers.and_then(|table| table.inner().get("x-stream-offset")) {
            Some(AMQPValue::LongLongInt(offset)) => u64::try_from(*offset).unwrap_or(0),
            _ => 0,
        };
        Some(Entry { offset, delivery })
    }
}

/// Everything that a stream holds now, in order, until `take` says that it has enough. A stream that is not there is empty.
pub(super) async fn scan(link: &Link, queue: &str, mut take: impl FnMut(Entry) -> bool) -> Result<()> {
    // A broker that has just started serves its streams a little later.
    let deadline = Instant::now() + LATE;
    let open = async || -> Result<Option<(u64, Reader)>> {
        match queue::waiting(link, queue).await? {
            Some(count) => Ok(Some((count, Reader::open(link, queue, 0).await?))),
            None => Ok(None),
        }
    };
    let (count, mut reader) = loop {
        match open().await {
            Ok(Some(opened)) => break opened,
            Ok(None) => return Ok(()),
            Err(error) if !may_pass(&error) || Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(END).await,
        }
    };
    let mut read = 0;
    loop {
        let patience = if read < count { LATE } else { END };
        let entry = match tokio::time::timeout(patience, reader.next()).await {
            Ok(Some(entry)) => entry,
            // Part of it would pass for all.
            Ok(None) => return Err(BrokerError::TimedOut(format!("reading stream `{queue}`"))),
            Err(_) => return Ok(()),
        };
        read += 1;
        if take(entry) {
            return Ok(());
        }
    }
}
