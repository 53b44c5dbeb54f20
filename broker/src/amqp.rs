//! The broker seam on AMQP 0-9-1 as RabbitMQ speaks it. One file per operation, named as in `nats/`.

mod connect;
mod consume;
mod dead;
mod depth;
mod error;
mod headers;
mod lead;
mod manage;
mod names;
mod publish;
mod queue;
mod reply;
mod settings;
mod settle;
mod share;
mod signal;
mod size;
mod sources;
mod standing;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use sluice_core::broker::{
    Broker, Capabilities, Consumer, DeadLetter, LaneDepth, Leadership, Limited, QueueLimits, Receipt, Replied, Replies,
    Reply, Result, Signals, Stored, Submission,
};
use sluice_core::settings::{Apply, Settings};
use sluice_core::{JobId, ModelName, ReplyTo, RequestId};

pub(crate) use connect::connect;

/// A connection to RabbitMQ.
pub(crate) struct Amqp {
    link: Arc<connect::Link>,
}

#[async_trait]
impl Broker for Amqp {
    fn url(&self) -> &str {
        &self.link.shown_url
    }

    fn user(&self) -> Option<&str> {
        self.link.user.as_deref()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            drops_repeated_submissions: false,
            first_result_stands: false,
            keeps_the_place: false,
            exact_credit: false,
            exact_length: false,
            limits_message_size_per_queue: false,
            counts_in_flight: false,
            tells_age: false,
            reads_results_from_the_first: true,
        }
    }

    fn largest_message(&self) -> usize {
        usize::try_from(self.link.options.largest_message).unwrap_or(usize::MAX)
    }

    async fn ensure_queue(&self, model: &ModelName, limits: &QueueLimits) -> Result<Limited> {
        queue::ensure(&self.link, model, limits).await
    }

    async fn remove_queue(&self, model: &ModelName) -> Result<()> {
        queue::remove(&self.link, model).await
    }

    async fn queues(&self) -> Result<Vec<ModelName>> {
        queue::list(&self.link).await
    }

    async fn submit(&self, submission: Submission) -> Result<Receipt> {
        publish::submit(&self.link, submission).await
    }

    async fn consume(&self, model: &ModelName, credit: usize) -> Result<Box<dyn Consumer>> {
        Ok(Box::new(consume::open(&self.link, model, credit).await?))
    }

    async fn reply(&self, to: &ReplyTo, reply: &Reply) -> Result<Replied> {
        reply::send(&self.link, to, reply).await
    }

    async fn storage(&self) -> Result<Vec<Stored>> {
        manage::stored(&self.link).await
    }

    async fn depth(&self, model: &ModelName) -> Result<Vec<LaneDepth>> {
        depth::read(&self.link, model).await
    }

    async fn inbox(&self) -> Result<Box<dyn Replies>> {
        Ok(Box::new(reply::inbox(&self.link).await?))
    }

    async fn results(&self, job: &JobId) -> Result<Box<dyn Replies>> {
        Ok(Box::new(reply::results(&self.link, job).await?))
    }

    async fn stored_results(&self, job: &JobId, ids: &[RequestId]) -> Result<Vec<Reply>> {
        reply::stored(&self.link, job, ids).await
    }

    async fn remove_results(&self, job: &JobId) -> Result<()> {
        reply::remove_results(&self.link, job).await
    }

    async fn dead_letters(&self, model: &ModelName, limit: usize) -> Result<Vec<DeadLetter>> {
        dead::list(&self.link, model, limit).await
    }

    async fn signal(&self, topic: &str, payload: Bytes) -> Result<()> {
        signal::send(&self.link, topic, payload).await
    }

    async fn listen(&self, topic: &str) -> Result<Box<dyn Signals>> {
        Ok(Box::new(signal::listen(&self.link, topic).await?))
    }

    async fn ask(&self, topic: &str, payload: Bytes, limit: Duration) -> Result<Option<Bytes>> {
        signal::ask(&self.link, topic, payload, limit).await
    }

    async fn lead(&self, office: &str, holder: &str) -> Result<Box<dyn Leadership>> {
        Ok(Box::new(lead::lead(&self.link, office, holder).await?))
    }

    async fn settings(&self) -> Result<Settings> {
        settings::read(&self.link).await
    }

    async fn store_settings(&self, settings: &Settings) -> Result<()> {
        settings::store(&self.link, settings).await
    }

    async fn apply_settings(&self, settings: &Settings, apply: Apply) -> Result<Vec<String>> {
        settings::apply(&self.link, settings, apply).await
    }

    async fn close(&self) -> Result<()> {
        self.link.close().await
    }
}
