//! Submitting a request: a mandatory publish whose confirm is awaited.

use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel, Confirmation};

use sluice_core::broker::{BrokerError, Receipt, Result, Submission};
use sluice_core::clock::unix_ms;

use super::connect::Link;
use super::{headers, names, queue};

/// What became of a message.
pub(super) enum Published {
    Stored,
    /// No queue is bound there.
    Unroutable,
    /// The queue is full.
    Refused,
}

pub(super) async fn submit(link: &Link, submission: Submission) -> Result<Receipt> {
    submission.refuse_expired(unix_ms())?;
    let Submission { model, submission_id, envelope, body } = submission;
    let largest = link.options.largest_message;
    // The broker would close the channel, and with it everyone else's publishes.
    if body.len() as u64 > largest {
        let limit = format!("`broker.largest_message` is {largest} bytes");
        return Err(BrokerError::TooLarge { size: body.len(), limit });
    }
    let queue = names::lane_queue(&model, envelope.lane);
    let properties = headers::of_envelope(&envelope, submission_id);
    match stored(link, names::WORK, &queue, &body, properties, &format!("submitting to model `{model}`")).await? {
        Published::Stored => Ok(Receipt::Queued),
        Published::Unroutable => Err(BrokerError::UnknownModel(model)),
        Published::Refused => Err(BrokerError::QueueFull(model)),
    }
}

/// Publishes and returns once the broker says what became of the message.
///
/// The client gives a returned message to whichever publish of the channel is confirmed next, so that with many under way one
/// that was stored is taken for unroutable and the other way round. Therefore a publish to where nothing was stored yet on
/// this connection goes by a channel that has no other under way.
pub(super) async fn stored(
    link: &Link,
    exchange: &'static str,
    key: &str,
    body: &[u8],
    properties: BasicProperties,
    what: &str,
) -> Result<Published> {
    link.standing.refuse_while_blocked()?;
    link.refuse_oversize(&properties)?;
    let place = format!("{exchange} {key}");
    // First the channel: with a new connection, what was seen on the last one is forgotten.
    let channel = link.publishing().await?;
    // Publishing to an exchange that is not there would end the channel for everyone.
    queue::ensure_exchange(link, exchange).await?;
    let mut came_back = false;
    let (mut place_of_channel, alone) = loop {
        if !came_back && link.has_seen(&place) {
            let published = confirmed(link, &channel, exchange, key, body, properties.clone(), what).await?;
            if !matches!(published, Published::Unroutable) {
                return Ok(published);
            }
            // It, or another: the one message that is published a second time is made sure of.
            link.forget(&place);
            came_back = true;
        }
        let (mut place_of_channel, alone) = link.one_at_a_time().await?;
        if came_back || !link.has_seen(&place) {
            break (place_of_channel, alone);
        }
        // Of many that came at once the first has shown meanwhile that the place is there: the others need not go one by one.
        *place_of_channel = Some(alone);
    };
    let published = confirmed(link, &alone, exchange, key, body, properties, what).await?;
    // Only now: after an error, or a caller who waits no longer, what is still to come on it belongs to nobody.
    *place_of_channel = Some(alone);
    // Whether somebody listens to a signal is another question each time.
    if matches!(published, Published::Stored) && !names::is_for_signals(exchange) {
        link.note_seen(&place);
    }
    Ok(published)
}

async fn confirmed(
    link: &Link,
    channel: &Channel,
    exchange: &str,
    key: &str,
    body: &[u8],
    properties: BasicProperties,
    what: &str,
) -> Result<Published> {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let confirmed =
        async { channel.basic_publish(exchange.into(), key.into(), options, body, properties).await?.await };
    match link.standing.within(what, confirmed).await? {
        // An unroutable message is acknowledged too, and comes back inside.
        Confirmation::Ack(None) => Ok(Published::Stored),
        Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)) => Ok(Published::Unroutable),
        Confirmation::Nack(None) => Ok(Published::Refused),
        Confirmation::NotRequested => Err(BrokerError::TimedOut(format!("{what}: no confirm"))),
    }
}
