//! `sluice queue`: what waits and runs, per lane.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use sluice_core::broker::{Broker, LaneDepth, Reading};
use sluice_core::report::{ModelReport, Report};
use sluice_core::{BrokerError, ModelName};

use crate::cli::{Global, Queue};
use crate::common;
use crate::reports::Hosts;
use crate::table::Table;

pub async fn run(global: &Global, options: Queue) -> Result<ExitCode> {
    let broker = common::connect(global).await?;
    common::show_again(options.watch, async || {
        let depths = read(&broker, options.model.as_ref()).await;
        // Hosts know what the broker does not tell, and what they cannot receive. Not everyone may ask them. After the broker:
        // one that takes no messages answers nothing more on a connection by which it got one.
        let (hosts, silence) = match Hosts::gather(&broker).await {
            Ok(hosts) => (hosts.all().cloned().collect::<Vec<Report>>(), None),
            Err(error) => (Vec::new(), Some(format!("hosts cannot be asked: {error:#}"))),
        };
        let depths = match depths {
            Err(error) if error.downcast_ref().is_some_and(BrokerError::is_of_a_lost_queue) => {
                let said = troubles(&hosts, options.model.as_ref());
                match said.is_empty() {
                    true => return Err(error),
                    false => bail!("{error:#}\n{}", said.join("\n")),
                }
            }
            depths => depths?,
        };
        match options.json {
            true => println!("{}", as_json(&depths, &hosts)),
            false => {
                print!("{}", as_table(&depths));
                for note in notes(&depths, &hosts, options.model.as_ref()).into_iter().chain(silence) {
                    println!("{note}");
                }
            }
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

/// What a table does not say: why something is unknown, what hosts have of a model where the broker does not tell, and what they
/// cannot receive.
fn notes(depths: &[(ModelName, Vec<LaneDepth>)], hosts: &[Report], only: Option<&ModelName>) -> Vec<String> {
    let mut notes = Vec::new();
    // A broker that does not tell a column tells it of no queue: once is enough.
    let mut columns = Vec::new();
    for (model, lanes) in depths {
        for lane in lanes {
            let ready = unknown(&lane.ready);
            if let Some(reason) = ready {
                notes.push(format!("model `{model}`, lane {}: {}", lane.lane, common::plain(reason)));
            }
            for (column, reason) in [("IN FLIGHT", unknown(&lane.in_flight)), ("OLDEST", unknown(&lane.oldest))] {
                let news = reason.filter(|_| reason != ready);
                columns.extend(news.map(|reason| format!("{column} is unknown: {}", common::plain(reason))));
            }
        }
        if lanes.iter().all(|lane| matches!(lane.in_flight, Reading::Unknown(_)))
            && let Some(held) = held(hosts, model)
        {
            notes.push(format!("model `{model}`: hosts have taken {held} requests that wait there or run"));
        }
    }
    columns.sort();
    columns.dedup();
    notes.extend(columns);
    notes.extend(troubles(hosts, only));
    notes
}

fn unknown<T>(reading: &Reading<T>) -> Option<&str> {
    match reading {
        Reading::Known(_) => None,
        Reading::Unknown(reason) => Some(reason),
    }
}

/// Requests that hosts have in hand, if any serves the model.
fn held(hosts: &[Report], model: &ModelName) -> Option<u64> {
    let reports = hosts.iter().flat_map(|host| &host.models).filter(|report| report.model == *model);
    reports.map(|report| report.measured.requests_held).reduce(|sum, held| sum + held)
}

/// Which hosts receive nothing of what waits for a model, and why.
fn troubles(hosts: &[Report], only: Option<&ModelName>) -> Vec<String> {
    let reports = hosts.iter().flat_map(|host| host.models.iter().map(move |report| (host, report)));
    let wanted = reports.filter(|(_, report)| report.receives_nothing && only.is_none_or(|only| report.model == *only));
    let line = |(host, report): (&Report, &ModelReport)| {
        let reason = report.reason.as_deref().unwrap_or("it does not say why");
        common::plain(&format!("model `{}` on host `{}`: {reason}", report.model, host.host))
    };
    wanted.map(line).collect()
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

fn as_json(depths: &[(ModelName, Vec<LaneDepth>)], hosts: &[Report]) -> Value {
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
        .map(|(model, lanes)| {
            let lanes = lanes.iter().map(lane).collect::<Vec<_>>();
            json!({ "model": model, "lanes": lanes, "held_by_hosts": held(hosts, model) })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use sluice_core::Lane;
    use sluice_core::report::{Measured, State};

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
        let serving = |held, trouble: Option<&str>| {
            let report = ModelReport::new("digits".parse().expect("a name"), None, State::Ready);
            let measured = Measured { requests_held: held, ..Measured::default() };
            let reason = trouble.map(Into::into);
            let model = ModelReport { measured, receives_nothing: reason.is_some(), reason, ..report };
            let report = json!({ "host": format!("h{held}"), "at": 0, "models": [] });
            Report { models: vec![model], ..serde_json::from_value(report).expect("a report") }
        };
        let hosts = [serving(2, None), serving(1, Some("receives no requests: the queue is gone"))];
        let said = notes(&depths, &hosts, None);
        assert_eq!(said[0], "model `digits`, lane high: no consumer");
        assert_eq!(said[1], "model `digits` on host `h1`: receives no requests: the queue is gone");
        let value = as_json(&depths, &hosts);
        assert_eq!(value[0]["held_by_hosts"], 3);
        assert_eq!(value[0]["lanes"][0]["ready"]["unknown"], "no consumer");
        assert_eq!(value[0]["lanes"][0]["oldest_ms"], 1500);
    }

    #[test]
    fn why_a_column_is_unknown_is_said_once() {
        let lane = |lane, ready: Result<u64, &str>, oldest: &str| LaneDepth {
            lane,
            ready: ready.map_or_else(|reason| Reading::Unknown(reason.into()), Reading::Known),
            in_flight: Reading::Unknown("the broker does not tell".into()),
            oldest: Reading::Unknown(oldest.into()),
            read_at: SystemTime::now(),
        };
        let lanes = vec![lane(Lane::High, Ok(1), "denied"), lane(Lane::Low, Err("gone"), "gone")];
        let depths = ["a", "b"].map(|model| (model.parse().expect("a name"), lanes.clone()));
        let said = notes(&depths, &[], None);
        let expected = [
            "model `a`, lane low: gone",
            "model `b`, lane low: gone",
            "IN FLIGHT is unknown: the broker does not tell",
            "OLDEST is unknown: denied",
        ];
        assert_eq!(said, expected);
    }
}
