//! How much waits for each model, asked of the broker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use sluice_core::broker::{Broker, LaneDepth, Reading};
use sluice_core::{BrokerError, ModelName};

use crate::brain::Queued;
use crate::catalog::Entry;

/// Queues that are read at the same time.
const AT_ONCE: usize = 32;
/// Queues that are not read within this are unknown; those come first the next time.
const WITHIN: Duration = Duration::from_secs(2);

/// Reads queues, round by round.
#[derive(Default)]
pub(crate) struct Queues {
    /// Where the next round begins.
    first: usize,
}

impl Queues {
    /// How much waits for each started model.
    pub(crate) async fn read(
        &mut self,
        broker: &Arc<dyn Broker>,
        models: &BTreeMap<ModelName, Arc<Entry>>,
    ) -> BTreeMap<ModelName, Reading<Queued>> {
        let mut started: Vec<ModelName> =
            models.iter().filter(|(_, entry)| entry.started).map(|(model, _)| model.clone()).collect();
        let read = |model: ModelName| {
            let broker = Arc::clone(broker);
            async move {
                let reading = match broker.depth(&model).await {
                    Ok(lanes) => queued(&lanes),
                    Err(BrokerError::UnknownModel(_)) => {
                        Reading::Unknown(format!("its queue is missing: `sluice model start {model}` makes it again"))
                    }
                    Err(error) => Reading::Unknown(error.to_string()),
                };
                (model, reading)
            }
        };
        let count = started.len().max(1);
        started.rotate_left(self.first % count);
        let reading = stream::iter(started).map(read).buffer_unordered(AT_ONCE);
        let read: BTreeMap<_, _> = reading.take_until(tokio::time::sleep(WITHIN)).collect().await;
        self.first = (self.first + read.len()) % count;
        read
    }
}

fn queued(lanes: &[LaneDepth]) -> Reading<Queued> {
    let mut queued = Queued { ready: 0, in_flight: Some(0) };
    for lane in lanes {
        match &lane.ready {
            Reading::Known(ready) => queued.ready += ready,
            Reading::Unknown(reason) => return Reading::Unknown(reason.clone()),
        }
        queued.in_flight = match (&lane.in_flight, queued.in_flight) {
            (Reading::Known(more), Some(sum)) => Some(sum + more),
            _ => None,
        };
    }
    Reading::Known(queued)
}
