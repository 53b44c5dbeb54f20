//! The broker seam on NATS JetStream. One file per operation; `amqp/` holds files of the same names.

mod acks;
mod api;
mod apply;
mod connect;
mod consume;
mod dead;
mod deaf;
mod depth;
mod error;
mod headers;
mod inbox;
mod keep;
mod lead;
mod names;
mod publish;
mod pull;
mod queue;
mod reply;
mod room;
mod settings;
mod settle;
mod signal;
mod store;

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use sluice_core::broker::{
    Broker, Capabilities, Consumer, DeadLetter, LaneDepth, Leadership, Limited, QueueLimits, Receipt, Replied, Replies,
    Reply, Result, Signals, Stored, Submission,
};
use sluice_core::settings::{Apply, Settings};
use sluice_core::{JobId, ModelName, ReplyTo, RequestId};

use crate::Options;
pub(crate) use connect::connect;
pub(crate) use store::NatsStore;

/// A connection to NATS.
pub(crate) struct Nats {
    client: Client,
    jetstream: Context,
    api: api::Api,
    /// See [`Broker::user`].
    user: Option<String>,
    options: Options,
    shown_url: String,
    /// Grows at each reconnection: what the server held for the old connection is gone.
    connection: watch::Receiver<u64>,
    denials: Arc<error::Denials>,
    acks: Arc<acks::Acks>,
    keeper: Arc<keep::Keeper>,
    settings: settings::State,
}

#[async_trait]
impl Broker for Nats {
    fn url(&self) -> &str {
        &self.shown_url
    }

    fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            drops_repeated_submissions: true,
            first_result_stands: true,
            keeps_the_place: true,
            exact_credit: true,
            exact_length: true,
            limits_message_size_per_queue: true,
            counts_in_flight: true,
            tells_age: true,
            reads_results_from_the_first: false,
        }
    }

    fn largest_message(&self) -> usize {
        self.client.max_payload()
    }

    async fn ensure_queue(&self, model: &ModelName, limits: &QueueLimits) -> Result<Limited> {
        queue::ensure(self, model, limits).await
    }

    async fn remove_queue(&self, model: &ModelName) -> Result<()> {
        queue::remove(self, model).await
    }

    async fn queues(&self) -> Result<Vec<ModelName>> {
        queue::list(self).await
    }

    async fn submit(&self, submission: Submission) -> Result<Receipt> {
        publish::submit(self, submission).await
    }

    async fn consume(&self, model: &ModelName, credit: usize) -> Result<Box<dyn Consumer>> {
        settings::follow(self).await?;
        Ok(Box::new(consume::open(self, model, credit).await?))
    }

    async fn reply(&self, to: &ReplyTo, reply: &Reply) -> Result<Replied> {
        reply::send(self, to, reply).await
    }

    async fn storage(&self) -> Result<Vec<Stored>> {
        room::read(self).await
    }

    async fn depth(&self, model: &ModelName) -> Result<Vec<LaneDepth>> {
        depth::read(self, model).await
    }

    async fn inbox(&self) -> Result<Box<dyn Replies>> {
        Ok(Box::new(reply::inbox(self).await?))
    }

    async fn results(&self, job: &JobId) -> Result<Box<dyn Replies>> {
        Ok(Box::new(reply::results(self, job).await?))
    }

    async fn stored_results(&self, job: &JobId, ids: &[RequestId]) -> Result<Vec<Reply>> {
        reply::stored(self, job, ids).await
    }

    async fn remove_results(&self, _job: &JobId) -> Result<()> {
        // One stream holds those of all jobs, each for its time.
        Ok(())
    }

    async fn dead_letters(&self, model: &ModelName, limit: usize) -> Result<Vec<DeadLetter>> {
        dead::list(self, model, limit).await
    }

    async fn signal(&self, topic: &str, payload: Bytes) -> Result<()> {
        signal::send(self, topic, payload).await
    }

    async fn listen(&self, topic: &str) -> Result<Box<dyn Signals>> {
        Ok(Box::new(signal::listen(self, topic).await?))
    }

    async fn ask(&self, topic: &str, payload: Bytes, limit: Duration) -> Result<Option<Bytes>> {
        signal::ask(self, topic, payload, limit).await
    }

    async fn lead(&self, office: &str, holder: &str) -> Result<Box<dyn Leadership>> {
        Ok(Box::new(lead::lead(self, office, holder).await?))
    }

    async fn settings(&self) -> Result<Settings> {
        settings::read(self).await
    }

    async fn store_settings(&self, settings: &Settings) -> Result<()> {
        settings::store(self, settings).await
    }

    async fn apply_settings(&self, settings: &Settings, apply: Apply) -> Result<Vec<String>> {
        apply::apply(self, settings, apply).await
    }

    async fn close(&self) -> Result<()> {
        connect::close(self).await
    }
}
