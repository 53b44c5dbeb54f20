//! Filling a batch's tensors: one copy of each request's bytes, straight into the tensor that the model gets, or that its GPU reads.

use std::collections::BTreeMap;

use sluice_core::manifest::{Padding, TensorSpec};
use sluice_core::{Datatype, Tensor};
use tch::{Kind, TchError};

use super::native;

/// libtorch's name for a datatype; `None` for those that it does not share with the protocol.
pub(super) fn kind_of(datatype: Datatype) -> Option<Kind> {
    match datatype {
        Datatype::Bool => Some(Kind::Bool),
        Datatype::Uint8 => Some(Kind::Uint8),
        Datatype::Int8 => Some(Kind::Int8),
        Datatype::Int16 => Some(Kind::Int16),
        Datatype::Int32 => Some(Kind::Int),
        Datatype::Int64 => Some(Kind::Int64),
        Datatype::Fp16 => Some(Kind::Half),
        Datatype::Bf16 => Some(Kind::BFloat16),
        Datatype::Fp32 => Some(Kind::Float),
        Datatype::Fp64 => Some(Kind::Double),
        Datatype::Uint16 | Datatype::Uint32 | Datatype::Uint64 | Datatype::Bytes => None,
    }
}

/// The shape of one input over a batch: rows are summed, padded dimensions are the largest, rounded up.
pub(super) fn batch_shape(spec: &TensorSpec, padding: &BTreeMap<String, Padding>, parts: &[&Tensor]) -> Vec<i64> {
    let mut shape = parts.first().map(|first| first.shape.clone()).unwrap_or_default();
    if let Some(rows) = shape.first_mut() {
        *rows = parts.iter().map(|part| part.shape[0]).sum();
    }
    for (at, dimension) in spec.shape.iter().enumerate().skip(1) {
        if let Some(padding) = dimension.name().and_then(|name| padding.get(name)) {
            let largest = parts.iter().map(|part| part.shape[at]).max().unwrap_or(0);
            let multiple = i64::from(padding.multiple_of.max(1));
            shape[at] = largest.div_euclid(multiple) * multiple + if largest % multiple == 0 { 0 } else { multiple };
        }
    }
    shape
}

/// One input of a batch, on the CPU, in memory that a GPU can read by itself if it goes `to` one.
pub(super) fn fill(
    spec: &TensorSpec,
    padding: &BTreeMap<String, Padding>,
    parts: &[&Tensor],
    to: tch::Device,
) -> Result<tch::Tensor, TchError> {
    let kind = kind_of(spec.datatype).ok_or_else(|| TchError::Kind(format!("{} is not supported", spec.datatype)))?;
    let size = spec.datatype.size().unwrap_or(1);
    let shape = batch_shape(spec, padding, parts);
    let mut tensor = tch::Tensor::f_empty(&shape[..], (kind, tch::Device::Cpu))?;
    if to.is_cuda() {
        tensor = native::pinned_like(&tensor)?;
    }
    let bytes = shape.iter().product::<i64>() as usize * size;
    // SAFETY: a fresh contiguous CPU tensor of that shape and kind owns exactly so many bytes, and nobody else has
    // seen it.
    let target = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<u8>(), bytes) };
    if parts.iter().all(|part| part.shape[1..] == shape[1..]) {
        let mut rest = target;
        for part in parts {
            let (here, after) = rest.split_at_mut(part.data.len());
            here.copy_from_slice(&part.data);
            rest = after;
        }
        return Ok(tensor);
    }
    let element = element(spec.datatype, pad_value(spec, padding));
    for chunk in target.chunks_exact_mut(size) {
        chunk.copy_from_slice(&element[..size]);
    }
    let row = shape[1..].iter().product::<i64>() as usize * size;
    let mut at = 0;
    for part in parts {
        let rows = part.rows();
        copy_box(&mut target[at..at + rows * row], &inner(rows, &shape), &part.data, &part.shape, size);
        at += rows * row;
    }
    Ok(tensor)
}

fn inner(rows: usize, shape: &[i64]) -> Vec<i64> {
    let mut inner = shape.to_vec();
    inner[0] = rows as i64;
    inner
}

fn pad_value(spec: &TensorSpec, padding: &BTreeMap<String, Padding>) -> f64 {
    let mut values = spec.shape.iter().filter_map(|dimension| padding.get(dimension.name()?));
    values.next().map_or(0.0, |padding| padding.value)
}

/// The bytes of one element of that value.
fn element(datatype: Datatype, value: f64) -> [u8; 8] {
    let mut bytes = [0; 8];
    let mut put = |value: &[u8]| bytes[..value.len()].copy_from_slice(value);
    match datatype {
        Datatype::Bool => put(&[u8::from(value != 0.0)]),
        Datatype::Uint8 => put(&(value as u8).to_le_bytes()),
        Datatype::Int8 => put(&(value as i8).to_le_bytes()),
        Datatype::Int16 => put(&(value as i16).to_le_bytes()),
        Datatype::Int32 => put(&(value as i32).to_le_bytes()),
        Datatype::Int64 => put(&(value as i64).to_le_bytes()),
        Datatype::Fp16 => put(&half::f16::from_f64(value).to_le_bytes()),
        Datatype::Bf16 => put(&half::bf16::from_f64(value).to_le_bytes()),
        Datatype::Fp32 => put(&(value as f32).to_le_bytes()),
        Datatype::Fp64 => put(&value.to_le_bytes()),
        Datatype::Uint16 | Datatype::Uint32 | Datatype::Uint64 | Datatype::Bytes => {}
    }
    bytes
}

/// Copies the part of a row-major box that two shapes have in common, corner to corner. The shapes have the same
/// number of dimensions.
pub(super) fn copy_box(target: &mut [u8], target_shape: &[i64], source: &[u8], source_shape: &[i64], size: usize) {
    let (Some((&target_length, target_inner)), Some((&source_length, source_inner))) =
        (target_shape.split_first(), source_shape.split_first())
    else {
        target[..size].copy_from_slice(&source[..size]);
        return;
    };
    let both = target_length.min(source_length) as usize;
    let target_step = target_inner.iter().product::<i64>() as usize * size;
    let source_step = source_inner.iter().product::<i64>() as usize * size;
    if target_inner == source_inner {
        target[..both * target_step].copy_from_slice(&source[..both * source_step]);
        return;
    }
    for index in 0..both {
        copy_box(&mut target[index * target_step..], target_inner, &source[index * source_step..], source_inner, size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_copied_corner_to_corner_both_ways() {
        let source: Vec<u8> = (1..=6).collect();
        let mut padded = vec![0; 2 * 4];
        copy_box(&mut padded, &[2, 4], &source, &[2, 3], 1);
        assert_eq!(padded, [1, 2, 3, 0, 4, 5, 6, 0]);
        let mut cut = vec![0; 2 * 3];
        copy_box(&mut cut, &[2, 3], &padded, &[2, 4], 1);
        assert_eq!(cut, source);
    }
}
