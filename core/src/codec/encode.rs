//! Writing bodies. MessagePack is written field by field: it is on the path of every answer.

use std::convert::Infallible;

use bytes::{BufMut, Bytes, BytesMut};
use half::{bf16, f16};
use serde::Serialize;
use serde_json::{Value, json};

use super::Oversize;
use crate::{Datatype, InferRequest, InferResponse, Tensor};

/// So many elements are written between two looks at the size.
const STRIDE: usize = 1024;

pub(super) fn request_msgpack(request: &InferRequest, limit: usize) -> Result<Bytes, Oversize> {
    let mut out = writer(&request.inputs, limit)?;
    map(&mut out, if request.outputs.is_empty() { 1 } else { 2 });
    tensors(&mut out, "inputs", &request.inputs);
    if !request.outputs.is_empty() {
        text(&mut out, "outputs");
        array(&mut out, request.outputs.len());
        for output in &request.outputs {
            map(&mut out, 1);
            text(&mut out, "name");
            text(&mut out, output);
        }
    }
    Ok(out.into_inner().freeze())
}

pub(super) fn response_msgpack(response: &InferResponse<'_>, limit: usize) -> Result<Bytes, Oversize> {
    let mut out = writer(&response.outputs, limit)?;
    map(&mut out, 4);
    for (key, value) in
        [("model_name", &response.model_name), ("model_version", &response.model_version), ("id", &response.id)]
    {
        text(&mut out, key);
        text(&mut out, value);
    }
    tensors(&mut out, "outputs", &response.outputs);
    Ok(out.into_inner().freeze())
}

pub(super) fn request_json(request: &InferRequest, limit: usize) -> Result<Bytes, Oversize> {
    let mut out = br#"{"inputs":"#.to_vec();
    json_tensors(&mut out, &request.inputs, limit)?;
    if !request.outputs.is_empty() {
        let outputs: Value = request.outputs.iter().map(|name| json!({ "name": name })).collect();
        out.extend_from_slice(br#","outputs":"#);
        json(&mut out, &outputs);
    }
    out.push(b'}');
    Ok(out.into())
}

pub(super) fn response_json(response: &InferResponse<'_>, limit: usize) -> Result<Bytes, Oversize> {
    let mut out = Vec::new();
    for (before, value) in [
        (&br#"{"id":"#[..], &response.id),
        (br#","model_name":"#, &response.model_name),
        (br#","model_version":"#, &response.model_version),
    ] {
        out.extend_from_slice(before);
        json(&mut out, value);
    }
    out.extend_from_slice(br#","outputs":"#);
    json_tensors(&mut out, &response.outputs, limit)?;
    out.push(b'}');
    Ok(out.into())
}

type Writer = bytes::buf::Writer<BytesMut>;

/// Enough room for the tensors and their descriptions, so that the data are copied once.
fn writer(tensors: &[Tensor], limit: usize) -> Result<Writer, Oversize> {
    let data = tensors.iter().map(|tensor| tensor.data.len()).sum();
    refuse_beyond(limit, data)?;
    let described: usize = tensors.iter().map(|tensor| tensor.name.len() + 96).sum();
    Ok(BytesMut::with_capacity(data + described + 192).writer())
}

fn refuse_beyond(limit: usize, size: usize) -> Result<(), Oversize> {
    if size > limit { Err(Oversize(size)) } else { Ok(()) }
}

const MEMORY: &str = "writing to memory does not fail";

fn map(out: &mut Writer, length: u32) {
    rmp::encode::write_map_len(out, length).expect(MEMORY);
}

fn array(out: &mut Writer, length: usize) {
    rmp::encode::write_array_len(out, length as u32).expect(MEMORY);
}

fn text(out: &mut Writer, value: &str) {
    rmp::encode::write_str(out, value).expect(MEMORY);
}

fn tensors(out: &mut Writer, key: &str, tensors: &[Tensor]) {
    text(out, key);
    array(out, tensors.len());
    for tensor in tensors {
        map(out, 4);
        text(out, "name");
        text(out, &tensor.name);
        text(out, "datatype");
        text(out, tensor.datatype.as_str());
        text(out, "shape");
        array(out, tensor.shape.len());
        for dimension in &tensor.shape {
            rmp::encode::write_sint(out, *dimension).expect(MEMORY);
        }
        text(out, "data");
        rmp::encode::write_bin(out, &tensor.data).expect(MEMORY);
    }
}

fn json(out: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(out, value).expect(MEMORY);
}

/// Written value by value: a tree of all values would take some ten times the memory of a tensor.
fn json_tensors(out: &mut Vec<u8>, tensors: &[Tensor], limit: usize) -> Result<(), Oversize> {
    out.push(b'[');
    for (index, tensor) in tensors.iter().enumerate() {
        out.extend_from_slice(if index == 0 { br#"{"data":["# } else { br#",{"data":["# });
        let mut written = 0;
        each_value(tensor, &mut |value| {
            if written > 0 {
                out.push(b',');
            }
            json(out, &value);
            written += 1;
            if written % STRIDE == 0 { refuse_beyond(limit, out.len()) } else { Ok(()) }
        })?;
        out.extend_from_slice(br#"],"datatype":"#);
        json(out, &tensor.datatype.as_str());
        out.extend_from_slice(br#","name":"#);
        json(out, &tensor.name);
        out.extend_from_slice(br#","shape":"#);
        json(out, &tensor.shape);
        out.push(b'}');
    }
    out.push(b']');
    refuse_beyond(limit, out.len())
}

/// The double with the fewest digits that reads back as the same single: 0.1, not 0.10000000149011612.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

pub(super) fn json_data(tensor: &Tensor) -> Value {
    let mut values = Vec::new();
    let all: Result<(), Infallible> = each_value(tensor, &mut |value| {
        values.push(value);
        Ok(())
    });
    match all {
        Ok(()) => Value::Array(values),
    }
}

/// Hands out a tensor's values one after the other, until one is refused.
fn each_value<E>(tensor: &Tensor, take: &mut dyn FnMut(Value) -> Result<(), E>) -> Result<(), E> {
    let data = &tensor.data[..];
    macro_rules! numbers {
        ($type:ty, $convert:expr) => {
            data.as_chunks().0.iter().try_for_each(|bytes| take(json!($convert(<$type>::from_le_bytes(*bytes)))))
        };
    }
    match tensor.datatype {
        Datatype::Bool => data.iter().try_for_each(|byte| take(json!(*byte != 0))),
        Datatype::Uint8 => data.iter().try_for_each(|byte| take(json!(byte))),
        Datatype::Uint16 => numbers!(u16, |value| value),
        Datatype::Uint32 => numbers!(u32, |value| value),
        Datatype::Uint64 => numbers!(u64, |value| value),
        Datatype::Int8 => numbers!(i8, |value| value),
        Datatype::Int16 => numbers!(i16, |value| value),
        Datatype::Int32 => numbers!(i32, |value| value),
        Datatype::Int64 => numbers!(i64, |value| value),
        Datatype::Fp16 => numbers!(f16, |value: f16| shortest(value.to_f32())),
        Datatype::Bf16 => numbers!(bf16, |value: bf16| shortest(value.to_f32())),
        Datatype::Fp32 => numbers!(f32, shortest),
        Datatype::Fp64 => numbers!(f64, |value| value),
        Datatype::Bytes => {
            let mut rest = data;
            while let Some((prefix, after)) = rest.split_first_chunk::<4>() {
                let length = (u32::from_le_bytes(*prefix) as usize).min(after.len());
                take(json!(String::from_utf8_lossy(&after[..length])))?;
                rest = &after[length..];
            }
            Ok(())
        }
    }
}
