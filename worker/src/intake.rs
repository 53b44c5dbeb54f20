//! From a delivery to a request that the batcher can take: decoded, checked against the manifest, its inputs in the
//! model's order. Knows nothing of batches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_core::broker::{Delivery, Hold};
use sluice_core::clock::UnixMs;
use sluice_core::codec::{self, ContentType};
use sluice_core::envelope::{Envelope, Malformed};
use sluice_core::manifest::{Limits, TensorSpec};
use sluice_core::{ErrorCode, Failure, Lane, Manifest, ModelName, ReplyTo, RequestId, Tensor};

/// A larger body is decoded on a thread of its own, so that the others do not wait for it.
const DECODED_INLINE: usize = 16 * 1024;

/// What is needed to end a delivery, whatever became of it. It changes hands often, so it travels in a box.
pub struct Ticket {
    /// The id for the reply; absent if the request had none that could be used.
    pub id: Option<RequestId>,
    pub reply_to: Option<ReplyTo>,
    pub content_type: ContentType,
    pub deadline: Option<UnixMs>,
    pub lane: Lane,
    pub tenant: Option<String>,
    pub source: Option<String>,
    /// The models that its outputs go to before the answer is given.
    pub then: Vec<ModelName>,
    pub traceparent: Option<String>,
    /// Attempts charged before this one.
    pub charged: u32,
    /// The station's, of a request that was charged an attempt: dropped with it, so that the station knows when none is here.
    pub suspect: Option<Arc<()>>,
    pub hold: Box<dyn Hold>,
}

/// A request, ready to be batched.
pub struct Request {
    pub ticket: Box<Ticket>,
    /// In the order of the manifest's inputs.
    pub inputs: Vec<Tensor>,
    /// Outputs wanted, as indices into the manifest's; empty for all.
    pub outputs: Vec<usize>,
    pub rows: usize,
    /// Sizes of the dimensions that must agree within a batch.
    pub shape: Vec<i64>,
    pub fetched: Instant,
    pub deadline: Option<Instant>,
}

/// A delivery whose headers were read and whose body was not.
pub struct Undecoded {
    pub ticket: Box<Ticket>,
    version: Option<String>,
    body: bytes::Bytes,
    fetched: Instant,
}

/// Why a delivery does not become a request.
pub enum Rejection {
    /// Its sender is told.
    Refused(Failure),
    /// Its deadline has passed.
    Expired,
    /// It has been tried as often as it may be.
    Exhausted,
}

/// Reads the headers.
pub fn receive(delivery: Delivery, limits: &Limits, now: UnixMs) -> Result<Undecoded, (Box<Ticket>, Rejection)> {
    let Delivery { envelope, lane, body, charged, hold, .. } = delivery;
    match envelope {
        Ok(envelope) => {
            let expired = envelope.expired(now);
            let Envelope { id, content_type, reply_to, then, deadline, tenant, source, traceparent, version, .. } =
                envelope;
            let ticket = Box::new(Ticket {
                id: Some(id),
                reply_to,
                then,
                content_type,
                deadline,
                lane,
                tenant,
                source,
                traceparent,
                charged,
                suspect: None,
                hold,
            });
            if expired {
                return Err((ticket, Rejection::Expired));
            }
            if charged >= limits.attempts {
                return Err((ticket, Rejection::Exhausted));
            }
            if ticket.reply_to.is_none() {
                let reason = "header `sluice-reply-to` is missing: the answer would go nowhere";
                return Err((ticket, Rejection::Refused(Failure::invalid(reason))));
            }
            // Not every broker has looked.
            if body.len() as u64 > limits.body_bytes {
                let reason =
                    format!("a body of {} bytes is too large: the model takes {}", body.len(), limits.body_bytes);
                return Err((ticket, Rejection::Refused(Failure::invalid(reason))));
            }
            Ok(Undecoded { ticket, version, body, fetched: Instant::now() })
        }
        Err(malformed) => {
            let Malformed { id, reply_to, content_type, reason } = *malformed;
            let ticket = Box::new(Ticket {
                id,
                reply_to,
                then: Vec::new(),
                content_type,
                deadline: None,
                lane,
                tenant: None,
                source: None,
                traceparent: None,
                charged,
                suspect: None,
                hold,
            });
            Err((ticket, Rejection::Refused(Failure::invalid(reason))))
        }
    }
}

impl Undecoded {
    /// Whether decoding would hold up others.
    pub fn is_large(&self) -> bool {
        self.body.len() > DECODED_INLINE
    }

    /// Decodes the body and checks it against the manifest.
    pub fn decode(self, manifest: &Manifest, now: UnixMs) -> Result<Request, (Box<Ticket>, Rejection)> {
        let Undecoded { ticket, version, body, fetched } = self;
        if let Some(version) = version
            && version != manifest.version
        {
            let shown: String = version.chars().take(64).collect();
            let reason =
                format!("model `{}` has no version `{shown}` here; `{}` serves", manifest.name, manifest.version);
            return Err((ticket, Rejection::Refused(Failure::new(ErrorCode::NotFound, reason))));
        }
        let fitted = codec::decode_request(ticket.content_type, &body).and_then(|request| {
            let inputs = fit(manifest, request.inputs)?;
            Ok((inputs, wanted(manifest, &request.outputs)?))
        });
        match fitted {
            Ok((Fitted { inputs, shape }, outputs)) => {
                let left = ticket.deadline.map(|deadline| Duration::from_millis(deadline.saturating_sub(now)));
                Ok(Request {
                    rows: inputs.first().map_or(0, Tensor::rows),
                    deadline: left.and_then(|left| Instant::now().checked_add(left)),
                    ticket,
                    inputs,
                    outputs,
                    shape,
                    fetched,
                })
            }
            Err(failure) => Err((ticket, Rejection::Refused(failure))),
        }
    }
}

struct Fitted {
    inputs: Vec<Tensor>,
    shape: Vec<i64>,
}

/// Puts the inputs into the manifest's order, and checks names, types and shapes.
fn fit(manifest: &Manifest, mut given: Vec<Tensor>) -> Result<Fitted, Failure> {
    let mut inputs = Vec::with_capacity(manifest.inputs.len());
    let mut shape = Vec::new();
    let mut named: Vec<(&str, i64)> = Vec::new();
    for spec in &manifest.inputs {
        let Some(at) = given.iter().position(|tensor| tensor.name == spec.name) else {
            return Err(Failure::invalid(format!("input `{}` ({}) is missing", spec.name, spec.signature())));
        };
        let tensor = given.swap_remove(at);
        if tensor.datatype != spec.datatype || !spec.fits(&tensor.shape) {
            return Err(Failure::invalid(format!(
                "input `{}`: {} {:?} does not fit {}",
                spec.name,
                tensor.datatype,
                tensor.shape,
                spec.signature()
            )));
        }
        for (dimension, size) in spec.shape.iter().zip(&tensor.shape) {
            let Some(name) = dimension.name() else { continue };
            let smallest = manifest.smallest_size(name);
            if *size < smallest {
                return Err(Failure::invalid(format!(
                    "input `{}`: dimension `{name}` is {size}, and the model takes {smallest} or more",
                    spec.name
                )));
            }
            match named.iter().find(|(known, _)| *known == name) {
                Some((_, earlier)) if earlier != size => {
                    return Err(Failure::invalid(format!(
                        "input `{}`: dimension `{name}` is {size} here and {earlier} in another input",
                        spec.name
                    )));
                }
                Some(_) => {}
                None => {
                    named.push((name, *size));
                    if !manifest.padding.contains_key(name) {
                        shape.push(*size);
                    }
                }
            }
        }
        inputs.push(tensor);
    }
    match given.first() {
        Some(extra) => {
            let shown: String = extra.name.chars().take(80).collect();
            Err(Failure::invalid(format!("the model has no input `{shown}`; it takes {}", names(&manifest.inputs))))
        }
        None => Ok(Fitted { inputs, shape }),
    }
}

fn wanted(manifest: &Manifest, names_wanted: &[String]) -> Result<Vec<usize>, Failure> {
    let index = |name: &String| {
        manifest.outputs.iter().position(|spec| spec.name == *name).ok_or_else(|| {
            let shown: String = name.chars().take(80).collect();
            Failure::invalid(format!("the model has no output `{shown}`; it gives {}", names(&manifest.outputs)))
        })
    };
    if names_wanted.len() > manifest.outputs.len() {
        let (given, most) = (names_wanted.len(), manifest.outputs.len());
        return Err(Failure::invalid(format!(
            "{given} outputs are asked for; the model gives {most}, each of them once"
        )));
    }
    let mut wanted = Vec::with_capacity(names_wanted.len());
    for name in names_wanted {
        let index = index(name)?;
        if wanted.contains(&index) {
            return Err(Failure::invalid(format!("output `{name}` is asked for twice: it is given once")));
        }
        wanted.push(index);
    }
    Ok(wanted)
}

fn names(specs: &[TensorSpec]) -> String {
    specs.iter().map(|spec| format!("`{}`", spec.name)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sluice_core::Datatype;

    use super::*;

    const MANIFEST: &str = r#"
        name = "bert"
        engine = "torchscript"
        file = "model.pt"
        inputs = [
            { name = "ids", datatype = "INT64", shape = [-1, "tokens"] },
            { name = "mask", datatype = "INT64", shape = [-1, "tokens"] },
            { name = "scale", datatype = "FP32", shape = [-1, "channels"] },
        ]
        outputs = [{ name = "y", datatype = "FP32", shape = [-1, 4] }]
        [padding]
        tokens = { value = 0 }
        [sizes]
        channels = { smallest = 2 }
    "#;

    fn tensor(name: &str, datatype: Datatype, shape: &[i64]) -> Tensor {
        let size = shape.iter().product::<i64>() as usize * datatype.size().unwrap_or(0);
        Tensor { name: name.into(), datatype, shape: shape.into(), data: Bytes::from(vec![0; size]) }
    }

    fn good() -> Vec<Tensor> {
        vec![
            tensor("scale", Datatype::Fp32, &[2, 3]),
            tensor("mask", Datatype::Int64, &[2, 7]),
            tensor("ids", Datatype::Int64, &[2, 7]),
        ]
    }

    #[test]
    fn inputs_are_put_into_the_models_order_and_only_unpadded_sizes_must_agree() {
        let manifest = Manifest::parse(MANIFEST).expect("a manifest");
        let fitted = fit(&manifest, good()).expect("fits");
        assert_eq!(
            fitted.inputs.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(),
            ["ids", "mask", "scale"]
        );
        assert_eq!(fitted.shape, [3], "`channels` varies and is not padded; `tokens` is padded");
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let manifest = Manifest::parse(MANIFEST).expect("a manifest");
        let change = |change: fn(&mut Vec<Tensor>)| {
            let mut inputs = good();
            change(&mut inputs);
            fit(&manifest, inputs).err().expect("a refusal").message
        };
        let cases = [
            (change(|inputs| drop(inputs.remove(1))), "input `mask` (INT64 [-1, tokens]) is missing"),
            (
                change(|inputs| inputs.push(tensor("x", Datatype::Fp32, &[2]))),
                "no input `x`; it takes `ids`, `mask`, `scale`",
            ),
            (
                change(|inputs| inputs[2] = tensor("ids", Datatype::Int32, &[2, 7])),
                "input `ids`: INT32 [2, 7] does not fit INT64 [-1, tokens]",
            ),
            (change(|inputs| inputs[2] = tensor("ids", Datatype::Int64, &[2])), "input `ids`: INT64 [2] does not fit"),
            (
                change(|inputs| inputs[1] = tensor("mask", Datatype::Int64, &[2, 8])),
                "input `mask`: dimension `tokens` is 8 here and 7",
            ),
            (
                change(|inputs| inputs[0] = tensor("scale", Datatype::Fp32, &[2, 1])),
                "input `scale`: dimension `channels` is 1, and the model takes 2 or more",
            ),
        ];
        for (message, expected) in cases {
            assert!(message.contains(expected), "`{message}` does not contain `{expected}`");
        }
        assert!(
            wanted(&manifest, &["z".into()]).expect_err("a refusal").message.contains("no output `z`; it gives `y`")
        );
    }

    #[test]
    fn an_output_is_given_once() {
        let two = MANIFEST
            .replace("shape = [-1, 4] }]", "shape = [-1, 4] }, { name = \"z\", datatype = \"FP32\", shape = [-1] }]");
        let manifest = Manifest::parse(&two).expect("a manifest");
        let ask = |names: &[&str]| wanted(&manifest, &names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(ask(&["z", "y"]), Ok(vec![1, 0]));
        assert!(ask(&["y", "y"]).expect_err("a refusal").message.contains("output `y` is asked for twice"));
        assert!(ask(&["y"; 34_000]).expect_err("a refusal").message.contains("34000 outputs are asked for"));
    }
}
