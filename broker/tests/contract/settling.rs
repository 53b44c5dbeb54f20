//! What becomes of a delivery.

use std::time::{Duration, Instant};

use anyhow::Result;
use sluice_core::broker::{Death, Settlement};
use sluice_core::{ErrorCode, Lane};

use crate::rig::{self, HOLD, Rig, counts, fill, id, model, next, nothing, request, wait_for_counts, with_queue};

pub async fn done_removes(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    let mut consumer = broker.consume(&model(), 8).await?;
    broker.submit(request("r1")).await?;
    next(&mut consumer).await?.hold.settle(Settlement::Done).await?;
    wait_for_counts(&broker, (0, 0)).await
}

pub async fn a_request_is_redelivered_when_its_consumer_dies(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    broker.submit(request("r1")).await?;
    let doomed = rig::connection(rig).await?;
    let mut consumer = doomed.consume(&model(), 8).await?;
    let delivery = next(&mut consumer).await?;
    assert_eq!(delivery.charged, 0);
    drop((delivery, consumer));
    doomed.close().await?;
    let mut consumer = broker.consume(&model(), 8).await?;
    let again = next(&mut consumer).await?;
    assert_eq!((id(&again).as_str(), again.charged), ("r1", 1), "its death charges what it held");
    again.hold.settle(Settlement::Done).await?;
    Ok(())
}

pub async fn a_retry_comes_back_after_its_delay_and_is_charged(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    broker.submit(request("r1")).await?;
    let mut consumer = broker.consume(&model(), 8).await?;
    let asked = Instant::now();
    next(&mut consumer).await?.hold.settle(Settlement::Retry(Duration::from_millis(900))).await?;
    let again = next(&mut consumer).await?;
    assert_eq!(again.charged, 1);
    assert!(asked.elapsed() >= Duration::from_millis(890), "it came back after {:?}", asked.elapsed());
    again.hold.settle(Settlement::Done).await?;
    Ok(())
}

pub async fn delayed_retries_do_not_hold_up_fresh_work(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    fill(&broker, Lane::Normal, 50).await?;
    let mut consumer = broker.consume(&model(), 8).await?;
    for _ in 0..50 {
        next(&mut consumer).await?.hold.settle(Settlement::Retry(Duration::from_secs(60))).await?;
    }
    broker.submit(request("fresh")).await?;
    let delivery = next(&mut consumer).await?;
    assert_eq!(id(&delivery), "fresh");
    delivery.hold.settle(Settlement::Done).await?;
    wait_for_counts(&broker, (0, 50)).await
}

pub async fn giving_back_charges_no_attempt_and_keeps_the_place(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    for id in ["r1", "r2", "r3"] {
        broker.submit(request(id)).await?;
    }
    for _ in 0..3 {
        // Each round another host that drains.
        let host = rig::connection(rig).await?;
        let mut consumer = host.consume(&model(), 3).await?;
        let delivery = next(&mut consumer).await?;
        if broker.capabilities().keeps_the_place {
            assert_eq!(id(&delivery), "r1", "first in the queue");
        }
        assert_eq!(delivery.charged, 0, "`{}` was charged", id(&delivery));
        consumer.stop().await;
        delivery.hold.settle(Settlement::GiveBack).await?;
        host.close().await?;
    }
    let mut consumer = broker.consume(&model(), 3).await?;
    let first = next(&mut consumer).await?;
    let name = id(&first);
    first.hold.settle(Settlement::Retry(Duration::ZERO)).await?;
    let charged = loop {
        let delivery = next(&mut consumer).await?;
        if id(&delivery) == name {
            break delivery.charged;
        }
        delivery.hold.settle(Settlement::Done).await?;
    };
    assert_eq!(charged, 1, "a real attempt is still charged after three that were waived");
    Ok(())
}

fn death() -> Death {
    Death {
        code: ErrorCode::ModelFailed,
        reason: "the model raised\nan error".into(),
        attempts: 3,
        host: "host-7".into(),
        at: 1_700_000_000_000,
    }
}

pub async fn a_dead_letter_tells_why_and_the_original_is_gone(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    let mut consumer = broker.consume(&model(), 8).await?;
    for id in ["r1", "r2"] {
        broker.submit(request(id)).await?;
        next(&mut consumer).await?.hold.settle(Settlement::Dead(death())).await?;
    }
    assert_eq!(counts(&broker).await?, (0, 0));
    let letters = broker.dead_letters(&model(), 10).await?;
    assert_eq!(letters.iter().map(|letter| letter.id.as_str()).collect::<Vec<_>>(), ["r2", "r1"]);
    let expected = Death { reason: "the model raised an error".into(), ..death() };
    assert_eq!(letters[0].death, expected);
    assert_eq!(&letters[0].body[..], b"body");
    assert!(letters[0].headers.iter().any(|(name, value)| name == "sluice-reply-to" && value == "inbox:_INBOX.nobody"));
    assert_eq!(broker.dead_letters(&model(), 1).await?.len(), 1);
    assert!(broker.dead_letters(&"other".parse()?, 10).await?.is_empty());
    Ok(())
}

pub async fn what_cannot_be_stored_as_a_dead_letter_is_not_removed(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    broker.submit(request("r1")).await?;
    rig.lose_dead_letters().await?;
    let mut consumer = broker.consume(&model(), 8).await?;
    let delivery = next(&mut consumer).await?;
    assert!(delivery.hold.settle(Settlement::Dead(death())).await.is_err(), "there is nowhere to store it");
    assert_eq!(id(&next(&mut consumer).await?), "r1", "so it is still in the queue");
    Ok(())
}

pub async fn a_dead_letter_too_large_to_keep_is_kept_without_its_body(rig: &mut dyn Rig) -> Result<()> {
    let broker = rig::with_limits(rig, 100, 16 * 1024 * 1024).await?;
    if !broker.capabilities().limits_message_size_per_queue {
        // Only the body counts there: what is said of it always fits.
        return Ok(());
    }
    // As large as the broker takes: there is no room for the reason beside it.
    let largest = rig.largest_body();
    let mut submission = request("r1");
    submission.body = vec![0; largest].into();
    while let Err(error) = broker.submit(submission.clone()).await {
        assert!(matches!(error, sluice_core::BrokerError::TooLarge { .. }), "{error:?}");
        submission.body = submission.body.slice(64..);
    }
    let mut consumer = broker.consume(&model(), 8).await?;
    let reason = "because ".repeat(100);
    next(&mut consumer).await?.hold.settle(Settlement::Dead(Death { reason, ..death() })).await?;
    let letters = broker.dead_letters(&model(), 10).await?;
    assert!(
        letters[0].body.is_empty() && letters[0].death.reason.contains("too large to be kept"),
        "{:?}",
        letters[0].death
    );
    wait_for_counts(&broker, (0, 0)).await
}

pub async fn headers_that_leave_no_room_can_be_tried_again_and_kept(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    let long = "x".repeat(rig.longest_header());
    let headers = [("ce-id", "r1"), ("sluice-reply-to", "inbox:_INBOX.nobody"), ("their-own", &long)];
    rig.submit_raw(&model(), &headers, b"body").await?;
    let mut consumer = broker.consume(&model(), 8).await?;
    let mut charged = Vec::new();
    for settlement in [Settlement::GiveBack, Settlement::Retry(Duration::ZERO)] {
        let delivery = next(&mut consumer).await?;
        assert_eq!(id(&delivery), "r1");
        charged.push(delivery.charged);
        delivery.hold.settle(settlement).await?;
    }
    let last = next(&mut consumer).await?;
    charged.push(last.charged);
    assert_eq!((charged, &last.body[..]), (vec![0, 0, 1], &b"body"[..]));
    assert!(last.envelope.is_ok_and(|envelope| envelope.reply_to.is_some()), "what is read of it stays");
    last.hold.settle(Settlement::Dead(death())).await?;
    wait_for_counts(&broker, (0, 0)).await?;
    let letters = broker.dead_letters(&model(), 10).await?;
    assert_eq!((letters.len(), letters[0].id.as_str(), &letters[0].body[..]), (1, "r1", &b"body"[..]));
    assert!(letters[0].death.reason.contains("the model raised an error"), "{:?}", letters[0].death);
    Ok(())
}

pub async fn a_request_of_long_headers_becomes_a_dead_letter_at_once(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    let long = "x".repeat(rig.longest_header());
    let mut consumer = broker.consume(&model(), 8).await?;
    let headers = [("ce-id", "r1"), ("sluice-reply-to", "inbox:_INBOX.nobody"), ("their-own", &long)];
    rig.submit_raw(&model(), &headers, b"body").await?;
    let delivery = next(&mut consumer).await?;
    let other = request("r2");
    broker.submit(other).await?;
    let beside = next(&mut consumer).await?;
    let reason = "because ".repeat(30_000);
    delivery.hold.settle(Settlement::Dead(Death { reason, ..death() })).await?;
    let letters = broker.dead_letters(&model(), 10).await?;
    let reason = &letters[0].death.reason;
    assert!(reason.contains("too large to be kept") && reason.contains("because"), "{reason}");
    assert!(letters[0].headers.iter().all(|(_, value)| value.len() < 10_000));
    assert_eq!(beside.charged, 0);
    beside.hold.settle(Settlement::Done).await?;
    wait_for_counts(&broker, (0, 0)).await
}

pub async fn a_hold_is_renewed_over_a_long_run(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    broker.submit(request("r1")).await?;
    let mut consumer = broker.consume(&model(), 8).await?;
    let delivery = next(&mut consumer).await?;
    let other = rig::connection(rig).await?;
    let mut idle = other.consume(&model(), 8).await?;
    let until = Instant::now() + 3 * HOLD;
    while Instant::now() < until {
        nothing(&mut idle).await?;
    }
    delivery.hold.settle(Settlement::Done).await?;
    wait_for_counts(&broker, (0, 0)).await
}
