//! Control messages by a topic exchange: at most once, only to those who listen now.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;

use sluice_core::broker::{Answer, BrokerError, Result, Signal, Signals};

use super::connect::Link;
use super::error::other;
use super::publish::{Published, stored};
use super::reply::Listener;
use super::{names, queue};

/// Within this the broker says that it takes no more.
const WORD: Duration = Duration::from_millis(50);

pub(super) async fn send(link: &Link, topic: &str, payload: Bytes) -> Result<()> {
    let properties = BasicProperties::default();
    if link.standing.is_unsure() {
        // Whether somebody listens or not is all the same.
        stored(link, names::exchange_of(topic), topic, &payload, properties, &format!("signalling `{topic}`")).await?;
        // It takes the first message, and says a little later that it takes no more.
        tokio::time::sleep(WORD).await;
        return link.standing.refuse_while_blocked();
    }
    link.standing.refuse_while_blocked()?;
    tell(link, names::exchange_of(topic), topic, &payload, properties).await
}

async fn tell(
    link: &Link,
    exchange: &'static str,
    key: &str,
    payload: &[u8],
    properties: BasicProperties,
) -> Result<()> {
    let channel = link.telling().await?;
    queue::ensure_exchange(link, exchange).await?;
    let sent =
        channel.basic_publish(exchange.into(), key.into(), BasicPublishOptions::default(), payload, properties).await;
    sent.map_err(|error| other(format!("signalling `{key}`"), error))?;
    Ok(())
}

pub(super) async fn listen(link: &Arc<Link>, topic: &str) -> Result<AmqpSignals> {
    let listener = Listener::start(link, names::exchange_of(topic), topic.to_owned()).await?;
    Ok(AmqpSignals { link: Arc::clone(link), listener })
}

pub(super) async fn ask(link: &Arc<Link>, topic: &str, payload: Bytes, limit: Duration) -> Result<Option<Bytes>> {
    let address = names::new_inbox(link.user.as_deref());
    let mut answers = Listener::start(link, names::ANSWERS, address.clone()).await?;
    let properties = BasicProperties::default().with_reply_to(address.into());
    match stored(link, names::exchange_of(topic), topic, &payload, properties, &format!("asking `{topic}`")).await? {
        Published::Stored => {}
        // Nobody listens.
        Published::Unroutable | Published::Refused => {
            tokio::time::sleep(WORD).await;
            return link.standing.refuse_while_blocked().map(|()| None);
        }
    }
    tokio::select! {
        biased;
        answer = answers.next() => Ok(Some(answer?.data.into())),
        // It takes the first message, and says only then that it takes no more: whoever should answer cannot.
        error = link.standing.until_blocked() => Err(error),
        () = tokio::time::sleep(limit) => Ok(None),
    }
}

pub(super) struct AmqpSignals {
    link: Arc<Link>,
    listener: Listener,
}

#[async_trait]
impl Signals for AmqpSignals {
    async fn next(&mut self) -> Result<Signal> {
        let message = self.listener.next().await?;
        let answer = message
            .properties
            .reply_to()
            .as_ref()
            .map(|to| Box::new(AmqpAnswer { link: Arc::clone(&self.link), to: to.to_string() }) as Box<dyn Answer>);
        Ok(Signal { payload: message.data.into(), answer })
    }
}

struct AmqpAnswer {
    link: Arc<Link>,
    to: String,
}

#[async_trait]
impl Answer for AmqpAnswer {
    async fn send(self: Box<Self>, payload: Bytes) -> Result<()> {
        // With this program's own rights, and at a stranger's word: to those who listen for answers, and nobody else.
        if !names::is_inbox(&self.to) {
            return Err(BrokerError::Unusable(format!("`{}` is not an inbox of this broker", self.to)));
        }
        tell(&self.link, names::ANSWERS, &self.to, &payload, BasicProperties::default()).await
    }
}
