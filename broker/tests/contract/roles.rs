//! What every role of either broker's production files is to be able to do.

use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use sluice_core::ReplyTo;
use sluice_core::broker::{Broker, Consumer, Reply, Settlement, Signals};
use sluice_core::codec::ContentType;

use crate::rig::{SOON, id, next, request};

pub fn a_reply(to: &str) -> Result<Reply> {
    let body = Bytes::from_static(b"{}");
    Ok(Reply { id: to.parse()?, error: None, content_type: ContentType::Json, body, traceparent: None })
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
        let mut results = caller.results(&format!("job-{role}").parse()?).await?;
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
                ReplyTo::Results(_) => tokio::time::timeout(SOON, results.next()).await??,
            };
            assert_eq!(received.id, reply.id, "{role}");
            if let ReplyTo::Results(job) = &reply_to {
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
