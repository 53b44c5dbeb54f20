//! What several programs create together has its settings in one place: the deployment's, stored with it in its broker. A program's
//! own configuration counts only for the first that comes.

use std::time::Duration;

/// The topic on which a change of the settings is told.
pub const SETTINGS: &str = "settings";

/// A deployment's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Copies of each queue, of results, dead letters and the registry in a cluster.
    pub replicas: usize,
    /// How long the broker waits for a sign of life of a taken request before it delivers it again.
    pub hold_time: Duration,
    /// Within this time a repeated submission id is stored once.
    pub dedupe_window: Duration,
    /// How long durable results are kept.
    pub results_kept: Duration,
    /// How long dead letters are kept.
    pub dead_letters_kept: Duration,
    /// MiB of durable results: beyond that, the oldest are removed before their time.
    pub results_mib: u64,
    /// MiB of dead letters, likewise.
    pub dead_letters_mib: u64,
    /// MiB of each model's queue: beyond that, it is full.
    pub queue_mib: u64,
}

/// Whether what exists is to be made as the settings say, or only to be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apply {
    /// Tell what differs.
    Look,
    /// Change it.
    Change,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            replicas: 1,
            hold_time: Duration::from_secs(30),
            dedupe_window: Duration::from_secs(120),
            results_kept: Duration::from_secs(24 * 3600),
            dead_letters_kept: Duration::from_secs(14 * 24 * 3600),
            // Together with some ten queues less than the 8 GB that a developer's broker has.
            results_mib: 4096,
            dead_letters_mib: 1024,
            queue_mib: 512,
        }
    }
}

/// NATS allows no more copies.
const MOST_REPLICAS: usize = 5;
/// The least that a store of messages can be of use with, since one message may have 8 MiB.
pub const LEAST_MIB: u64 = 8;
/// One pebibyte: more than a broker has.
const MOST_MIB: u64 = 1 << 30;
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl Settings {
    /// Each setting under its key, which is that of the `[broker]` section, as text that [`Settings::set`] takes.
    pub fn pairs(&self) -> [(&'static str, String); 8] {
        let time = |time: Duration| humantime::format_duration(time).to_string();
        [
            ("replicas", self.replicas.to_string()),
            ("hold_time", time(self.hold_time)),
            ("dedupe_window", time(self.dedupe_window)),
            ("results_kept", time(self.results_kept)),
            ("dead_letters_kept", time(self.dead_letters_kept)),
            ("results_mib", self.results_mib.to_string()),
            ("dead_letters_mib", self.dead_letters_mib.to_string()),
            ("queue_mib", self.queue_mib.to_string()),
        ]
    }

    /// Sets one; the error says what would be right.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let place = match key {
            "replicas" => {
                let replicas = value.parse().ok().filter(|replicas| (1..=MOST_REPLICAS).contains(replicas));
                self.replicas =
                    replicas.ok_or_else(|| format!("`replicas` is `{value}`: a number from 1 to {MOST_REPLICAS}"))?;
                return Ok(());
            }
            "results_mib" => return mib(&mut self.results_mib, key, value),
            "dead_letters_mib" => return mib(&mut self.dead_letters_mib, key, value),
            "queue_mib" => return mib(&mut self.queue_mib, key, value),
            "hold_time" => &mut self.hold_time,
            "dedupe_window" => &mut self.dedupe_window,
            "results_kept" => &mut self.results_kept,
            "dead_letters_kept" => &mut self.dead_letters_kept,
            _ => {
                let known = self.pairs().map(|(key, _)| key).join(", ");
                return Err(format!("there is no setting `{key}`: a deployment has {known}"));
            }
        };
        let time = humantime::parse_duration(value).ok().filter(|time| (SHORTEST..=LONGEST).contains(time));
        *place = time.ok_or_else(|| format!("`{key}` is `{value}`: a time of 1s or more, such as 30s, 12h or 14d"))?;
        Ok(())
    }

    /// Reads what was stored. What another version of Sluice wrote and this one does not know is passed over; of what it knows but
    /// cannot read it may not take its own default, which might be less: the error names all of that.
    pub fn read<'p>(pairs: impl IntoIterator<Item = (&'p str, &'p str)>) -> Result<Self, String> {
        let mut settings = Self::default();
        let known = settings.pairs().map(|(key, _)| key);
        let known = pairs.into_iter().filter(|(key, _)| known.contains(key));
        let faults: Vec<String> = known.filter_map(|(key, value)| settings.set(key, value).err()).collect();
        if faults.is_empty() { Ok(settings) } else { Err(faults.join("; ")) }
    }

    /// What a broker has, as it can be stored: where a broker keeps something for ever, it says zero.
    pub fn within_bounds(self) -> Self {
        let kept = |time: Duration| if time.is_zero() { LONGEST } else { time.clamp(SHORTEST, LONGEST) };
        Self {
            replicas: self.replicas.clamp(1, MOST_REPLICAS),
            hold_time: self.hold_time.clamp(SHORTEST, LONGEST),
            dedupe_window: self.dedupe_window.clamp(SHORTEST, LONGEST),
            results_kept: kept(self.results_kept),
            dead_letters_kept: kept(self.dead_letters_kept),
            results_mib: self.results_mib.clamp(LEAST_MIB, MOST_MIB),
            dead_letters_mib: self.dead_letters_mib.clamp(LEAST_MIB, MOST_MIB),
            queue_mib: self.queue_mib.clamp(LEAST_MIB, MOST_MIB),
        }
    }

    /// What differs: the key, what is here and what is there.
    pub fn differences(&self, other: &Self) -> Vec<(&'static str, String, String)> {
        let pairs = self.pairs().into_iter().zip(other.pairs());
        pairs.filter(|(here, there)| here != there).map(|((key, here), (_, there))| (key, here, there)).collect()
    }

    /// What cannot be, each with its key.
    pub fn faults(&self) -> Vec<String> {
        let mut tried = Self::default();
        self.pairs().into_iter().filter_map(|(key, value)| tried.set(key, &value).err()).collect()
    }
}

fn mib(place: &mut u64, key: &str, value: &str) -> Result<(), String> {
    let mib = value.parse().ok().filter(|mib| (LEAST_MIB..=MOST_MIB).contains(mib));
    *place = mib.ok_or_else(|| format!("`{key}` is `{value}`: a number of MiB from {LEAST_MIB} to {MOST_MIB}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_read_again() {
        let mut settings = Settings { replicas: 3, hold_time: Duration::from_millis(2500), ..Settings::default() };
        settings.set("results_kept", "36h").expect("a time");
        let pairs = settings.pairs();
        let stored =
            pairs.iter().map(|(key, value)| (*key, value.as_str())).chain([("_nats.level", "1"), ("new", "x")]);
        assert_eq!(Settings::read(stored), Ok(settings.clone()));
        assert_eq!(settings.faults(), Vec::<String>::new());
    }

    #[test]
    fn no_default_is_taken_for_what_cannot_be_read() {
        let stored = [("results_kept", "0s"), ("replicas", "3"), ("hold_time", "soon"), ("new", "x")];
        let error = Settings::read(stored).expect_err("two cannot be read");
        assert!(error.contains("`results_kept` is `0s`") && error.contains("`hold_time` is `soon`"), "{error}");
    }

    #[test]
    fn for_ever_is_stored_as_the_longest_time_that_can_be() {
        let found = Settings { results_kept: Duration::ZERO, dead_letters_kept: Duration::MAX, ..Settings::default() };
        let stored = found.within_bounds();
        assert_eq!((stored.results_kept, stored.dead_letters_kept), (LONGEST, LONGEST));
        let pairs = stored.pairs();
        assert_eq!(Settings::read(pairs.iter().map(|(key, value)| (*key, value.as_str()))), Ok(stored));
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_would_be_right() {
        let mut settings = Settings::default();
        for (key, value, told) in [
            ("replicas", "0", "from 1 to 5"),
            ("replicas", "many", "from 1 to 5"),
            ("hold_time", "0s", "1s or more"),
            ("hold_time", "soon", "such as 30s"),
            ("copies", "3", "a deployment has replicas, hold_time"),
            ("queue_mib", "0", "from 8 to"),
            ("results_mib", "4GB", "a number of MiB"),
        ] {
            let refused = settings.set(key, value).expect_err(key);
            assert!(refused.contains(told), "{refused}");
        }
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn differences_name_both_values() {
        let other = Settings { replicas: 3, ..Settings::default() };
        assert_eq!(Settings::default().differences(&other), [("replicas", "1".into(), "3".into())]);
    }
}
