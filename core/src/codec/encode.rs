//! Writing bodies. MessagePack is written field by field: it is on the path of every answer.

use bytes::{BufMut, Bytes, BytesMut};
use half::{bf16, f16};
use serde_json::{Value, json};

use crate::{Datatype, InferRequest, InferResponse, Tensor};

pub(super) fn request_msgpack(request: &InferRequest) -> Bytes {
    let mut out = writer(&request.inputs);
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
    out.into_inner().freeze()
}

pub(super) fn response_msgpack(response: &InferResponse<'_>) -> Bytes {
    let mut out = writer(&response.outputs);
    map(&mut out, 4);
    for (key, value) in
        [("model_name", &response.model_name), ("model_version", &response.model_version), ("id", &response.id)]
    {
        text(&mut out, key);
        text(&mut out, value);
    }
    tensors(&mut out, "outputs", &response.outputs);
    out.into_inner().freeze()
}

pub(super) fn request_json(request: &InferRequest) -> Bytes {
    let mut body = json!({ "inputs": json_tensors(&request.inputs) });
    if !request.outputs.is_empty() {
        body["outputs"] = request.outputs.iter().map(|name| json!({ "name": name })).collect();
    }
    body.to_string().into()
}

pub(super) fn response_json(response: &InferResponse<'_>) -> Bytes {
    json!({
        "model_name": response.model_name,
        "model_version": response.model_version,
        "id": response.id,
        "outputs": json_tensors(&response.outputs),
    })
    .to_string()
    .into()
}

type Writer = bytes::buf::Writer<BytesMut>;

/// Enough room for the tensors and their descriptions, so that the data are copied once.
fn writer(tensors: &[Tensor]) -> Writer {
    let data: usize = tensors.iter().map(|tensor| tensor.data.len() + tensor.name.len() + 96).sum();
    BytesMut::with_capacity(data + 192).writer()
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

fn json_tensors(tensors: &[Tensor]) -> Vec<Value> {
    let one = |tensor: &Tensor| {
        json!({
            "name": tensor.name,
            "datatype": tensor.datatype.as_str(),
            "shape": tensor.shape,
            "data": json_data(tensor),
        })
    };
    tensors.iter().map(one).collect()
}

/// The double with the fewest digits that reads back as the same single: 0.1, not 0.10000000149011612.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

pub(super) fn json_data(tensor: &Tensor) -> Value {
    let data = &tensor.data[..];
    macro_rules! numbers {
        ($type:ty, $convert:expr) => {
            data.as_chunks().0.iter().map(|bytes| json!($convert(<$type>::from_le_bytes(*bytes)))).collect()
        };
    }
    match tensor.datatype {
        Datatype::Bool => data.iter().map(|byte| json!(*byte != 0)).collect(),
        Datatype::Uint8 => data.iter().map(|byte| json!(byte)).collect(),
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
            let mut elements = Vec::new();
            let mut rest = data;
            while let Some((prefix, after)) = rest.split_first_chunk::<4>() {
                let length = (u32::from_le_bytes(*prefix) as usize).min(after.len());
                elements.push(json!(String::from_utf8_lossy(&after[..length])));
                rest = &after[length..];
            }
            Value::Array(elements)
        }
    }
}
