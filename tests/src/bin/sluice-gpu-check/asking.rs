//! Asking models, and comparing what they say.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use sluice_core::broker::{Broker, Replies, Submission};
use sluice_core::codec::{self, ContentType};
use sluice_core::{Datatype, InferRequest, Tensor};
use sluice_e2e::Stack;
use sluice_e2e::stack::{envelope, submit};

/// How long answers are waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The outputs of a request, or the error's code and message.
pub type Answer = std::result::Result<Vec<Tensor>, String>;

/// Somebody who asks.
pub struct Caller {
    broker: Arc<dyn Broker>,
    inbox: Box<dyn Replies>,
    asked: usize,
}

impl Caller {
    pub async fn new(stack: &Stack) -> Result<Self> {
        let broker = stack.connect().await?;
        let inbox = broker.inbox().await?;
        Ok(Self { broker, inbox, asked: 0 })
    }

    /// Submits requests of one input each, and returns their ids.
    pub async fn send(&mut self, model: &str, inputs: &[Tensor]) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        for input in inputs {
            let id = format!("r{}", self.asked);
            self.asked += 1;
            let request = InferRequest { inputs: vec![input.clone()], outputs: vec![] };
            let body = codec::encode_request(ContentType::MessagePack, &request);
            submit(&self.broker, Submission::new(model.parse()?, envelope(&id, &*self.inbox), body)).await?;
            ids.push(id);
        }
        Ok(ids)
    }

    /// The answers to these, in their order.
    pub async fn receive(&mut self, ids: &[String]) -> Result<Vec<Answer>> {
        let mut answers: HashMap<String, Answer> = HashMap::new();
        while answers.len() < ids.len() {
            let reply = tokio::time::timeout(PATIENCE, self.inbox.next()).await.with_context(|| {
                format!("{} of {} requests were answered in {PATIENCE:?}", answers.len(), ids.len())
            })??;
            let answer = match reply.error {
                Some(_) => {
                    let failure = codec::decode_failure(reply.content_type, &reply.body);
                    Err(format!("{}: {}", failure.code, failure.message))
                }
                None => codec::decode_response(reply.content_type, &reply.body)
                    .map(|response| response.outputs)
                    .map_err(|failure| failure.message),
            };
            let id = reply.id.as_str().to_owned();
            ensure!(answers.insert(id.clone(), answer).is_none(), "`{id}` was answered twice");
        }
        ids.iter().map(|id| answers.remove(id).with_context(|| format!("`{id}` was not answered"))).collect()
    }

    /// Asks, all at once.
    pub async fn ask(&mut self, model: &str, inputs: &[Tensor]) -> Result<Vec<Answer>> {
        let ids = self.send(model, inputs).await?;
        self.receive(&ids).await
    }

    /// The answers, of which each must be one.
    pub async fn outputs(&mut self, model: &str, inputs: &[Tensor]) -> Result<Vec<Vec<Tensor>>> {
        let answers = self.ask(model, inputs).await?;
        answers.into_iter().map(|answer| answer.map_err(|error| anyhow::anyhow!("`{model}`: {error}"))).collect()
    }
}

/// One row of `elements` bytes or numbers each, for which `byte` gives the bytes of an element.
pub fn row(datatype: Datatype, shape: &[i64], byte: impl Fn(usize) -> u8) -> Tensor {
    let count = shape.iter().product::<i64>() as usize * datatype.size().unwrap_or(1);
    let data: Vec<u8> = (0..count).map(byte).collect();
    tensor(datatype, shape, data)
}

/// One row of floats.
pub fn floats(shape: &[i64], value: impl Fn(usize) -> f32) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    tensor(Datatype::Fp32, shape, (0..count).flat_map(|at| value(at).to_le_bytes()).collect())
}

/// One row of whole numbers.
pub fn integers(shape: &[i64], value: impl Fn(usize) -> i64) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    tensor(Datatype::Int64, shape, (0..count).flat_map(|at| value(at).to_le_bytes()).collect())
}

fn tensor(datatype: Datatype, shape: &[i64], data: Vec<u8>) -> Tensor {
    let shape = std::iter::once(1).chain(shape.iter().copied()).collect();
    Tensor { name: "x".into(), datatype, shape, data: Bytes::from(data) }
}

/// The values of floating point.
pub fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    let data = &tensor.data;
    let upper = |bytes: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    Ok(match tensor.datatype {
        Datatype::Fp32 => data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Datatype::Bf16 => data.as_chunks().0.iter().map(upper).collect(),
        Datatype::Fp16 => data.as_chunks().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()).collect(),
        other => bail!("{other} is no floating point"),
    })
}

/// The largest difference of all values, over the largest value.
pub fn apart(one: &[Vec<Tensor>], other: &[Vec<Tensor>]) -> Result<f64> {
    ensure!(one.len() == other.len(), "{} and {} answers", one.len(), other.len());
    let (mut apart, mut largest) = (0_f64, 0_f64);
    for (one, other) in one.iter().flatten().zip(other.iter().flatten()) {
        ensure!(one.shape == other.shape, "{:?} and {:?}", one.shape, other.shape);
        for (one, other) in values(one)?.into_iter().zip(values(other)?) {
            ensure!(one.is_finite() && other.is_finite(), "{one} and {other}: not a number");
            apart = apart.max(f64::from((one - other).abs()));
            largest = largest.max(f64::from(other.abs()));
        }
    }
    ensure!(largest > 0.0, "all values are zero: nothing was compared");
    Ok(apart / largest)
}
