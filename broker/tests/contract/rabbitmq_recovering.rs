//! What only RabbitMQ can do to a client, and what must not follow from it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use sluice_broker::{Options, connect};
use sluice_core::broker::{Broker, BrokerError, Limited, QueueLimits, Settlement, Submission};
use xtask::rabbitmq::RabbitServer;

use crate::rig::{self, PATIENCE, SOON, id, model, next, request};

struct Alone {
    server: RabbitServer,
    _folder: tempfile::TempDir,
}

impl Alone {
    fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        Ok(Self { server: RabbitServer::start(folder.path())?, _folder: folder })
    }

    fn options(&self) -> Options {
        Options {
            management: Some(self.server.management()),
            patience: PATIENCE,
            ..Options::new(self.server.url(), "contract")
        }
    }

    async fn with_queue(&self) -> Result<Arc<dyn Broker>> {
        let broker = connect(&self.options()).await?;
        let limits = QueueLimits { length: 1000, message_bytes: 1024 };
        assert_eq!(broker.ensure_queue(&model(), &limits).await?, Limited::AsAsked);
        Ok(broker)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_closed_by_the_server_is_made_anew_and_stale_tags_settle_nothing() -> Result<()> {
    let alone = Alone::start()?;
    let broker = alone.with_queue().await?;
    let mut consumer = broker.consume(&model(), 8).await?;
    broker.submit(request("r1")).await?;
    let stale = next(&mut consumer).await?;
    alone.server.control(&["close_all_connections", "for a test"])?;
    // The same request again, by another connection, with the tag that the first one had.
    let again = next(&mut consumer).await?;
    assert_eq!((id(&again).as_str(), again.charged), ("r1", 1));
    let error = stale.hold.settle(Settlement::Done).await.expect_err("its connection is gone");
    assert!(error.is_transient(), "{error:?}");
    alone.server.control(&["close_all_connections", "once more"])?;
    let third = next(&mut consumer).await?;
    assert_eq!((id(&third).as_str(), third.charged), ("r1", 2), "the stale tag settled another delivery");
    third.hold.settle(Settlement::Done).await?;
    rig::submit(&broker, request("r2")).await?;
    let delivery = next(&mut consumer).await?;
    assert_eq!(id(&delivery), "r2");
    delivery.hold.settle(Settlement::Done).await?;
    drop(again);
    rig::nothing(&mut consumer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_the_server_closes_costs_only_what_closed_it() -> Result<()> {
    let alone = Alone::start()?;
    let ours = alone.with_queue().await?;
    let mut consumer = ours.consume(&model(), 8).await?;
    // Someone who believes that more is allowed than the server takes.
    let wrong = connect(&Options { largest_message: 64 << 20, ..alone.options() }).await?;
    let body = Bytes::from(vec![0; 9 << 20]);
    let error = wrong.submit(Submission { body, ..request("huge") }).await.expect_err("it is larger than 8 MiB");
    assert!(error.to_string().contains("submitting to model `digits`"), "{error:?}");
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(format!("{error} {cause}").contains("larger than configured max size"), "{error:?}");
    // The channel for publishing is made anew, and who consumes has not noticed.
    for broker in [&wrong, &ours] {
        rig::submit(broker, request("small")).await?;
        let delivery = next(&mut consumer).await?;
        assert_eq!((id(&delivery).as_str(), delivery.charged), ("small", 0));
        delivery.hold.settle(Settlement::Done).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_takes_nothing_says_so_and_takes_again_later() -> Result<()> {
    let alone = Alone::start()?;
    let broker = alone.with_queue().await?;
    // The memory alarm: below any use.
    alone.server.control(&["set_vm_memory_high_watermark", "absolute", "1MB"])?;
    let deadline = tokio::time::Instant::now() + SOON;
    let mut count = 0;
    let error = loop {
        assert!(tokio::time::Instant::now() < deadline, "{count} requests were taken all the same");
        // The alarm takes a moment. Nothing hangs: each is told within seconds.
        match tokio::time::timeout(Duration::from_secs(10), broker.submit(request(&format!("r{count}")))).await? {
            Ok(_) => count += 1,
            Err(error @ BrokerError::Blocked(_)) => break error,
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
    };
    assert!(error.is_transient() && error.to_string().contains("memory"), "{error}");
    // Whatever a command does is told why it cannot, at once: over a connection of its own, or one that is blocked already.
    for way in ["asking", "signalling", "submitting", "reading results", "an inbox", "closing"] {
        let fresh = connect(&alone.options()).await?;
        let began = std::time::Instant::now();
        let told = match way {
            "asking" => fresh.ask("describe", Bytes::new(), Duration::from_millis(1500)).await.map(drop),
            "signalling" => fresh.signal("report-now", Bytes::new()).await,
            "submitting" => {
                // It takes the first, and says only then that it takes no more.
                let _ = fresh.submit(request("first")).await;
                fresh.submit(request("second")).await.map(drop)
            }
            "reading results" => broker.results(&"job".parse()?).await.map(drop),
            "an inbox" => broker.inbox().await.map(drop),
            _ => broker.close().await,
        };
        assert!(matches!(told, Err(BrokerError::Blocked(_))), "{way}: {told:?}");
        assert!(began.elapsed() < Duration::from_secs(4), "{way} took {:?}", began.elapsed());
    }
    let broker = connect(&alone.options()).await?;
    assert_eq!(broker.depth(&model()).await?.len(), 3, "what publishes nothing goes on");
    alone.server.control(&["set_vm_memory_high_watermark", "0.9"])?;
    rig::submit(&broker, request("later")).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_do_not_wait_for_a_model_whose_queue_is_full() -> Result<()> {
    let alone = Alone::start()?;
    let broker = alone.with_queue().await?;
    let full = "full".parse()?;
    let limits = QueueLimits { length: 5, message_bytes: 1024 };
    assert_eq!(broker.ensure_queue(&full, &limits).await?, Limited::AsAsked);
    let mut consumer = broker.consume(&full, 4).await?;
    let to_full = |name: String| Submission { model: "full".parse().expect("a name"), ..request(&name) };
    rig::submit(&broker, to_full("retried".into())).await?;
    let retried = next(&mut consumer).await?;
    consumer.stop().await;
    let mut sent = 0;
    // A policy takes a moment, and is not exact.
    while broker.submit(to_full(format!("filler-{sent}"))).await.is_ok() {
        sent += 1;
        assert!(sent < 2000, "the queue is never full");
    }
    // Both wait in queues for retries; that of the full model cannot go where it came from.
    retried.hold.settle(Settlement::Retry(Duration::from_millis(300))).await?;
    broker.submit(request("r1")).await?;
    let mut consumer = broker.consume(&model(), 4).await?;
    next(&mut consumer).await?.hold.settle(Settlement::Retry(Duration::from_millis(300))).await?;
    let back = tokio::time::timeout(Duration::from_secs(10), next(&mut consumer)).await??;
    assert_eq!((id(&back).as_str(), back.charged), ("r1", 1));
    back.hold.settle(Settlement::Done).await?;
    // And the full model's own is not lost.
    let mut consumer = broker.consume(&full, 64).await?;
    let mut found = false;
    for _ in 0..=sent {
        let delivery = next(&mut consumer).await?;
        found |= id(&delivery) == "retried" && delivery.charged == 1;
        delivery.hold.settle(Settlement::Done).await?;
    }
    assert!(found);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sender_set_for_the_broker_does_not_go_round_with_its_request() -> Result<()> {
    let alone = Alone::start()?;
    let broker = alone.with_queue().await?;
    let connection = lapin::Connection::connect(&alone.server.url(), lapin::ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let mut headers = lapin::types::FieldTable::default();
    for (name, value) in [("ce-id", "r1"), ("sluice-reply-to", "inbox:inbox.nobody")] {
        headers.insert(name.into(), lapin::types::AMQPValue::LongString(value.into()));
    }
    let properties = lapin::BasicProperties::default().with_headers(headers).with_expiration("1000".into());
    let (exchange, key) = ("sluice.infer", format!("infer.{}.normal", model()));
    channel.basic_publish(exchange.into(), key.into(), Default::default(), b"body", properties).await?;
    let mut consumer = broker.consume(&model(), 8).await?;
    next(&mut consumer).await?.hold.settle(Settlement::Retry(Duration::from_secs(2))).await?;
    // It comes back after it would have expired.
    let again = next(&mut consumer).await?;
    assert_eq!((id(&again).as_str(), again.charged), ("r1", 1));
    again.hold.settle(Settlement::Done).await?;
    Ok(())
}
