//! Open Inference Protocol v2 bodies as MessagePack or JSON, to and from messages in memory.
//! In MessagePack a tensor's data may be one `bin`, which is shared with the body and not copied.

mod bounds;
mod data;
mod encode;

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;

use crate::{Datatype, ErrorCode, Failure, InferRequest, InferResponse, Tensor};
use bounds::{Few, Named};
use data::WireData;

/// How a body is encoded. A reply uses the encoding of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ContentType {
    /// `application/msgpack`, the default.
    #[default]
    MessagePack,
    /// `application/json`.
    Json,
}

impl ContentType {
    /// The media type.
    pub fn as_str(self) -> &'static str {
        match self {
            ContentType::MessagePack => "application/msgpack",
            ContentType::Json => "application/json",
        }
    }
}

impl fmt::Display for ContentType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for ContentType {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let media_type = text.split(';').next().unwrap_or_default().trim();
        match media_type.to_ascii_lowercase().as_str() {
            "application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack" => Ok(ContentType::MessagePack),
            "application/json" => Ok(ContentType::Json),
            other => {
                let given: String = other.chars().take(80).collect();
                Err(format!("content type `{given}` is neither application/msgpack nor application/json"))
            }
        }
    }
}

/// Nested arrays are taken as deep as a tensor may have dimensions, and a little more for what surrounds them.
const MAX_DEPTH: usize = 32;
/// More tensors than any model takes or gives; a bound on what a body can cost.
const MOST_TENSORS: usize = 1024;
/// More dimensions than a tensor may have, so that one with too many is refused in the words of the tensor.
const MOST_DIMENSIONS: usize = 64;
/// The longest refusal that tells what stands in a body instead of what should: it may quote it.
const LONGEST_COMPLAINT: usize = 400;

#[derive(Deserialize)]
struct WireRequest<'a> {
    #[serde(borrow)]
    inputs: Few<Named<WireTensor<'a>>, MOST_TENSORS>,
    /// Some encoders write what is not given as null.
    #[serde(borrow, default)]
    outputs: Option<Few<Named<WireOutput<'a>>, MOST_TENSORS>>,
}

#[derive(Deserialize)]
struct WireTensor<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    shape: Few<i64, MOST_DIMENSIONS>,
    #[serde(borrow)]
    data: WireData<'a>,
}

#[derive(Deserialize)]
struct WireOutput<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
}

#[derive(Deserialize)]
struct WireResponse<'a> {
    #[serde(borrow, default)]
    model_name: Cow<'a, str>,
    #[serde(borrow, default)]
    model_version: Cow<'a, str>,
    #[serde(borrow, default)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    outputs: Few<Named<WireTensor<'a>>, MOST_TENSORS>,
}

#[derive(Deserialize)]
struct WireModel<'a> {
    #[serde(borrow)]
    model_name: Cow<'a, str>,
}

#[derive(Deserialize)]
struct WireError<'a> {
    #[serde(borrow)]
    error: Cow<'a, str>,
    #[serde(borrow, default)]
    code: Cow<'a, str>,
}

/// Reads a request. The error says what is wrong and where, for its sender.
pub fn decode_request(content_type: ContentType, body: &Bytes) -> Result<InferRequest, Failure> {
    let Named(wire) = parse::<Named<WireRequest>>(content_type, body)?;
    let Few(given) = wire.inputs;
    if given.is_empty() {
        return Err(Failure::invalid("`inputs` is empty"));
    }
    let mut names = HashSet::with_capacity(given.len());
    if let Some(Named(twice)) = given.iter().find(|Named(tensor)| !names.insert(&*tensor.name)) {
        return Err(Failure::invalid(format!("input `{}` is given twice", shown(&twice.name))));
    }
    let mut inputs: Vec<Tensor> = Vec::with_capacity(given.len());
    for Named(tensor) in given {
        let tensor = tensor.into_tensor("input", body)?;
        if let Some(first) = inputs.first()
            && first.rows() != tensor.rows()
        {
            return Err(Failure::invalid(format!(
                "input `{}` has {} rows, input `{}` has {}",
                shown(&tensor.name),
                tensor.rows(),
                shown(&first.name),
                first.rows()
            )));
        }
        inputs.push(tensor);
    }
    let Few(outputs) = wire.outputs.unwrap_or_default();
    let outputs = outputs.into_iter().map(|Named(output)| output.name.into_owned()).collect();
    Ok(InferRequest { inputs, outputs })
}

/// Reads a response.
pub fn decode_response(content_type: ContentType, body: &Bytes) -> Result<InferResponse<'static>, Failure> {
    let Named(wire) = parse::<Named<WireResponse>>(content_type, body)?;
    let Few(outputs) = wire.outputs;
    let outputs =
        outputs.into_iter().map(|Named(tensor)| tensor.into_tensor("output", body)).collect::<Result<_, _>>()?;
    Ok(InferResponse {
        model_name: wire.model_name.into_owned().into(),
        model_version: wire.model_version.into_owned().into(),
        id: wire.id.into_owned().into(),
        outputs,
    })
}

/// Reads the body of an error reply; one that cannot be read is itself an internal failure.
pub fn decode_failure(content_type: ContentType, body: &Bytes) -> Failure {
    match parse::<WireError>(content_type, body) {
        Ok(wire) => Failure::new(wire.code.parse().unwrap_or(ErrorCode::Internal), wire.error),
        Err(unreadable) => {
            Failure::new(ErrorCode::Internal, format!("an error reply that cannot be read: {}", unreadable.message))
        }
    }
}

/// A body would be larger than it may be: encoding it ended at this many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Oversize(pub usize);

/// Writes a request, as a producer does.
pub fn encode_request(content_type: ContentType, request: &InferRequest) -> Bytes {
    encode_request_within(usize::MAX, content_type, request).expect(NO_LIMIT)
}

/// Writes a request of at most about `limit` bytes of tensors.
pub fn encode_request_within(
    limit: usize,
    content_type: ContentType,
    request: &InferRequest,
) -> Result<Bytes, Oversize> {
    match content_type {
        ContentType::MessagePack => encode::request_msgpack(request, limit),
        ContentType::Json => encode::request_json(request, limit),
    }
}

/// Writes a response.
pub fn encode_response(content_type: ContentType, response: &InferResponse<'_>) -> Bytes {
    encode_response_within(usize::MAX, content_type, response).expect(NO_LIMIT)
}

/// Writes a response of at most about `limit` bytes of tensors.
pub fn encode_response_within(
    limit: usize,
    content_type: ContentType,
    response: &InferResponse<'_>,
) -> Result<Bytes, Oversize> {
    match content_type {
        ContentType::MessagePack => encode::response_msgpack(response, limit),
        ContentType::Json => encode::response_json(response, limit),
    }
}

const NO_LIMIT: &str = "nothing is larger than memory";

/// The model that an error reply comes from: of a pipeline, the one that failed. None if it does not say.
pub fn failed_model(content_type: ContentType, body: &Bytes) -> Option<String> {
    parse::<WireModel>(content_type, body).ok().map(|wire| wire.model_name.into_owned())
}

/// Writes an error reply: `error` as in the protocol, and our `code`, `id` and `model_name` beside it.
pub fn encode_failure(content_type: ContentType, model: &str, id: &str, failure: &Failure) -> Bytes {
    let body = serde_json::json!({
        "error": failure.message, "code": failure.code.as_str(), "model_name": model, "id": id,
    });
    match content_type {
        ContentType::Json => body.to_string().into(),
        ContentType::MessagePack => rmp_serde::to_vec_named(&body).expect("text is representable").into(),
    }
}

/// A tensor's data as JSON: nested arrays are flattened, numbers are numbers, BYTES are text.
pub fn data_as_json(tensor: &Tensor) -> serde_json::Value {
    encode::json_data(tensor)
}

/// Packs JSON values, flat or nested, into a tensor's bytes. The error does not name the tensor.
pub fn data_from_json(datatype: Datatype, values: &serde_json::Value) -> Result<Bytes, String> {
    let text = values.to_string();
    let wire: WireData = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    wire.pack(datatype, None, &Bytes::new())
}

/// Appends one value written as text, as in a CSV file. The error does not name the tensor.
pub fn put_text(datatype: Datatype, text: &str, packed: &mut BytesMut) -> Result<(), String> {
    if data::put_text(datatype, text, packed) {
        return Ok(());
    }
    let shown: String = text.chars().take(40).collect();
    Err(format!("`{shown}` is not {datatype}"))
}

fn parse<'a, T: Deserialize<'a>>(content_type: ContentType, body: &'a Bytes) -> Result<T, Failure> {
    match content_type {
        ContentType::Json => serde_json::from_slice(body).map_err(|error| unlike("JSON", &error)),
        ContentType::MessagePack => {
            let mut reader = rmp_serde::Deserializer::from_read_ref(&body[..]);
            reader.set_max_depth(MAX_DEPTH);
            T::deserialize(&mut reader).map_err(|error| unlike("MessagePack", &error))
        }
    }
}

/// The refusal of a body, whose error may quote any part of it.
fn unlike(encoding: &str, error: &dyn fmt::Display) -> Failure {
    let mut error = error.to_string();
    let length = error.chars().count();
    if length > LONGEST_COMPLAINT {
        // What says where it is stands at the end.
        let half = LONGEST_COMPLAINT / 2;
        let (first, last) = (error.chars().take(half), error.chars().skip(length - half));
        error = first.chain(" ... ".chars()).chain(last).collect();
    }
    Failure::invalid(format!("the body is not the {encoding} expected: {error}"))
}

/// As much of a name as a refusal repeats.
fn shown(name: &str) -> String {
    name.chars().take(80).collect()
}

impl WireTensor<'_> {
    fn into_tensor(self, role: &str, body: &Bytes) -> Result<Tensor, Failure> {
        let name = self.name.into_owned();
        let refuse = |reason: String| Failure::invalid(format!("{role} `{}`: {reason}", shown(&name)));
        let Few(shape) = self.shape;
        let datatype = self.datatype.parse().map_err(refuse)?;
        let data = self.data.pack(datatype, Some(&shape), body).map_err(refuse)?;
        let tensor = Tensor { name: String::new(), datatype, shape, data };
        tensor.check().map_err(refuse)?;
        Ok(Tensor { name, ..tensor })
    }
}

#[cfg(test)]
mod tests;
