//! What a model keeps from one call to the next. Slots must not share it, and answers must not depend on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_core::{Manifest, Tensor};

use super::{EngineError, Model, compare, example};

/// What `forward` writes: what its code says, and which buffers two runs changed. Batch normalisation, for one, writes without saying.
pub(super) fn written(
    mut said: Vec<String>,
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> Vec<String> {
    let changed = after.iter().filter(|(path, hash)| before.get(*path) != Some(hash)).map(|(path, _)| path.clone());
    said.extend(changed);
    said.sort();
    said.dedup();
    said
}

/// Whether what a request is answered depends on the requests before it.
pub(super) fn remembers(model: &Arc<dyn Model>, manifest: &Manifest) -> bool {
    let rows = manifest.batching.max_rows.min(2);
    let (request, other) = (example::random(manifest, rows, 1), example::random(manifest, rows, 2));
    let again = || {
        let first = run(model, &request)?;
        let second = run(model, &request)?;
        _ = run(model, &other)?;
        Ok([first, second, run(model, &request)?])
    };
    // What does not run on random rows is told by its requests.
    let again: Result<_, EngineError> = again();
    again.is_ok_and(|[first, second, third]| differ(&first, &second) || differ(&first, &third))
}

/// Whether two copies that have run nothing answer the same request differently: then nothing tells what a model that draws random numbers
/// remembers. Many draw none, such as those with dropout, which does nothing once they are trained. Seeding would disturb other models of
/// the process, which draw from the same source.
pub(super) fn is_random(model: &Arc<dyn Model>, manifest: &Manifest) -> bool {
    let request = example::random(manifest, manifest.batching.max_rows.min(2), 1);
    let fresh = || run(&Arc::clone(model).for_another_slot(), &request);
    let both = || Ok::<_, EngineError>([fresh()?, fresh()?]);
    both().is_ok_and(|[one, other]| differ(&one, &other))
}

fn run(model: &Arc<dyn Model>, request: &[Tensor]) -> Result<Vec<Tensor>, EngineError> {
    Ok(Arc::clone(model).gather(&[request])?()?.pop().unwrap_or_default())
}

fn differ(one: &[Tensor], other: &[Tensor]) -> bool {
    one.iter().zip(other).any(|(one, other)| compare::difference(one, other).is_some())
}

/// Why such a model is not served, and what helps.
pub(super) fn refusal(writes: &[String]) -> String {
    format!(
        "answers depend on the calls before: forward keeps {} in the module, so that requests would get values of other requests. Let \
         forward begin with fresh values each time, or make the state an input and an output; then export it again",
        names(writes)
    )
}

/// Why one whose answers are random besides is not served, and what helps.
pub(super) fn random_refusal(writes: &[String]) -> String {
    format!(
        "answers are random, and forward keeps {} in the module: whether requests would get values of other requests cannot be told. Let          forward write nothing into the module, or draw no random numbers; then export it again",
        names(writes)
    )
}

/// `h` and `c`, quoted, for a sentence.
pub fn names(writes: &[String]) -> String {
    let quoted: Vec<String> = writes.iter().take(5).map(|path| format!("`{path}`")).collect();
    let more = writes.len().saturating_sub(5);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", quoted.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_that_runs_changed_are_written_too() {
        let hashes = |entries: &[(&str, &str)]| -> BTreeMap<String, String> {
            entries.iter().map(|(path, hash)| (path.to_string(), hash.to_string())).collect()
        };
        let before = hashes(&[("bn.mean", "1"), ("scale", "2")]);
        let after = hashes(&[("bn.mean", "3"), ("scale", "2")]);
        assert_eq!(written(vec!["h".into(), "c".into()], &before, &after), ["bn.mean", "c", "h"]);
        assert!(written(Vec::new(), &before, &before).is_empty());
        let many: Vec<String> = ('a'..='g').map(String::from).collect();
        assert_eq!(names(&many), "`a`, `b`, `c`, `d`, `e` and 2 more");
    }
}
