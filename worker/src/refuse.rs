//! A stopped model whose profile says so: every request is answered at once that the model is stopped.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use sluice_core::clock::unix_ms;
use sluice_core::{ErrorCode, Failure};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::intake::{self, Rejection};
use crate::reply::{Replier, Verdict};
use crate::serve::consume;

/// Refusing costs nothing but messages.
const CREDIT: usize = 256;
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Refuses requests until `stop`.
pub async fn refuse(replier: Arc<Replier>, stop: CancellationToken) -> Result<()> {
    let Some(consumer) = consume(&*replier.broker, &replier.model, CREDIT, &stop).await else { return Ok(()) };
    let mut consumer = consumer?;
    let mut pause = PAUSE;
    while let Some(delivery) = stop.run_until_cancelled(consumer.next()).await {
        let delivery = match delivery {
            Ok(delivery) => delivery,
            Err(error) => {
                warn!(model = %replier.model, %error, again_in = ?pause, "cannot receive; trying again");
                _ = stop.run_until_cancelled(tokio::time::sleep(pause)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
        };
        pause = PAUSE;
        replier.metrics.took();
        // Whoever must not be told anything else is told that.
        let (ticket, rejection) = match intake::receive(delivery, &replier.limits, unix_ms()) {
            Ok(undecoded) => (undecoded.ticket, Rejection::Refused(stopped(replier.model.as_str()))),
            Err(rejected) => rejected,
        };
        Arc::clone(&replier).conclude(ticket, Verdict::Rejected(rejection)).await;
    }
    consumer.stop().await;
    Ok(())
}

fn stopped(model: &str) -> Failure {
    Failure::new(ErrorCode::Unavailable, format!("model `{model}` is stopped: ask again once it is started"))
}
