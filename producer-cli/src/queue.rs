//! `sluice queue`: what waits and runs, per lane.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use sluice_core::broker::{Broker, LaneDepth, Reading};
use sluice_core::{BrokerError, ModelName};

use crate::cli::{Global, Queue};
use crate::common;
use crate::table::Table;

pub async fn run(global: &Global, options: Queue) -> Result<ExitCode> {
    let broker = common::connect(global).await?;
    common::show_again(options.watch, async || {
        let depths = read(&broker, options.model.as_ref()).await?;
        match options.json {
            true => println!("{}", as_json(&depths)),
            false => print!("{}", as_table(&depths)),
        }
        Ok(())
    })
    .await
}

async fn read(broker: &Arc<dyn Broker>, only: Option<&ModelName>) -> Result<Vec<(ModelName, Vec<LaneDepth>)>> {
    let models = match only {
        Some(model) => vec![model.clone()],
        None => broker.queues().await?,
    };
    let mut depths = Vec::new();
    for model in models {
        match broker.depth(&model).await {
            Ok(lanes) => depths.push((model, lanes)),
            // Removed since it was listed.
            Err(BrokerError::UnknownModel(_)) if only.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(depths)
}

fn as_table(depths: &[(ModelName, Vec<LaneDepth>)]) -> String {
    if depths.is_empty() {
        return "no model has a queue on this broker\n".into();
    }
    let mut table = Table::new(["MODEL", "LANE", "READY", "IN FLIGHT", "OLDEST"]).right(2..5);
    for (model, lanes) in depths {
        for lane in lanes {
            let oldest = match &lane.oldest {
                Reading::Known(Duration::ZERO) => "-".into(),
                Reading::Known(age) => common::short(*age),
                Reading::Unknown(_) => "unknown".into(),
            };
            table.add_row([
                model.to_string(),
                lane.lane.to_string(),
                count(&lane.ready),
                count(&lane.in_flight),
                oldest,
            ]);
        }
    }
    format!("{table}\n")
}

fn count(reading: &Reading<u64>) -> String {
    match reading {
        Reading::Known(count) => count.to_string(),
        Reading::Unknown(_) => "unknown".into(),
    }
}

fn as_json(depths: &[(ModelName, Vec<LaneDepth>)]) -> Value {
    fn number<T: Into<Value> + Clone>(reading: &Reading<T>) -> Value {
        match reading {
            Reading::Known(value) => value.clone().into(),
            Reading::Unknown(reason) => json!({ "unknown": reason }),
        }
    }
    let lane = |lane: &LaneDepth| {
        let oldest = match &lane.oldest {
            Reading::Known(age) => Reading::Known(age.as_millis() as u64),
            Reading::Unknown(reason) => Reading::Unknown(reason.clone()),
        };
        json!({ "lane": lane.lane, "ready": number(&lane.ready), "in_flight": number(&lane.in_flight), "oldest_ms": number(&oldest) })
    };
    depths
        .iter()
        .map(|(model, lanes)| json!({ "model": model, "lanes": lanes.iter().map(lane).collect::<Vec<_>>() }))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use sluice_core::Lane;

    use super::*;

    #[test]
    fn unknown_is_not_shown_as_zero() {
        let lane = LaneDepth {
            lane: Lane::High,
            ready: Reading::Unknown("no consumer".into()),
            in_flight: Reading::Known(3),
            oldest: Reading::Known(Duration::from_millis(1500)),
            read_at: SystemTime::now(),
        };
        let depths = [("digits".parse().expect("a name"), vec![lane])];
        let table = as_table(&depths);
        assert!(table.contains("unknown") && table.contains("1s"), "{table}");
        let value = as_json(&depths);
        assert_eq!(value[0]["lanes"][0]["ready"]["unknown"], "no consumer");
        assert_eq!(value[0]["lanes"][0]["oldest_ms"], 1500);
    }
}
