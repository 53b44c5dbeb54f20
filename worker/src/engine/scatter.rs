//! From a batch's output tensors back to each request's: byte ranges that share the tensor, not copies.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use sluice_core::manifest::{Dimension, Manifest, TensorSpec};
use sluice_core::{Datatype, Tensor};

use super::gather::{copy_box, kind_of};
use super::script::Value;
use super::{Blame, EngineError, native, torch_error};

/// What the gathered batch looked like: rows of each request, and its sizes of the padded dimensions.
pub(super) struct Layout {
    pub rows: Vec<usize>,
    pub padded: Vec<BTreeMap<String, i64>>,
}

/// Whether answers may share memory with what the model returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    Shared,
    Copied,
}

/// Finds the manifest's outputs in what the model returned, by name in a dict, by order elsewhere.
pub(super) fn outputs_of(manifest: &Manifest, value: Value) -> Result<Vec<tch::Tensor>, String> {
    let wanted = &manifest.outputs;
    let tensor = |name: &str, value: Value| match value {
        Value::Tensor(tensor) => Ok(tensor),
        other => Err(format!("output `{name}` is {}, not a tensor", describe(&other))),
    };
    match value {
        Value::Tensor(tensor) if wanted.len() == 1 => Ok(vec![tensor]),
        // A tuple of one is what some exporters make of a tensor.
        Value::Sequence(mut items) if items.len() == 1 && matches!(items[0], Value::Sequence(_) | Value::Dict(_)) => {
            outputs_of(manifest, items.remove(0))
        }
        Value::Sequence(items) if items.len() == wanted.len() => {
            items.into_iter().zip(wanted).map(|(item, spec)| tensor(&spec.name, item)).collect()
        }
        Value::Dict(mut items) => wanted
            .iter()
            .map(|spec| match items.iter().position(|(name, _)| *name == spec.name) {
                Some(at) => tensor(&spec.name, items.swap_remove(at).1),
                None => {
                    let names: Vec<_> = items.iter().map(|(name, _)| format!("`{name}`")).collect();
                    Err(format!("the model returns a dict without `{}`; left are {}", spec.name, names.join(", ")))
                }
            })
            .collect(),
        other => Err(format!("the manifest has {} outputs, the model returns {}", wanted.len(), describe(&other))),
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Tensor(_) => "one tensor".into(),
        Value::Sequence(items) => format!("{} values", items.len()),
        Value::Dict(items) => format!("a dict of {}", items.len()),
        Value::Other(what) => (*what).into(),
    }
}

/// Checks an output against the manifest; the error shows both.
pub(super) fn check(spec: &TensorSpec, output: &tch::Tensor, rows: i64) -> Result<(), String> {
    let shape = output.size();
    let kind = output.f_kind().ok();
    if kind.is_some() && kind == kind_of(spec.datatype) && shape.first() == Some(&rows) && spec.fits(&shape) {
        return Ok(());
    }
    let found = Datatype::ALL.into_iter().find(|datatype| kind.is_some() && kind_of(*datatype) == kind);
    let found =
        found.map_or_else(|| "a datatype that the protocol does not have".to_owned(), |found| found.to_string());
    Err(format!(
        "output `{}`: the manifest says {}, the model gives {found} {shape:?} for {rows} rows",
        spec.name,
        spec.signature()
    ))
}

/// Divides a batch's outputs among its requests.
pub(super) fn scatter(
    manifest: &Manifest,
    value: Value,
    layout: &Layout,
    memory: Memory,
) -> Result<Vec<Vec<Tensor>>, EngineError> {
    let wrong = |message: String| EngineError::new(Blame::Request, message);
    let outputs = outputs_of(manifest, value).map_err(wrong)?;
    let rows: usize = layout.rows.iter().sum();
    let mut requests: Vec<Vec<Tensor>> = layout.rows.iter().map(|_| Vec::with_capacity(outputs.len())).collect();
    let mut gpus = BTreeSet::new();
    let mut plain = Vec::with_capacity(outputs.len());
    for (spec, output) in manifest.outputs.iter().zip(outputs) {
        let made = native::plain(&output, memory == Memory::Copied).map_err(|error| {
            let explained = torch_error::explain(&error);
            EngineError {
                message: format!("output `{}` cannot be read: {}", spec.name, explained.message),
                ..explained
            }
        })?;
        check(spec, &made, rows as i64).map_err(wrong)?;
        if let tch::Device::Cuda(gpu) = output.device() {
            gpus.insert(gpu);
        }
        plain.push(made);
    }
    // Once for all outputs, which are on their way together.
    for gpu in gpus {
        native::wait_for(gpu).map_err(|error| torch_error::explain(&error))?;
    }
    for (spec, output) in manifest.outputs.iter().zip(plain) {
        let (shape, bytes) = bytes_of(spec, output);
        let row = bytes.len() / rows;
        let mut at = 0;
        for (index, rows) in layout.rows.iter().enumerate() {
            let mine = bytes.slice(at..at + rows * row);
            at += rows * row;
            let mut own = shape.clone();
            own[0] = *rows as i64;
            requests[index].push(unpad(spec, &layout.padded[index], own, mine));
        }
    }
    Ok(requests)
}

/// Cuts an output back to the request's own size where its dimension was padded.
fn unpad(spec: &TensorSpec, padded: &BTreeMap<String, i64>, shape: Vec<i64>, data: Bytes) -> Tensor {
    let size = |(at, dimension): (usize, &Dimension)| {
        dimension.name().and_then(|name| padded.get(name)).copied().unwrap_or(shape[at]).min(shape[at])
    };
    let own: Vec<i64> = spec
        .shape
        .iter()
        .enumerate()
        .map(|(at, dimension)| if at == 0 { shape[0] } else { size((at, dimension)) })
        .collect();
    let name = spec.name.clone();
    if own == shape {
        return Tensor { name, datatype: spec.datatype, shape, data };
    }
    let element = spec.datatype.size().unwrap_or(1);
    let mut cut = vec![0; own.iter().product::<i64>() as usize * element];
    copy_box(&mut cut, &own, &data, &shape, element);
    Tensor { name, datatype: spec.datatype, shape: own, data: cut.into() }
}

/// A tensor's memory, owned.
struct Owner {
    tensor: tch::Tensor,
    length: usize,
}

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the tensor is contiguous, on the CPU, of this many bytes, and is not written to any more.
        unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast::<u8>(), self.length) }
    }
}

/// The bytes of a plain tensor of the spec's datatype.
fn bytes_of(spec: &TensorSpec, tensor: tch::Tensor) -> (Vec<i64>, Bytes) {
    let shape = tensor.size();
    let length = shape.iter().product::<i64>() as usize * spec.datatype.size().unwrap_or(1);
    if length == 0 {
        return (shape, Bytes::new());
    }
    (shape, Bytes::from_owner(Owner { tensor, length }))
}
