//! Ending a delivery.
//!
//! RabbitMQ raises its delivery count whenever a message goes back, and headers cannot be changed in place. So a
//! retry and a give-back are published anew with what is charged in a header, confirmed, and only then is the original
//! acknowledged. That loses the place in the queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lapin::BasicProperties;
use lapin::options::{BasicAckOptions, BasicRejectOptions};
use lapin::{Acker, Channel};
use tokio::sync::RwLock;
use tracing::debug;

use sluice_core::broker::{BrokerError, Death, Hold, Result, Settlement};
use sluice_core::{Lane, ModelName};

use super::connect::Link;
use super::error::other;
use super::publish::{Published, stored};
use super::{dead, headers, names, queue};

/// How long after its hold was dropped an unsettled request goes back.
const UNSETTLED: Duration = Duration::from_secs(1);

pub(super) struct AmqpHold {
    pub link: Arc<Link>,
    pub model: ModelName,
    pub lane: Lane,
    pub unsettled: Arc<AtomicUsize>,
    /// A channel is closed when nobody has it any more, and what came by it can be settled on no other.
    pub channel: Option<Channel>,
    /// `None` once it is settled.
    pub acker: Option<Acker>,
    pub properties: BasicProperties,
    pub body: Bytes,
    pub charged: u32,
    pub acknowledging: Arc<RwLock<()>>,
}

#[async_trait]
impl Hold for AmqpHold {
    async fn settle(mut self: Box<Self>, settlement: Settlement) -> Result<()> {
        match settlement {
            Settlement::Done => {}
            Settlement::Retry(after) if after.is_zero() => self.publish_anew(self.charged + 1).await?,
            Settlement::Retry(after) => self.publish_later(after).await?,
            Settlement::GiveBack => self.publish_anew(self.charged).await?,
            Settlement::Dead(death) => self.bury(&death).await?,
        }
        self.acknowledge().await
    }
}

impl AmqpHold {
    async fn acknowledge(&mut self) -> Result<()> {
        let Some(acker) = self.acker.take() else { return Ok(()) };
        let _going = self.acknowledging.read().await;
        // A tag means nothing on any channel but its own: if that is gone, the broker delivers the request again.
        match acker.ack(BasicAckOptions::default()).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                Err(BrokerError::TimedOut("settling a request: the connection that it came by is gone".into()))
            }
            Err(error) => Err(other("settling a request", error)),
        }
    }

    /// The request once more. A sender may have left no room for what we say of it: then it goes without what nobody reads.
    fn again(&self, charged: u32) -> Result<BasicProperties> {
        let whole = headers::again(&self.properties, self.lane, charged);
        match self.link.refuse_oversize(&whole) {
            Ok(()) => Ok(whole),
            Err(error) => headers::again_in_part(&self.properties, self.lane, charged).ok_or(error),
        }
    }

    async fn publish_anew(&self, charged: u32) -> Result<()> {
        let properties = self.again(charged)?;
        let queue = names::retried_queue(&self.model);
        match stored(&self.link, names::RETRY, &queue, &self.body, properties, "handing back a request").await? {
            Published::Stored => Ok(()),
            _ => {
                Err(BrokerError::Unusable(format!("a request cannot be handed back: queue `{queue}` is gone or full")))
            }
        }
    }

    async fn publish_later(&self, after: Duration) -> Result<()> {
        let properties = self.again(self.charged + 1)?;
        let queue = names::retry_queue(&self.model, after);
        let what = "retrying a request later";
        let publish = || stored(&self.link, names::RETRY, &queue, &self.body, properties.clone(), what);
        let published = match publish().await? {
            // The first retry after this delay.
            Published::Unroutable => {
                queue::declare(&self.link, names::RETRY, &queue, queue::retry(&self.model, after)).await?;
                publish().await?
            }
            published => published,
        };
        match published {
            Published::Stored => Ok(()),
            _ => Err(BrokerError::Unusable(format!("a request cannot be retried: queue `{queue}` does not take it"))),
        }
    }

    async fn bury(&self, death: &Death) -> Result<()> {
        dead::store(&self.link, &self.model, &self.properties, &self.body, death).await
    }
}

impl Drop for AmqpHold {
    fn drop(&mut self) {
        self.unsettled.fetch_sub(1, Ordering::AcqRel);
        let Some(acker) = self.acker.take() else { return };
        let channel = self.channel.take();
        // Nobody settled it. RabbitMQ would wait for as long as the connection lives: send it back, which charges it. Not at
        // once: if its consumer ends as well, that is one death and one charge.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(UNSETTLED).await;
                let _channel = channel;
                // Not `basic.nack`, which RabbitMQ 4.3 and later do not count as a failed delivery.
                if let Err(error) = acker.reject(BasicRejectOptions { requeue: true }).await {
                    debug!(%error, "a request that was not settled comes back with its connection's end");
                }
            });
        }
    }
}
