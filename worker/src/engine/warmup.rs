//! Running a model before it serves: libtorch's first calls are slow, and what the model gives is checked against
//! its manifest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_core::{Manifest, Tensor};

use super::{EngineError, Model, example_size};

/// Two calls at one row and two at the largest batch: the sizes at which later calls are no slower. Returns how long a row of the last
/// took.
pub(super) fn warm_up<M: Model + 'static>(model: &Arc<M>, manifest: &Manifest) -> Result<Duration, EngineError> {
    let mut row_time = Duration::ZERO;
    for rows in [1, manifest.batching.max_rows] {
        let request = example(manifest, rows);
        for _ in 0..2 {
            let began = Instant::now();
            Arc::clone(model).gather(&[&request])?().map_err(|error| EngineError {
                message: format!("running {rows} rows of zeros: {}", error.message),
                ..error
            })?;
            row_time = began.elapsed().div_f64(rows as f64);
        }
    }
    Ok(row_time)
}

/// A request of zeros that fits the manifest.
pub fn example(manifest: &Manifest, rows: usize) -> Vec<Tensor> {
    let tensor = |spec: &sluice_core::manifest::TensorSpec| {
        let mut shape = vec![rows as i64];
        shape.extend(spec.shape.iter().skip(1).map(|dimension| match dimension.name() {
            Some(name) => example_size(manifest, name),
            None => dimension.size().unwrap_or(1),
        }));
        let bytes = shape.iter().product::<i64>() as usize * spec.datatype.size().unwrap_or(0);
        Tensor { name: spec.name.clone(), datatype: spec.datatype, shape, data: Bytes::from(vec![0; bytes]) }
    };
    manifest.inputs.iter().map(tensor).collect()
}
