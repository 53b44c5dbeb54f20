//! Receiving requests of all lanes. What takes round trips happens in a task, since whoever asks for the next request may
//! stop asking at any time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::FutureExt;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use sluice_core::ModelName;
use sluice_core::broker::{BrokerError, Consumer, Delivery, Result};

use super::connect::Link;
use super::sources::Sources;

/// The pause before a lost channel is made anew.
const PAUSE: Duration = Duration::from_millis(200);
/// How long opening a consumer is tried.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether the credit is to be divided anew, as long as something is ready.
const DIVIDE: Duration = Duration::from_millis(5);

pub(super) struct AmqpConsumer {
    model: ModelName,
    credit: usize,
    /// `None` while they are with the task that divides the credit.
    sources: Option<Box<Sources>>,
    dividing: Option<AbortOnDropHandle<Divided>>,
}

type Divided = (Box<Sources>, Result<()>);

pub(super) async fn open(link: &Arc<Link>, model: &ModelName, credit: usize) -> Result<AmqpConsumer> {
    let mut sources = Box::new(Sources::new(link, model));
    // A broker that has just started needs a moment until its queues have leaders.
    let deadline = Instant::now() + PATIENCE;
    loop {
        match sources.divide(credit).await {
            Ok(()) => {
                return Ok(AmqpConsumer { model: model.clone(), credit, sources: Some(sources), dividing: None });
            }
            Err(error) if !error.is_transient() || Instant::now() > deadline => return Err(error),
            Err(error) => debug!(%model, %error, "cannot consume yet; trying again"),
        }
        sources.lose_channel();
        tokio::time::sleep(PAUSE).await;
    }
}

#[async_trait]
impl Consumer for AmqpConsumer {
    async fn next(&mut self) -> Result<Delivery> {
        loop {
            let credit = self.credit;
            let sources = self.sources().await?;
            // With a backlog there is always something ready, and the shares must follow all the same.
            if sources.last_divided() >= DIVIDE && sources.are_due(credit) {
                let sources = self.sources.take();
                self.dividing = sources
                    .map(|sources| AbortOnDropHandle::new(tokio::spawn(divide(sources, self.model.clone(), credit))));
                continue;
            }
            if let Some(delivery) = sources.ready() {
                return Ok(delivery);
            }
            // A changed credit is looked at now and then.
            let _ = tokio::time::timeout(PAUSE, sources.receive()).await;
        }
    }

    fn ready(&mut self) -> Option<Delivery> {
        self.sources().now_or_never()?.ok()?.ready()
    }

    fn set_credit(&mut self, credit: usize) {
        self.credit = credit;
    }

    async fn stop(mut self: Box<Self>) {
        if self.sources().await.is_ok()
            && let Some(sources) = self.sources
        {
            sources.stop().await;
        }
    }
}

impl AmqpConsumer {
    /// The sources, once their credit is divided. An error is one that trying again does not mend.
    async fn sources(&mut self) -> Result<&mut Sources> {
        if let Some(task) = &mut self.dividing {
            let divided = task.await;
            self.dividing = None;
            let (sources, result) = divided.map_err(|error| BrokerError::Unusable(format!("consuming: {error}")))?;
            self.sources = Some(sources);
            result?;
        }
        self.sources.as_deref_mut().ok_or_else(|| BrokerError::Unusable("consuming has ended with an error".into()))
    }
}

/// Divides the credit anew, and makes what was lost, until it is done or cannot be.
async fn divide(mut sources: Box<Sources>, model: ModelName, credit: usize) -> Divided {
    loop {
        match sources.divide(credit).await {
            Err(error) if !matches!(error, BrokerError::Denied(_) | BrokerError::UnknownModel(_)) => {
                debug!(%model, %error, "cannot consume; trying again");
                sources.lose_channel();
                tokio::time::sleep(PAUSE).await;
            }
            result => return (sources, result),
        }
    }
}
