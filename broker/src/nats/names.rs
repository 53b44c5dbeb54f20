//! The names of streams, consumers and subjects.

use std::str::FromStr;

use sluice_core::{JobId, Lane, ModelName, RequestId};

/// Durable results, one subject per job and request.
pub(super) const RESULTS: &str = "RESULTS";
/// Requests that were given up.
pub(super) const DEAD: &str = "DEAD";
/// How often a request was handed back without a charge; see `settle`.
pub(super) const GIVEN_BACK: &str = "GIVEN_BACK";
/// The key-value bucket of leadership leases.
pub(super) const LEADERS: &str = "SLUICE_LEADERS";
/// The deployment's settings; see `settings`.
pub(super) const SETTINGS: &str = "SLUICE_SETTINGS";
/// The streams that all models share, those of buckets among them.
pub(super) const SHARED: [&str; 7] =
    [RESULTS, DEAD, GIVEN_BACK, SETTINGS, "KV_SLUICE_LEADERS", "KV_SLUICE_REGISTRY", "OBJ_SLUICE_PACKAGES"];
const WORK_PREFIX: &str = "INFER_";

pub(super) fn work_stream(model: &ModelName) -> String {
    format!("{WORK_PREFIX}{model}")
}

pub(super) fn model_of_stream(stream: &str) -> Option<ModelName> {
    stream.strip_prefix(WORK_PREFIX).and_then(|model| ModelName::from_str(model).ok())
}

pub(super) fn work_subject(model: &ModelName, lane: Lane) -> String {
    ["infer.", model.as_str(), ".", lane.as_str()].concat()
}

pub(super) fn result_subject(job: &JobId, id: &RequestId) -> String {
    ["results.", job.as_str(), ".", id.as_str()].concat()
}

pub(super) fn dead_subject(model: &ModelName) -> String {
    format!("dead.{model}")
}

pub(super) fn given_back_subject(model: &ModelName, sequence: u64) -> String {
    format!("givenback.{model}.{sequence}")
}

pub(super) fn control_subject(topic: &str) -> String {
    format!("control.{topic}")
}

/// The lane at the end of a subject or an inbox.
pub(super) fn lane_of(subject: &str) -> Option<Lane> {
    subject.rsplit('.').next().and_then(|lane| lane.parse().ok())
}
