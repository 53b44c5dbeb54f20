//! What decisions rested on, written down line by line, and what would have been decided with other settings.

mod recorder;

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sluice_core::ModelName;
use sluice_core::broker::Reading;
use sluice_core::clock::UnixMs;

use crate::decide::{Demand, History, Lag, Scaling, decide};
pub use recorder::Recorder;

/// What one decision about one model rested on, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// When.
    pub at: UnixMs,
    /// Which model.
    pub model: ModelName,
    /// Its settings then.
    pub scaling: Scaling,
    /// Rows that no slot runs yet; `None`: unknown.
    pub waiting: Option<u64>,
    /// Rows that slots run.
    #[serde(alias = "in_flight")]
    pub running: u64,
    /// Rows per second.
    pub arrivals: f64,
    /// Seconds per row.
    pub row_seconds: Option<f64>,
    /// Rows of a request.
    #[serde(default = "one")]
    pub rows_per_request: f64,
    /// Seconds until a new slot is ready.
    pub cold_start_seconds: f64,
    /// Slots that there were.
    pub slots: usize,
    /// Slots that were decided upon.
    pub wanted: usize,
}

fn one() -> f64 {
    1.0
}

impl Line {
    /// Of a decision.
    pub fn new(at: UnixMs, model: &ModelName, demand: &Demand, wanted: usize) -> Self {
        let lag = demand.lag.clone().known();
        Self {
            at,
            model: model.clone(),
            scaling: demand.scaling.clone(),
            waiting: lag.map(|lag| lag.waiting),
            running: lag.map_or(0, |lag| lag.running),
            arrivals: demand.arrivals,
            row_seconds: demand.row_time.map(|time| time.as_secs_f64()),
            rows_per_request: demand.rows_per_request,
            cold_start_seconds: demand.cold_start.as_secs_f64(),
            slots: demand.slots,
            wanted,
        }
    }

    fn demand(&self, scaling: Scaling, slots: usize) -> Demand {
        let lag = match self.waiting {
            Some(waiting) => Reading::Known(Lag { waiting, running: self.running }),
            None => Reading::Unknown("it was when this was recorded".into()),
        };
        Demand {
            scaling,
            lag,
            arrivals: self.arrivals,
            row_time: self.row_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            rows_per_request: self.rows_per_request,
            cold_start: Duration::try_from_secs_f64(self.cold_start_seconds).unwrap_or_default(),
            slots,
        }
    }
}

/// What would have become of one model.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Replayed {
    /// Decisions looked at.
    pub decisions: usize,
    /// Slot-seconds as recorded.
    pub recorded: f64,
    /// Slot-seconds with the other settings.
    pub replayed: f64,
    /// Changes: milliseconds from the first line, slots as recorded, slots with the other settings.
    pub changes: Vec<(UnixMs, usize, usize)>,
}

/// Decides again on every line, with settings changed by `set`. What waited and arrived is as it was recorded: more slots would have left
/// less waiting, so the replay tells rather too many than too few.
pub fn replay(lines: impl BufRead, set: impl Fn(&Scaling) -> Result<Scaling>) -> Result<BTreeMap<ModelName, Replayed>> {
    struct Now {
        history: History,
        slots: usize,
        first: UnixMs,
        last: Option<(UnixMs, usize)>,
    }
    let mut models: BTreeMap<ModelName, (Now, Replayed)> = BTreeMap::new();
    let mut unreadable = None;
    for (number, text) in lines.lines().enumerate() {
        let text = text.context("reading the record")?;
        if text.is_empty() {
            continue;
        }
        let line: Line = match serde_json::from_str(&text) {
            Ok(line) => line,
            // A scaler that was killed leaves half a line, and the next one goes on behind it.
            Err(error) => {
                unreadable.get_or_insert_with(|| format!("line {} is no recorded decision: {error}", number + 1));
                continue;
            }
        };
        let begin = || {
            let now = Now { history: History::default(), slots: line.slots, first: line.at, last: None };
            (now, Replayed::default())
        };
        let (now, replayed) = models.entry(line.model.clone()).or_insert_with(begin);
        if let Some((at, wanted)) = now.last {
            let passed = line.at.saturating_sub(at) as f64 / 1000.0;
            replayed.recorded += passed * wanted as f64;
            replayed.replayed += passed * now.slots as f64;
        }
        let at = line.at.saturating_sub(now.first);
        let demand = line.demand(set(&line.scaling)?, now.slots);
        let slots = decide(&demand, &mut now.history, Duration::from_millis(at)).slots;
        if replayed.changes.last().map(|(_, recorded, replayed)| (*recorded, *replayed)) != Some((line.wanted, slots)) {
            replayed.changes.push((at, line.wanted, slots));
        }
        replayed.decisions += 1;
        now.slots = slots;
        now.last = Some((line.at, line.wanted));
    }
    let unreadable = match (unreadable, models.is_empty()) {
        (reason, true) => anyhow::bail!(reason.unwrap_or_else(|| "the record is empty".into())),
        (reason, false) => reason,
    };
    if let Some(reason) = unreadable {
        sluice_core::eprintln!("note: left out what cannot be read; {reason}");
    }
    Ok(models.into_iter().map(|(model, (_, replayed))| (model, replayed)).collect())
}

/// Settings with one changed: `target_wait=500ms`, as `sluice model profile set` takes it, with or without `scaling.`.
pub fn set(scaling: &Scaling, settings: &[String]) -> Result<Scaling> {
    let mut table = toml::Table::try_from(scaling).context("writing the settings")?;
    for setting in settings {
        let (key, value) =
            setting.split_once('=').with_context(|| format!("`{setting}` is not KEY=VALUE, such as max_slots=4"))?;
        let key = key.trim().trim_start_matches("scaling.");
        if !table.contains_key(key) {
            let known = table.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            anyhow::bail!("there is no setting `{key}`; there are {known}");
        }
        let parsed =
            toml::from_str::<toml::Table>(&format!("value = {value}")).ok().and_then(|mut table| table.remove("value"));
        table.insert(key.to_owned(), parsed.unwrap_or_else(|| value.trim().into()));
    }
    let scaling: Scaling = table.try_into().context("--set")?;
    let mut faults = Vec::new();
    scaling.check(&mut |key, reason| faults.push(format!("`{key}` {reason}")));
    anyhow::ensure!(faults.is_empty(), "--set: {}", faults.join("; "));
    Ok(scaling)
}

/// Appends a line.
pub fn write(to: &mut impl Write, line: &Line) -> Result<()> {
    serde_json::to_writer(&mut *to, line)?;
    Ok(to.write_all(b"\n")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_settings_give_what_was_decided_and_others_something_else() {
        let mut text = Vec::new();
        let mut history = History::default();
        let mut slots = 0;
        for second in 0..120_u64 {
            let waiting = if second < 30 { 400 } else { 0 };
            let demand = Demand {
                scaling: Scaling {
                    scale_down_delay: Duration::from_secs(10),
                    idle_to_zero: Duration::from_secs(20),
                    ..Scaling::default()
                },
                lag: Reading::Known(Lag { waiting, running: 0 }),
                arrivals: 0.0,
                row_time: Some(Duration::from_millis(20)),
                rows_per_request: 1.0,
                cold_start: Duration::from_millis(100),
                slots,
            };
            let wanted = decide(&demand, &mut history, Duration::from_secs(second)).slots;
            let line = Line::new(second * 1000, &"m".parse().expect("a name"), &demand, wanted);
            write(&mut text, &line).expect("written");
            slots = wanted;
        }
        let again = replay(&text[..], |scaling| Ok(scaling.clone())).expect("replayed");
        let again = again.values().next().expect("one model");
        assert_eq!((again.decisions, again.recorded), (120, again.replayed));
        assert!(again.changes.iter().all(|(_, recorded, replayed)| recorded == replayed), "{:?}", again.changes);
        let cut = [&text[..], &text[..40], &text[..]].concat();
        assert!(
            replay(&cut[..], |scaling| Ok(scaling.clone())).is_ok(),
            "half a line costs itself and what is glued to it"
        );
        assert!(replay(&b""[..], |scaling| Ok(scaling.clone())).is_err(), "nothing is in it");
        let fewer = replay(&text[..], |scaling| set(scaling, &["max_slots=2".into()])).expect("replayed");
        let fewer = fewer.values().next().expect("one model");
        assert!(fewer.replayed < fewer.recorded && fewer.changes.iter().all(|(_, _, slots)| *slots <= 2), "{fewer:?}");
        assert!(set(&Scaling::default(), &["maximum=2".into()]).is_err());
        assert!(
            replay(&b"{}\n"[..], |scaling| Ok(scaling.clone())).expect_err("refused").to_string().contains("line 1")
        );
    }

    #[test]
    fn a_record_takes_no_more_than_two_files_and_goes_on_where_it_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("decisions.jsonl");
        let demand = Demand {
            scaling: Scaling::default(),
            lag: Reading::Known(Lag { waiting: 1, running: 0 }),
            arrivals: 0.0,
            row_time: None,
            rows_per_request: 1.0,
            cold_start: Duration::ZERO,
            slots: 0,
        };
        let line = |at| Line::new(at, &"m".parse().expect("a name"), &demand, 1);
        let mut text = Vec::new();
        write(&mut text, &line(0)).expect("written");
        let limit = text.len() as u64 * 5 / 2;
        for at in 0..8 {
            // Begun anew each time: what is there already counts.
            let mut recorder = Recorder::open(path.clone(), limit).expect("opened");
            recorder.write([line(at)].into_iter()).expect("written");
        }
        let times = |name: &str| -> Vec<UnixMs> {
            let text = std::fs::read_to_string(folder.path().join(name)).expect("a file");
            text.lines().map(|line| serde_json::from_str::<Line>(line).expect("a line").at).collect()
        };
        assert_eq!((times("decisions.jsonl.1"), times("decisions.jsonl")), (vec![3, 4, 5], vec![6, 7]));
    }
}
