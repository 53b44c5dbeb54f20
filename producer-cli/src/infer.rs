//! `sluice infer`: one request, one answer.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use sluice_core::broker::{Broker, Receipt, Reply, Submission};
use sluice_core::clock::unix_ms;
use sluice_core::codec::{self, ContentType};
use sluice_core::print::count;
use sluice_core::{Envelope, InferRequest, Tensor};

use crate::cli::{Global, Infer};
use crate::input::{Notes, Reading, read_array, rows_of};
use crate::takes::{InputSpec, does_not_load, learn, warn_if_stopped, why_it_does_not_load};
use crate::{common, exit};

/// An answer that takes longer is worth a word meanwhile.
const WORD_AFTER: Duration = Duration::from_secs(1);

pub async fn run(global: &Global, options: Infer) -> Result<ExitCode> {
    let broker = common::connect(global).await?;
    let (content_type, body, failed) = match &options.request {
        Some(file) => {
            let body = read_body(file)?;
            let failed = warn_if_stopped(&broker, &options.model).await?;
            (ContentType::Json, body, failed)
        }
        None => {
            let model = learn(&broker, &options.model, &options.takes).await?;
            let request = InferRequest { inputs: inputs(&options, &model.inputs)?, outputs: options.output.clone() };
            let body = codec::encode_request(ContentType::MessagePack, &request);
            (ContentType::MessagePack, body, model.failed)
        }
    };
    let mut inbox = broker.inbox().await?;
    let envelope = Envelope {
        content_type,
        lane: options.routing.lane,
        then: options.routing.then.clone(),
        version: options.routing.model_version.clone(),
        tenant: options.routing.tenant.clone(),
        reply_to: Some(inbox.reply_to()),
        deadline: Some(unix_ms() + u64::try_from(options.timeout.as_millis()).unwrap_or(u64::MAX / 2)),
        source: Some("/sluice/infer".into()),
        ..Envelope::new(uuid::Uuid::now_v7().to_string().parse()?)
    };
    let id = envelope.id.clone();
    let submission = Submission::new(options.model.clone(), envelope, body);
    if broker.submit(submission.clone()).await? == Receipt::Duplicate {
        // The id is new and nobody else's: something stands under it that would swallow this.
        eprintln!("note: the broker had a submission of this id; it is submitted under another");
        broker.submit(submission.again(1)).await?;
    }
    if let Some(reason) = failed {
        // It was sent, so that the model is tried again: what was wrong may be mended by now.
        bail!(does_not_load(&options.model, &reason));
    }
    let answer = async {
        loop {
            let reply = inbox.next().await?;
            if reply.id == id {
                return anyhow::Ok(reply);
            }
        }
    };
    let waiting = async {
        tokio::time::sleep(WORD_AFTER).await;
        eprintln!("waiting for an answer (up to {})", common::short(options.timeout));
        loop {
            if let Some(reason) = why_it_does_not_load(&broker, &options.model).await {
                return reason;
            }
            tokio::time::sleep(WORD_AFTER).await;
        }
    };
    let timeout = options.timeout + Duration::from_millis(500);
    let reply = tokio::select! {
        reply = answer => reply?,
        reason = waiting => bail!(does_not_load(&options.model, &reason)),
        () = tokio::time::sleep(timeout) => bail!(no_answer(&broker, &options).await),
        _ = tokio::signal::ctrl_c() => return Ok(ExitCode::from(exit::INTERRUPTED)),
    };
    show(&reply)
}

async fn no_answer(broker: &std::sync::Arc<dyn Broker>, options: &Infer) -> String {
    let within = common::short(options.timeout);
    let lanes = broker.depth(&options.model).await.unwrap_or_default();
    let ready: u64 = lanes.iter().filter_map(|lane| lane.ready.clone().known()).sum();
    format!(
        "no answer within {within}; {} for model `{}`. Is a worker running (`sluice hosts`)? `sluice scale explain {}` \
         tells why it has the slots that it has; --timeout waits longer",
        count(ready, "request waits", "requests wait"),
        options.model,
        options.model
    )
}

fn show(reply: &Reply) -> Result<ExitCode> {
    if reply.error.is_some() {
        let failure = codec::decode_failure(reply.content_type, &reply.body);
        let model = codec::failed_model(reply.content_type, &reply.body);
        println!(
            "{}",
            serde_json::json!({ "error": failure.message, "code": failure.code, "model_name": model, "id": reply.id })
        );
        return Ok(ExitCode::from(exit::SOME_FAILED));
    }
    let response =
        codec::decode_response(reply.content_type, &reply.body).map_err(|failure| anyhow::anyhow!(failure.message))?;
    println!("{}", String::from_utf8_lossy(&codec::encode_response(ContentType::Json, &response)));
    Ok(ExitCode::SUCCESS)
}

fn read_body(file: &PathBuf) -> Result<Bytes> {
    let mut body = Vec::new();
    if file.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut body)?;
    } else {
        body = std::fs::read(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    }
    let body = Bytes::from(body);
    // Refused here rather than after a way through the queue.
    codec::decode_request(ContentType::Json, &body)
        .map_err(|failure| anyhow::anyhow!("`{}`: {}", file.display(), failure.message))?;
    Ok(body)
}

fn inputs(options: &Infer, specs: &[InputSpec]) -> Result<Vec<Tensor>> {
    let reading = Reading::of_one_request(options.numbers, Notes::new(|text| eprintln!("note: {text}")));
    let one = |text: &String| {
        let (name, value) = text.split_once('=').with_context(|| format!("--input `{text}` is not NAME=VALUE"))?;
        let Some(spec) = specs.iter().find(|spec| spec.name == name) else {
            let names: Vec<_> = specs.iter().map(|spec| format!("`{}` ({})", spec.name, spec.signature())).collect();
            bail!("the model has no input `{name}`; it takes {}", names.join(", "));
        };
        let tensor = if value.to_ascii_lowercase().ends_with(".npy") {
            read_array(Path::new(value), spec, &reading).with_context(|| format!("cannot read `{value}`"))?
        } else {
            inline(spec, value, &reading).with_context(|| format!("--input `{name}`"))?
        };
        tensor.check().map_err(|reason| anyhow::anyhow!("--input `{name}`: {reason}"))?;
        Ok(tensor)
    };
    options.input.iter().map(one).collect()
}

/// JSON with one entry per row; a flat list of exactly one row's values is one row.
fn inline(spec: &InputSpec, text: &str, reading: &Reading) -> Result<Tensor> {
    let rows = rows_of(spec, text, reading).map_err(anyhow::Error::msg)?;
    let first = rows.first().context("it has no rows")?;
    if let Some(other) = rows.iter().find(|row| row.shape != first.shape) {
        bail!("its rows are not all of the same shape: one is {:?}, one {:?}", first.shape, other.shape);
    }
    let mut shape = vec![rows.len() as i64];
    shape.extend(&first.shape);
    let data: Vec<u8> = rows.iter().flat_map(|row| &row.data[..]).copied().collect();
    Ok(Tensor { name: spec.name.clone(), datatype: spec.datatype, shape, data: data.into() })
}

#[cfg(test)]
mod tests {
    use sluice_core::Datatype;

    use super::*;

    #[test]
    fn inline_values_are_rows() {
        let reading = Reading::of_one_request(Default::default(), Notes::new(|_| {}));
        let inline = |spec: &InputSpec, text: &str| inline(spec, text, &reading);
        let spec = InputSpec { name: "x".into(), datatype: Datatype::Fp32, sizes: vec![Some(2)] };
        assert_eq!(inline(&spec, "[[1,2],[3,4]]").expect("two rows").shape, [2, 2]);
        assert_eq!(inline(&spec, "[1,2]").expect("one row").shape, [1, 2]);
        assert!(format!("{:#}", inline(&spec, "[[1,2],[3]]").expect_err("ragged")).contains("1 value for input"));
        let turned = InputSpec { name: "x".into(), datatype: Datatype::Fp32, sizes: vec![Some(2), Some(1)] };
        let error = format!("{:#}", inline(&turned, "[[[1,2]]]").expect_err("another shape"));
        assert!(error.contains("a row's shape is [1, 2], input `x` takes FP32, 2x1 per row"), "{error}");
        let not_finite = inline(&spec, "[NaN,-Infinity]").expect("as Python writes it");
        assert_eq!(not_finite.data[4..], f32::NEG_INFINITY.to_le_bytes());
        assert!(inline(&spec, "1,2").is_err());
        let scalar = InputSpec { name: "x".into(), datatype: Datatype::Int64, sizes: vec![] };
        assert_eq!(inline(&scalar, "[1,2,3]").expect("three rows").shape, [3]);
    }
}
