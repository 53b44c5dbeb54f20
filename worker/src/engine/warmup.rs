//! Running a model before it serves: libtorch's first calls are slow, and what the model gives is checked against
//! its manifest.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_core::Manifest;
use sluice_core::manifest::Dimension;

use super::{EngineError, Model, example};

/// Two calls at one row and two at the largest batch: the sizes at which later calls are no slower. Returns how long a row of the last
/// took.
pub(super) fn warm_up<M: Model + 'static>(model: &Arc<M>, manifest: &Manifest) -> Result<Duration, EngineError> {
    let mut row_time = Duration::ZERO;
    for rows in [1, manifest.batching.max_rows] {
        let request = example::zeros(manifest, rows);
        for _ in 0..2 {
            let began = Instant::now();
            Arc::clone(model).gather(&[&request])?().map_err(|error| EngineError {
                message: format!("running {rows} rows of zeros{}: {}", sizes(manifest), error.message),
                ..error
            })?;
            row_time = began.elapsed().div_f64(rows as f64);
        }
    }
    Ok(row_time)
}

/// The sizes that were taken for dimensions that vary, and how to have others.
fn sizes(manifest: &Manifest) -> String {
    let names = manifest.inputs.iter().flat_map(|spec| spec.shape.iter().filter_map(Dimension::name));
    let names: BTreeSet<&str> = names.collect();
    let Some(first) = names.first() else { return String::new() };
    let taken: Vec<String> = names.iter().map(|name| format!("{name} = {}", manifest.example_size(name))).collect();
    format!(" with {} (to have others, write `[sizes]` and `{first} = {{ example = 1000 }}`)", taken.join(", "))
}
