//! Open Inference Protocol v2 bodies as MessagePack or JSON, to and from messages in memory.
//! In MessagePack a tensor's data may be one `bin`, which is shared with the body and not copied.

mod data;
mod encode;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;

use crate::{Datatype, ErrorCode, Failure, InferRequest, InferResponse, Tensor};
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

#[derive(Deserialize)]
struct WireRequest<'a> {
    #[serde(borrow)]
    inputs: Vec<WireTensor<'a>>,
    /// Some encoders write what is not given as null.
    #[serde(borrow, default)]
    outputs: Option<Vec<WireOutput<'a>>>,
}

#[derive(Deserialize)]
struct WireTensor<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    shape: Vec<i64>,
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
    outputs: Vec<WireTensor<'a>>,
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
    let wire: WireRequest = parse(content_type, body)?;
    if wire.inputs.is_empty() {
        return Err(Failure::invalid("`inputs` is empty"));
    }
    let mut inputs: Vec<Tensor> = Vec::with_capacity(wire.inputs.len());
    for tensor in wire.inputs {
        let tensor = tensor.into_tensor("input", body)?;
        if inputs.iter().any(|earlier| earlier.name == tensor.name) {
            return Err(Failure::invalid(format!("input `{}` is given twice", tensor.name)));
        }
        if let Some(first) = inputs.first()
            && first.rows() != tensor.rows()
        {
            return Err(Failure::invalid(format!(
                "input `{}` has {} rows, input `{}` has {}",
                tensor.name,
                tensor.rows(),
                first.name,
                first.rows()
            )));
        }
        inputs.push(tensor);
    }
    let outputs = wire.outputs.unwrap_or_default().into_iter().map(|output| output.name.into_owned()).collect();
    Ok(InferRequest { inputs, outputs })
}

/// Reads a response.
pub fn decode_response(content_type: ContentType, body: &Bytes) -> Result<InferResponse<'static>, Failure> {
    let wire: WireResponse = parse(content_type, body)?;
    let outputs =
        wire.outputs.into_iter().map(|tensor| tensor.into_tensor("output", body)).collect::<Result<_, _>>()?;
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

/// Writes a request, as a producer does.
pub fn encode_request(content_type: ContentType, request: &InferRequest) -> Bytes {
    match content_type {
        ContentType::MessagePack => encode::request_msgpack(request),
        ContentType::Json => encode::request_json(request),
    }
}

/// Writes a response.
pub fn encode_response(content_type: ContentType, response: &InferResponse<'_>) -> Bytes {
    match content_type {
        ContentType::MessagePack => encode::response_msgpack(response),
        ContentType::Json => encode::response_json(response),
    }
}

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
        ContentType::Json => serde_json::from_slice(body)
            .map_err(|error| Failure::invalid(format!("the body is not the JSON expected: {error}"))),
        ContentType::MessagePack => {
            let mut reader = rmp_serde::Deserializer::from_read_ref(&body[..]);
            reader.set_max_depth(MAX_DEPTH);
            T::deserialize(&mut reader)
                .map_err(|error| Failure::invalid(format!("the body is not the MessagePack expected: {error}")))
        }
    }
}

impl WireTensor<'_> {
    fn into_tensor(self, role: &str, body: &Bytes) -> Result<Tensor, Failure> {
        let name = self.name.into_owned();
        let refuse = |reason: String| {
            let shown: String = name.chars().take(80).collect();
            Failure::invalid(format!("{role} `{shown}`: {reason}"))
        };
        let datatype = self.datatype.parse().map_err(refuse)?;
        let data = self.data.pack(datatype, Some(&self.shape), body).map_err(refuse)?;
        let tensor = Tensor { name: String::new(), datatype, shape: self.shape, data };
        tensor.check().map_err(refuse)?;
        Ok(Tensor { name, ..tensor })
    }
}

#[cfg(test)]
mod tests;
