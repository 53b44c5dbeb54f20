//! What a producer is promised.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use sluice_core::broker::{Broker, BrokerError, Limited, QueueLimits, Receipt, Reply, Settlement, Submission};
use sluice_core::codec::ContentType;
use sluice_core::{Lane, ReplyTo};

use crate::rig::{self, Rig, counts, id, model, next, request, wait_for_counts, with_limits, with_queue};

pub async fn a_request_is_stored_before_its_receipt(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    broker.submit(request("r1")).await?;
    rig.kill()?;
    rig.restart()?;
    let broker = rig::connection(rig).await?;
    let mut consumer = broker.consume(&model(), 8).await?;
    assert_eq!(id(&next(&mut consumer).await?), "r1");
    Ok(())
}

pub async fn a_repeated_submission_is_stored_once(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    let submission = request("r1");
    assert_eq!(broker.submit(submission.clone()).await?, Receipt::Queued);
    if !broker.capabilities().drops_repeated_submissions {
        assert_eq!(broker.submit(submission).await?, Receipt::Queued, "said, not hidden");
        return Ok(());
    }
    assert_eq!(broker.submit(submission).await?, Receipt::Duplicate);
    // Another's request under the same id is another's: nobody's publish is swallowed by who knows its id.
    assert_eq!(broker.submit(request("r1")).await?, Receipt::Queued);
    assert_eq!(counts(&broker).await?, (2, 0));
    Ok(())
}

pub async fn a_request_asked_again_after_its_answer_was_lost_is_answered(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    let mut consumer = broker.consume(&model(), 8).await?;
    let submission = request("r1");
    broker.submit(submission.clone()).await?;
    // Answered into an inbox that nobody reads any more.
    next(&mut consumer).await?.hold.settle(Settlement::Done).await?;

    let mut inbox = broker.inbox().await?;
    let mut again = submission.again(1);
    again.envelope.reply_to = Some(inbox.reply_to());
    assert_eq!(broker.submit(again).await?, Receipt::Queued, "well within the duplicate window");
    let delivery = next(&mut consumer).await?;
    let envelope = delivery.envelope.expect("headers that can be served");
    assert_eq!(envelope.id.as_str(), "r1", "the request's own id does not change");
    let reply = Reply {
        id: envelope.id,
        error: None,
        content_type: ContentType::MessagePack,
        body: Bytes::from_static(b"answer"),
        traceparent: None,
    };
    broker.reply(&envelope.reply_to.expect("a way back"), &reply).await?;
    assert_eq!(tokio::time::timeout(rig::SOON, inbox.next()).await??, reply);
    Ok(())
}

/// More than a connection may have channels of RabbitMQ's: 2,047, unless it is told otherwise.
pub async fn thousands_may_submit_at_once_on_a_new_connection(rig: &mut dyn Rig) -> Result<()> {
    drop(with_queue(rig).await?);
    let broker = rig::connection(rig).await?;
    rig::fill(&broker, Lane::Normal, 3000).await?;
    wait_for_counts(&broker, (3000, 0)).await
}

pub async fn a_full_queue_an_unknown_model_and_a_large_body_are_three_errors(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_limits(rig, 2, 4096).await?;
    broker.submit(request("r1")).await?;
    broker.submit(request("r2")).await?;
    let full = until_full(&broker).await?;
    assert!(matches!(full, BrokerError::QueueFull(_)) && full.is_transient(), "{full:?}");
    assert!(full.to_string().contains("`digits`"), "{full}");

    let stranger = Submission { model: "stranger".parse()?, ..request("r4") };
    let unknown = broker.submit(stranger).await.expect_err("no such model");
    assert!(matches!(unknown, BrokerError::UnknownModel(_)) && !unknown.is_transient(), "{unknown:?}");

    let per_queue = broker.capabilities().limits_message_size_per_queue;
    for size in [5000, 9_000_000].into_iter().filter(|size| per_queue || *size > rig.largest_body()) {
        let large = Submission { body: vec![0; size].into(), ..request("r5") };
        let refused = broker.submit(large).await.expect_err("too large");
        assert!(matches!(refused, BrokerError::TooLarge { .. }) && !refused.is_transient(), "{refused:?}");
    }
    Ok(())
}

pub async fn a_request_whose_deadline_has_passed_is_refused(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    let with_deadline = |id: &str, deadline| {
        let mut submission = request(id);
        submission.envelope.deadline = Some(deadline);
        submission
    };
    let now = sluice_core::clock::unix_ms();
    let refused = broker.submit(with_deadline("late", now - 1)).await.expect_err("too late");
    assert!(matches!(refused, BrokerError::Expired(_)) && !refused.is_transient(), "{refused:?}");
    assert_eq!(counts(&broker).await?, (0, 0));
    broker.submit(with_deadline("in-time", now + 60_000)).await?;
    Ok(())
}

/// Submits until the queue is full, and returns that error. Exact or not, it is soon full.
async fn until_full(broker: &Arc<dyn Broker>) -> Result<BrokerError> {
    let most = if broker.capabilities().exact_length { 1 } else { 50 };
    for index in 0..most {
        match broker.submit(request(&format!("more{index}"))).await {
            Ok(_) => {}
            Err(error) => return Ok(error),
        }
    }
    anyhow::bail!("the queue took {most} more than its length")
}

pub async fn limits_change_in_place(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_limits(rig, 1, 4096).await?;
    broker.submit(request("r1")).await?;
    until_full(&broker).await?;
    let (taken, _) = counts(&broker).await?;
    let larger = QueueLimits { length: taken + 10, message_bytes: 4096 };
    assert_eq!(broker.ensure_queue(&model(), &larger).await?, Limited::AsAsked);
    assert_eq!(broker.ensure_queue(&model(), &larger).await?, Limited::AsAsked);
    rig::submit(&broker, request("another")).await?;
    wait_for_counts(&broker, (taken + 1, 0)).await?;
    assert_eq!(broker.queues().await?, [model()]);
    broker.remove_queue(&model()).await?;
    broker.remove_queue(&model()).await?;
    assert!(broker.queues().await?.is_empty());
    Ok(())
}

pub async fn headers_that_cannot_be_served_are_told_apart(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    let mut consumer = broker.consume(&model(), 8).await?;
    rig.submit_raw(&model(), &[("ce-id", "a b"), ("sluice-reply-to", "inbox:_INBOX.me")], b"x").await?;
    let delivery = next(&mut consumer).await?;
    let malformed = delivery.envelope.expect_err("the id has a space");
    assert!(malformed.reason.contains("ce-id"), "{}", malformed.reason);
    assert_eq!(malformed.reply_to, Some(ReplyTo::Inbox("_INBOX.me".into())));
    delivery.hold.settle(Settlement::Done).await?;
    Ok(())
}

/// Many at once, some of them to a model that is not there: each is told what became of its own.
pub async fn an_unknown_model_costs_only_those_who_ask_for_it(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    let mut pending = tokio::task::JoinSet::new();
    for index in 0..400 {
        let broker = Arc::clone(&broker);
        let stranger = index % 5 == 0;
        let mut submission = request(&format!("r{index}"));
        if stranger {
            submission.model = "stranger".parse()?;
        }
        pending.spawn(async move { (stranger, broker.submit(submission).await) });
    }
    while let Some(done) = pending.join_next().await {
        match done? {
            (true, outcome) => assert!(matches!(outcome, Err(BrokerError::UnknownModel(_))), "{outcome:?}"),
            (false, outcome) => assert_eq!(outcome?, Receipt::Queued),
        }
    }
    rig::wait_for_counts(&broker, (320, 0)).await
}

pub async fn what_only_a_worker_or_the_broker_may_say_is_not_taken_from_a_producer(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    // Copied from a dead letter, or from another queue.
    let copied = [
        ("ce-id", "r1"),
        ("sluice-reply-to", "inbox:_INBOX.nobody"),
        ("sluice-attempts", "3"),
        ("x-delivery-count", "7"),
        ("sluice-lane", "low"),
    ];
    rig.submit_raw(&model(), &copied, b"body").await?;
    let mut consumer = broker.consume(&model(), 8).await?;
    let delivery = next(&mut consumer).await?;
    assert_eq!((id(&delivery).as_str(), delivery.charged, delivery.lane), ("r1", 0, Lane::Normal));
    delivery.hold.settle(Settlement::Retry(Duration::ZERO)).await?;
    let again = next(&mut consumer).await?;
    assert_eq!((id(&again).as_str(), again.charged, again.lane), ("r1", 1, Lane::Normal));
    again.hold.settle(Settlement::Done).await?;
    Ok(())
}
