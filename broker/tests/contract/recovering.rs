//! What happens around an outage.

use std::time::Duration;

use anyhow::Result;
use sluice_broker::{Options, Patience, connect};
use sluice_core::broker::{BrokerError, Settlement};

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
