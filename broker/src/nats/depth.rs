//! How far each lane lags. Asked of the consumer's leader; what it does not say is unknown, not zero.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::stream::Stream;
use serde::Deserialize;

use sluice_core::broker::{BrokerError, LaneDepth, Reading, Result};
use sluice_core::{Lane, ModelName};

use super::error::other;
use super::{Nats, names, queue};

/// What a healthy server tells in a millisecond.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn read(nats: &Nats, model: &ModelName) -> Result<Vec<LaneDepth>> {
    queue::exists(nats, model).await?;
    let name = names::work_stream(model);
    let stream = nats.jetstream.get_stream_no_info(&name).await;
    let stream = stream.map_err(|error| other(format!("reading the depth of model `{model}`"), error))?;
    let lanes = Lane::ALL.map(|lane| read_lane(nats, &stream, &name, model, lane));
    Ok(futures_util::future::join_all(lanes).await)
}

async fn read_lane(nats: &Nats, stream: &Stream<()>, name: &str, model: &ModelName, lane: Lane) -> LaneDepth {
    let counts = async {
        match tokio::time::timeout(PATIENCE, stream.consumer_info(lane.as_str())).await {
            Ok(Ok(info)) => (Reading::Known(info.num_pending), Reading::Known(info.num_ack_pending as u64)),
            Ok(Err(error)) => unknown(format!("no word from consumer `{lane}`: {error}")),
            Err(_) => unknown(format!("no word from consumer `{lane}` within {PATIENCE:?}")),
        }
    };
    let subject = names::work_subject(model, lane);
    let oldest = async {
        match tokio::time::timeout(PATIENCE, oldest(nats, name, &subject)).await {
            Ok(Ok(reading)) => reading,
            Ok(Err(error)) => Reading::Unknown(error.to_string()),
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

/// A message as `STREAM.MSG.GET` tells it: headers and body are within, in base64.
#[derive(Deserialize)]
struct Stored {
    message: Option<Message>,
    error: Option<async_nats::jetstream::Error>,
}

#[derive(Deserialize)]
struct Message {
    /// When it was stored (RFC 3339).
    time: String,
}

/// A work queue holds only what is not settled, so its first message is the oldest. Not by a direct get: that hands on the message's own
/// headers, and the client loses its connection over ill-formed ones, which any producer can write.
async fn oldest(nats: &Nats, stream: &str, subject: &str) -> Result<Reading<Duration>> {
    let operation = format!("STREAM.MSG.GET.{stream}");
    let wanted = serde_json::json!({ "seq": 1, "next_by_subj": subject }).to_string();
    let asked = nats.client.request(nats.api.subject(&operation), wanted.into());
    let answer = nats.allowed(&operation, asked).await?;
    let answer = answer.map_err(|error| other("reading the oldest request", error))?;
    let read = serde_json::from_slice::<Stored>(&answer.payload);
    match read.map_err(|error| other("reading the oldest request", error))? {
        Stored { message: Some(message), .. } => {
            let time = async_nats::datetime::parse_rfc3339(&message.time);
            let time = time.map_err(|error| other("reading the oldest request", error))?;
            let nanos = u64::try_from(time.unix_timestamp_nanos()).unwrap_or(0);
            let stored = SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos);
            Ok(Reading::Known(SystemTime::now().duration_since(stored).unwrap_or_default()))
        }
        Stored { error: Some(error), .. } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
            Ok(Reading::Known(Duration::ZERO))
        }
        Stored { error, .. } => {
            let reason = error.map_or_else(|| "the answer cannot be read".into(), |error| error.to_string());
            Ok(Reading::Unknown(format!("the oldest request could not be read: {reason}")))
        }
    }
}
