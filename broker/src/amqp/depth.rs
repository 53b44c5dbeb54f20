//! How far each lane lags. RabbitMQ tells how many wait; what runs is known to the hosts, and ages to nobody.

use std::time::SystemTime;

use sluice_core::broker::{BrokerError, LaneDepth, Reading, Result};
use sluice_core::{Lane, ModelName};

use super::connect::Link;
use super::{names, queue};

pub(super) async fn read(link: &Link, model: &ModelName) -> Result<Vec<LaneDepth>> {
    let mut lanes = Vec::with_capacity(Lane::ALL.len());
    let mut missing = 0;
    for lane in Lane::ALL {
        let name = names::lane_queue(model, lane);
        let ready = match queue::waiting(link, &name).await {
            Ok(Some(waiting)) => Reading::Known(waiting),
            Ok(None) => {
                missing += 1;
                Reading::Unknown(format!("there is no queue `{name}`"))
            }
            Err(error @ (BrokerError::Unreachable { .. } | BrokerError::Denied(_) | BrokerError::Blocked(_))) => {
                return Err(error);
            }
            Err(error) => Reading::Unknown(error.to_string()),
        };
        let in_flight = Reading::Unknown("RabbitMQ does not tell clients how many requests run".into());
        let oldest = Reading::Unknown("RabbitMQ does not tell how old a request is".into());
        lanes.push(LaneDepth { lane, ready, in_flight, oldest, read_at: SystemTime::now() });
    }
    if missing == lanes.len() {
        return Err(BrokerError::UnknownModel(model.clone()));
    }
    // Retries whose delay is over wait as well; they are the normal lane's here.
    if let Ok(Some(retried)) = queue::waiting(link, &names::retried_queue(model)).await
        && let Reading::Known(ready) = &mut lanes[Lane::Normal.index()].ready
    {
        *ready += retried;
    }
    Ok(lanes)
}
