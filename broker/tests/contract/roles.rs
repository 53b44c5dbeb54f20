//! What every role of either broker's production files is to be able to do.

use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use sluice_core::broker::{Broker, BrokerError, Consumer, QueueLimits, Reply, Settlement, Signals};
use sluice_core::codec::ContentType;
use sluice_core::{JobId, ReplyTo};

use crate::rig::{SOON, id, model, next, request};

pub fn a_reply(to: &str) -> Result<Reply> {
    let body = Bytes::from_static(b"{}");
    Ok(Reply { id: to.parse()?, error: None, content_type: ContentType::Json, body, traceparent: None })
}

/// Who manages hears hosts and is heard by them, and closes, empties and removes a queue.
pub async fn manages(
    manager: &Arc<dyn Broker>,
    worker: &Arc<dyn Broker>,
    producer: &Arc<dyn Broker>,
    consumer: Box<dyn Consumer>,
) -> Result<()> {
    let (mut reports, mut revised) = (manager.listen("reports").await?, worker.listen("revised").await?);
    worker.signal("reports", "alive".into()).await?;
    manager.signal("revised", "digits".into()).await?;
    assert_eq!(&tokio::time::timeout(SOON, reports.next()).await??.payload[..], b"alive");
    assert_eq!(&tokio::time::timeout(SOON, revised.next()).await??.payload[..], b"digits");

    consumer.stop().await;
    let mut inbox = producer.inbox().await?;
    let mut last = request("last");
    last.envelope.reply_to = Some(inbox.reply_to());
    producer.submit(last).await?;
    _ = manager.ensure_queue(&model(), &QueueLimits::closed()).await?;
    let refused = producer.submit(request("too-late")).await;
    assert!(matches!(refused, Err(BrokerError::QueueFull(_))), "it is closed: {refused:?}");
    let mut consumer = manager.consume(&model(), 8).await?;
    let delivery = next(&mut consumer).await?;
    assert_eq!(id(&delivery), "last");
    manager.reply(&inbox.reply_to(), &a_reply("last")?).await?;
    delivery.hold.settle(Settlement::Done).await?;
    assert_eq!(tokio::time::timeout(SOON, inbox.next()).await??.id.as_str(), "last");
    consumer.stop().await;
    manager.remove_queue(&model()).await?;
    assert!(matches!(producer.submit(request("later")).await, Err(BrokerError::UnknownModel(_))));
    let denied = manager.ensure_queue(&model(), &QueueLimits { length: 10, message_bytes: 4096 }).await;
    assert!(denied.is_ok(), "it may make queues again");
    assert!(manager.submit(request("r")).await.is_err(), "it may not submit");
    Ok(())
}

/// A worker with a queue, and its questions.
pub struct Served<'w> {
    pub worker: &'w Arc<dyn Broker>,
    pub consumer: Box<dyn Consumer>,
    pub questions: Box<dyn Signals>,
}

impl Served<'_> {
    /// A caller in this role asks, and is answered, in each way that there is.
    pub async fn answers(&mut self, caller: &Arc<dyn Broker>, role: &str) -> Result<()> {
        let mut inbox = caller.inbox().await?;
        let mut results = caller.results(&JobId::of(caller.user(), &format!("job-{role}"))?).await?;
        for reply_to in [inbox.reply_to(), results.reply_to()] {
            let mut submission = request(&format!("{role}-{}", reply_to.to_string().len()));
            submission.envelope.reply_to = Some(reply_to.clone());
            caller.submit(submission).await?;
            let delivery = next(&mut self.consumer).await?;
            let reply = a_reply(&id(&delivery))?;
            self.worker.reply(&reply_to, &reply).await?;
            delivery.hold.settle(Settlement::Done).await?;
            let received = match reply_to {
                ReplyTo::Inbox(_) => tokio::time::timeout(SOON, inbox.next()).await??,
                ReplyTo::Results { .. } => tokio::time::timeout(SOON, results.next()).await??,
            };
            assert_eq!(received.id, reply.id, "{role}");
            if let ReplyTo::Results { job, .. } = &reply_to {
                assert_eq!(caller.stored_results(job, &[reply.id]).await?.len(), 1);
            }
        }
        let asking = caller.ask("describe.digits", Bytes::new(), SOON);
        let answering = async {
            let answer = self.questions.next().await?.answer.context("someone asks")?;
            answer.send("yes".into()).await.map_err(anyhow::Error::from)
        };
        let (answer, sent) = tokio::join!(asking, answering);
        sent?;
        assert_eq!(answer?.as_deref(), Some(&b"yes"[..]), "{role}");
        Ok(())
    }
}
