//! Requests that fit a manifest, while nothing is known of those that will come.

use std::collections::BTreeMap;

use sluice_core::manifest::TensorSpec;
use sluice_core::{Datatype, Manifest, Tensor};

/// A request of zeros.
pub fn zeros(manifest: &Manifest, rows: usize) -> Vec<Tensor> {
    zeros_of(manifest, rows, &BTreeMap::new())
}

/// With other sizes than the manifest's examples for some dimensions.
fn zeros_of(manifest: &Manifest, rows: usize, sizes: &BTreeMap<String, i64>) -> Vec<Tensor> {
    let tensor = |spec: &TensorSpec| {
        let mut shape = vec![rows as i64];
        shape.extend(spec.shape.iter().skip(1).map(|dimension| match dimension.name() {
            Some(name) => sizes.get(name).copied().unwrap_or_else(|| manifest.example_size(name)),
            None => dimension.size().unwrap_or(1),
        }));
        let bytes = shape.iter().product::<i64>() as usize * spec.datatype.size().unwrap_or(0);
        Tensor { name: spec.name.clone(), datatype: spec.datatype, shape, data: vec![0; bytes].into() }
    };
    manifest.inputs.iter().map(tensor).collect()
}

/// A request of floats from 0 to 1 and integers 0 and 1, which any vocabulary and any mask has; the same for the same `seed`.
pub fn random(manifest: &Manifest, rows: usize, seed: u64) -> Vec<Tensor> {
    random_of(manifest, rows, seed, &BTreeMap::new())
}

/// With other sizes than the manifest's examples for some dimensions.
pub fn random_of(manifest: &Manifest, rows: usize, seed: u64, sizes: &BTreeMap<String, i64>) -> Vec<Tensor> {
    // Xorshift: any numbers do, as long as they are the same each time.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut fill = |tensor: Tensor| {
        let count = tensor.shape.iter().product::<i64>() as usize;
        let mut data = Vec::with_capacity(tensor.data.len());
        for _ in 0..count {
            let bits = next();
            let fraction = (bits >> 11) as f64 / (1_u64 << 53) as f64;
            match tensor.datatype {
                Datatype::Fp64 => data.extend(fraction.to_le_bytes()),
                Datatype::Fp32 => data.extend((fraction as f32).to_le_bytes()),
                Datatype::Fp16 => data.extend(half::f16::from_f64(fraction).to_le_bytes()),
                Datatype::Bf16 => data.extend(half::bf16::from_f64(fraction).to_le_bytes()),
                other => {
                    data.push((bits >> 63) as u8);
                    data.resize(data.len() + other.size().unwrap_or(1) - 1, 0);
                }
            }
        }
        Tensor { data: data.into(), ..tensor }
    };
    zeros_of(manifest, rows, sizes).into_iter().map(&mut fill).collect()
}
