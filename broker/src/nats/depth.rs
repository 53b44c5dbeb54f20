//! How far each lane lags. Asked of the consumer's leader; what it does not say is unknown, not zero.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::stream::{DirectGetErrorKind, Stream};

use sluice_core::broker::{BrokerError, LaneDepth, Reading, Result};
use sluice_core::{Lane, ModelName};

use super::error::other;
use super::{Nats, names, queue};

/// What a healthy server tells in a millisecond.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn read(nats: &Nats, model: &ModelName) -> Result<Vec<LaneDepth>> {
    queue::exists(nats, model).await?;
    let stream = nats
        .jetstream
        .get_stream_no_info(names::work_stream(model))
        .await
        .map_err(|error| other(format!("reading the depth of model `{model}`"), error))?;
    let lanes = Lane::ALL.map(|lane| read_lane(nats, &stream, model, lane));
    Ok(futures_util::future::join_all(lanes).await)
}

async fn read_lane(nats: &Nats, stream: &Stream<()>, model: &ModelName, lane: Lane) -> LaneDepth {
    let counts = async {
        match tokio::time::timeout(PATIENCE, stream.consumer_info(lane.as_str())).await {
            Ok(Ok(info)) => (Reading::Known(info.num_pending), Reading::Known(info.num_ack_pending as u64)),
            Ok(Err(error)) => unknown(format!("no word from consumer `{lane}`: {error}")),
            Err(_) => unknown(format!("no word from consumer `{lane}` within {PATIENCE:?}")),
        }
    };
    let subject = names::work_subject(model, lane);
    let oldest = async {
        match tokio::time::timeout(PATIENCE, oldest(stream, &subject)).await {
            Ok(reading) => reading,
            Err(_) => {
                let silent = BrokerError::TimedOut(format!("the oldest request of lane `{lane}`"));
                Reading::Unknown(nats.explained(silent).to_string())
            }
        }
    };
    let ((ready, in_flight), oldest) = futures_util::future::join(counts, oldest).await;
    LaneDepth { lane, ready, in_flight, oldest, read_at: SystemTime::now() }
}

fn unknown(reason: String) -> (Reading<u64>, Reading<u64>) {
    (Reading::Unknown(reason.clone()), Reading::Unknown(reason))
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
