//! What happens around an outage.

use std::time::Duration;

use anyhow::Result;
use sluice_broker::{Options, Patience, connect};
use sluice_core::broker::{BrokerError, QueueLimits, Settlement};

use crate::rig::{self, Rig, SOON, id, model, next, request, with_queue};

pub async fn both_ends_go_on_after_the_broker_restarts(rig: &mut dyn Rig) -> Result<()> {
    let producer = with_queue(rig).await?;
    let worker = rig::connection(rig).await?;
    let mut consumer = worker.consume(&model(), 8).await?;
    let mut signals = worker.listen("changes").await?;
    producer.submit(request("before")).await?;
    let held = next(&mut consumer).await?;
    rig.kill()?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    rig.restart()?;
    // Whether this still counts is the broker's affair; if not, it says so, and the request comes again.
    let _ = held.hold.settle(Settlement::Done).await;
    // Repeating a publish whose ack did not come is safe: the submission id stays.
    let deadline = tokio::time::Instant::now() + SOON;
    while let Err(error) = producer.submit(request("after")).await {
        assert!(error.is_transient(), "{error:?}");
        assert!(tokio::time::Instant::now() < deadline, "{error:?}");
    }
    loop {
        let delivery = next(&mut consumer).await?;
        let name = id(&delivery);
        delivery.hold.settle(Settlement::Done).await?;
        if name == "after" {
            break;
        }
    }
    producer.signal("changes", "x".into()).await?;
    tokio::time::timeout(SOON, signals.next()).await??;
    Ok(())
}

pub async fn a_service_may_start_before_its_broker(rig: &mut dyn Rig) -> Result<()> {
    let mut late = rig.absent()?;
    let options = Options { patience: Patience::Wait, ..late.options() };
    let early = tokio::spawn(async move { connect(&options).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!early.is_finished(), "it waits");
    late.restart()?;
    let broker = tokio::time::timeout(SOON, early).await???;
    assert!(broker.queues().await?.is_empty());
    Ok(())
}

pub async fn a_command_gives_up_and_names_the_url(rig: &mut dyn Rig) -> Result<()> {
    let absent = rig.absent()?;
    let options = Options { patience: Patience::default(), ..absent.options() };
    let error = connect(&options).await.err().expect("nothing listens there");
    assert!(matches!(error, BrokerError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&options.shown_url()), "{error}");
    let error = connect(&Options::new("http://127.0.0.1", "command")).await.err().expect("not a broker");
    assert!(error.to_string().contains("nats://"), "{error}");
    Ok(())
}

pub async fn a_broker_that_is_emptied_is_noticed_and_served_again(rig: &mut dyn Rig) -> Result<()> {
    // As a worker, which waits for its broker.
    let options = Options { patience: Patience::Wait, ..rig.options() };
    let worker = connect(&options).await?;
    let limits = QueueLimits { length: 1000, message_bytes: 1024 };
    let _ = worker.ensure_queue(&model(), &limits).await?;
    let mut signals = worker.listen("changes").await?;
    let mut consumer = worker.consume(&model(), 8).await?;
    rig::nothing(&mut consumer).await?;
    rig.wipe()?;
    let deadline = tokio::time::Instant::now() + SOON;
    while consumer.trouble().is_none() {
        assert!(tokio::time::Instant::now() < deadline, "a broker that is gone is noticed");
        let _ = tokio::time::timeout(Duration::from_millis(200), consumer.next()).await;
    }
    rig.come_back_empty()?;
    loop {
        // Until it is reached, something else is told.
        let error = rig::lost(&mut consumer).await?;
        if error.is_of_a_lost_queue() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let _ = worker.ensure_queue(&model(), &limits).await?;
    let producer = rig::connection(rig).await?;
    producer.submit(request("after")).await?;
    let delivery = rig::next_after_repair(&mut consumer).await?;
    assert_eq!(id(&delivery), "after");
    delivery.hold.settle(Settlement::Done).await?;
    // Who listens is heard again as well.
    let heard = async {
        loop {
            producer.signal("changes", "news".into()).await?;
            if let Ok(signal) = tokio::time::timeout(Duration::from_millis(200), signals.next()).await {
                return signal;
            }
        }
    };
    let signal = tokio::time::timeout(SOON, heard).await??;
    assert_eq!(&signal.payload[..], b"news");
    Ok(())
}
