//! How far each lane lags. Asked of the consumer's leader; what it does not say is unknown, not zero.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::stream::{DirectGetErrorKind, Stream};

use sluice_core::broker::{LaneDepth, Reading, Result};
use sluice_core::{Lane, ModelName};

use super::error::other;
use super::{Nats, names, queue};

pub(super) async fn read(nats: &Nats, model: &ModelName) -> Result<Vec<LaneDepth>> {
    queue::exists(nats, model).await?;
    let stream = nats
        .jetstream
        .get_stream_no_info(names::work_stream(model))
        .await
        .map_err(|error| other(format!("reading the depth of model `{model}`"), error))?;
    let mut lanes = Vec::with_capacity(Lane::ALL.len());
    for lane in Lane::ALL {
        let (ready, in_flight) = match stream.consumer_info(lane.as_str()).await {
            Ok(info) => (Reading::Known(info.num_pending), Reading::Known(info.num_ack_pending as u64)),
            Err(error) => {
                let reason = format!("no word from consumer `{lane}`: {error}");
                (Reading::Unknown(reason.clone()), Reading::Unknown(reason))
            }
        };
        let oldest = oldest(&stream, &names::work_subject(model, lane)).await;
        lanes.push(LaneDepth { lane, ready, in_flight, oldest, read_at: SystemTime::now() });
    }
    Ok(lanes)
}

/// A work queue holds only what is not settled, so its first message is the oldest.
async fn oldest(stream: &Stream<()>, subject: &str) -> Reading<Duration> {
    match stream.direct_get_first_for_subject(subject).await {
        Ok(message) => {
            let nanos = u64::try_from(message.time.unix_timestamp_nanos()).unwrap_or(0);
            let stored = SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos);
            Reading::Known(SystemTime::now().duration_since(stored).unwrap_or_default())
        }
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Reading::Known(Duration::ZERO),
        Err(error) => Reading::Unknown(format!("the oldest request could not be read: {error}")),
    }
}
