//! Receiving requests of all lanes. What takes round trips happens in a task, since whoever asks for the next request may
//! stop asking at any time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::FutureExt;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use sluice_core::ModelName;
use sluice_core::broker::{BrokerError, Consumer, Delivery, Result};

use super::connect::Link;
use super::error::{may_pass, told};
use super::sources::Sources;

/// The pause before a lost channel is made anew.
const PAUSE: Duration = Duration::from_millis(200);
/// How long opening a consumer is tried.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether the credit is to be divided anew, as long as something is ready.
const DIVIDE: Duration = Duration::from_millis(5);

pub(super) struct AmqpConsumer {
    link: Arc<Link>,
    model: ModelName,
    credit: usize,
    /// `None` while they are with the task that divides the credit.
    sources: Option<Box<Sources>>,
    dividing: Option<AbortOnDropHandle<Divided>>,
    trouble: Trouble,
}

/// Why nothing can be received, since it was tried last.
type Trouble = Arc<Mutex<Option<String>>>;

type Divided = (Box<Sources>, Result<()>);

pub(super) async fn open(link: &Arc<Link>, model: &ModelName, credit: usize) -> Result<AmqpConsumer> {
    let mut sources = Box::new(Sources::new(link, model));
    // A broker that has just started needs a moment until its queues have leaders.
    let deadline = Instant::now() + PATIENCE;
    loop {
        match sources.divide(credit).await {
            Ok(()) => {
                return Ok(AmqpConsumer {
                    link: Arc::clone(link),
                    model: model.clone(),
                    credit,
                    sources: Some(sources),
                    dividing: None,
                    trouble: Trouble::default(),
                });
            }
            Err(error) if !may_pass(&error) || Instant::now() > deadline => return Err(error),
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
                self.dividing = self.sources.take().map(|sources| {
                    let (link, trouble) = (Arc::clone(&self.link), Arc::clone(&self.trouble));
                    let dividing = divide(sources, link, self.model.clone(), credit, trouble);
                    AbortOnDropHandle::new(tokio::spawn(dividing))
                });
                continue;
            }
            if let Some(delivery) = sources.ready() {
                return Ok(delivery);
            }
            // A changed credit is looked at now and then.
            let _ = tokio::time::timeout(PAUSE, sources.receive()).await;
        }
    }

    fn trouble(&self) -> Option<String> {
        let here = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // What holds publishes back holds back what settles requests as well; a refusal may concern answers only.
        here.or_else(|| self.link.standing.refuse_while_blocked().err().map(|error| error.to_string()))
            .or_else(|| self.link.standing.denied_lately())
    }

    fn ready(&mut self) -> Option<Delivery> {
        self.sources().now_or_never()?.ok()?.ready()
    }

    fn set_credit(&mut self, credit: usize) {
        self.credit = credit;
    }

    async fn stop(mut self: Box<Self>) {
        if self.sources().await.is_ok()
            && let Some(sources) = &mut self.sources
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
async fn divide(
    mut sources: Box<Sources>,
    link: Arc<Link>,
    model: ModelName,
    credit: usize,
    trouble: Trouble,
) -> Divided {
    loop {
        // Nothing is given up for it, and what was asked for now would begin at any time later.
        if let Err(error) = link.standing.refuse_while_blocked() {
            debug!(%model, %error, "cannot consume; waiting");
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let divided = sources.divide(credit).await;
        let reason = divided.as_ref().err().map(told);
        *trouble.lock().unwrap_or_else(PoisonError::into_inner) = reason;
        match divided {
            Err(error) if !matches!(error, BrokerError::Denied(_)) && !error.is_of_a_lost_queue() => {
                debug!(%model, %error, "cannot consume; trying again");
                sources.lose_channel();
                tokio::time::sleep(PAUSE).await;
            }
            result => return (sources, result),
        }
    }
}
