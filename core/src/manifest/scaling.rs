//! The manifest's section `[scaling]`: how many slots a model may have, how soon, and where.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How many slots a model has, as far as a person says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scaling {
    /// Never fewer, even if nobody asks.
    pub min_slots: usize,
    /// Never more.
    pub max_slots: usize,
    /// How long a request should wait at most.
    #[serde(with = "humantime_serde")]
    pub target_wait: Duration,
    /// Fewer slots only after so long without need for as many.
    #[serde(with = "humantime_serde")]
    pub scale_down_delay: Duration,
    /// None at all after so long without any request.
    #[serde(with = "humantime_serde")]
    pub idle_to_zero: Duration,
    /// The slots stay as many as they are, whatever waits.
    pub paused: bool,
    /// Whose share of the hosts it takes: `team`, or `team/project` for a part of one. The scaler's configuration gives groups
    /// weights and minimums.
    pub group: String,
    /// Within its group, models of a higher number have their slots first.
    pub priority: i32,
    /// Only hosts with all of these labels run it.
    pub selector: BTreeMap<String, String>,
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            min_slots: 0,
            max_slots: 8,
            target_wait: Duration::from_secs(2),
            scale_down_delay: Duration::from_secs(60),
            idle_to_zero: Duration::from_secs(120),
            paused: false,
            group: "default".into(),
            priority: 0,
            selector: BTreeMap::new(),
        }
    }
}

impl Scaling {
    /// Tells each setting that makes no sense, by its key, and what would be right.
    pub fn check(&self, fault: &mut impl FnMut(&str, String)) {
        if self.max_slots == 0 || self.max_slots > 100_000 {
            fault("scaling.max_slots", format!("is {}: 1 to 100000 (`sluice model stop` for none)", self.max_slots));
        }
        if self.min_slots > self.max_slots {
            fault(
                "scaling.min_slots",
                format!("is {}, more than `scaling.max_slots`, {}", self.min_slots, self.max_slots),
            );
        }
        if self.target_wait.is_zero() {
            fault("scaling.target_wait", "must be greater than 0".into());
        }
        if !is_group(&self.group) {
            fault("scaling.group", format!("is `{}`: {GROUP_RULE}", self.group));
        }
    }
}

/// What [`is_group`] asks for.
pub const GROUP_RULE: &str = "names of a-z, 0-9 and -, up to four levels apart by /";

/// Whether a text can be a group: names of models, one or more levels apart by `/`.
pub fn is_group(text: &str) -> bool {
    let levels: Vec<&str> = text.split('/').collect();
    levels.len() <= 4 && levels.iter().all(|level| level.parse::<crate::ModelName>().is_ok())
}
