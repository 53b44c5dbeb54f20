//! The main flow: requests in, answers out.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use sluice_core::broker::{Receipt, Submission};
use sluice_core::clock::unix_ms;
use sluice_core::codec::{self, ContentType};
use sluice_core::{Envelope, ErrorCode, Lane};
use sluice_e2e::Stack;
use sluice_e2e::fixture::{self, Script};
use sluice_e2e::stack::{SOON, envelope, floats, next, rows, submit};
use xtask::broker::Kind;

pub async fn requests_are_batched_and_each_gets_its_own_answer(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 50, "[batching]\nmax_rows = 16")?;
    let worker = stack.worker(&[(&package, 2)], "")?;
    let broker = stack.connect().await?;
    let model = "m".parse()?;
    let mut inbox = broker.inbox().await?;
    let mut expected = HashMap::new();
    for index in 0..300 {
        // From one row to more than a batch takes.
        let count = [1, 1, 2, 5, 40][index % 5];
        let values: Vec<[f32; 4]> = (0..count).map(|row| [index as f32, row as f32, 0.5, -1.0]).collect();
        let lane = Lane::ALL[index % 3];
        let id = format!("r{index}");
        let submission = Submission::new("m".parse()?, Envelope { lane, ..envelope(&id, &*inbox) }, rows(&values));
        assert_eq!(broker.submit(submission).await?, Receipt::Queued);
        expected.insert(id, values.iter().flatten().map(|value| value * 2.0).collect::<Vec<f32>>());
    }
    while !expected.is_empty() {
        let reply = next(&mut inbox).await?;
        let values = expected.remove(reply.id.as_str());
        assert_eq!(Ok(values.expect("each is answered once")), floats(&reply), "{}", reply.id);
    }
    stack.wait_until_empty(&broker, &model).await?;
    let batches = worker.metric("sluice_batches_total", &[])?;
    assert!(batches < 300.0, "{batches} batches for 300 requests: nothing was batched");
    assert_eq!(worker.metric("sluice_requests_total", &["outcome=\"ok\""])?, 300.0);
    assert_eq!(
        worker.metric("sluice_batch_rows_bucket", &["le=\"16\""])?,
        worker.metric("sluice_batch_rows_count", &[])?
    );
    assert_eq!(worker.metric("sluice_in_flight", &[])?, 0.0);
    Ok(())
}

pub async fn json_is_answered_in_json_and_only_the_wanted_outputs(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "")?;
    let _worker = stack.worker(&[(&package, 1)], "")?;
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    let ask = async |id: &str, body: serde_json::Value| -> Result<()> {
        let envelope = Envelope { content_type: ContentType::Json, ..envelope(id, &*inbox) };
        broker.submit(Submission::new("m".parse()?, envelope, body.to_string().into())).await?;
        Ok(())
    };
    let input = serde_json::json!([{ "name": "x", "datatype": "FP32", "shape": [1, 4], "data": [[1, 2, 3, 0.1]] }]);
    ask("good", serde_json::json!({ "inputs": input, "outputs": [{ "name": "y" }], "parameters": { "a": 1 } })).await?;
    ask("bad", serde_json::json!({ "inputs": input, "outputs": [{ "name": "z" }] })).await?;
    let mut values = HashMap::new();
    for _ in 0..2 {
        // A refusal may overtake an answer.
        let reply = next(&mut inbox).await?;
        assert_eq!(reply.content_type, ContentType::Json);
        values.insert(reply.id.to_string(), serde_json::from_slice::<serde_json::Value>(&reply.body)?);
    }
    let good = &values["good"];
    assert_eq!(good["outputs"][0]["data"], serde_json::json!([2.0, 4.0, 6.0, 0.2]));
    assert_eq!((&good["id"], &good["model_version"]), (&serde_json::json!("good"), &serde_json::json!("1")));
    let bad = &values["bad"];
    assert_eq!(bad["code"], "INVALID_ARGUMENT");
    assert!(bad["error"].as_str().is_some_and(|text| text.contains("no output `z`; it gives `y`")), "{bad}");
    Ok(())
}

pub async fn expired_deadlines_cost_no_compute(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "")?;
    // They wait until nobody wants them any more: there is a queue, and no worker.
    stack.worker(&[(&package, 1)], "")?.process.stop(SOON)?;
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    let deadline = unix_ms() + 1000;
    for index in 0..20 {
        let late = Envelope { deadline: Some(deadline), ..envelope(&format!("late{index}"), &*inbox) };
        submit(&broker, Submission::new("m".parse()?, late, rows(&[[1.0; 4]]))).await?;
    }
    while unix_ms() <= deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let worker = stack.worker(&[(&package, 1)], "")?;
    for _ in 0..20 {
        let reply = next(&mut inbox).await?;
        assert_eq!(reply.error, Some(ErrorCode::DeadlineExceeded));
    }
    assert_eq!(worker.metric("sluice_batches_total", &[])?, 0.0, "none reached a slot");
    // Each is counted once it is settled, which comes after its answer.
    let deadline = unix_ms() + 10_000;
    let counted = || worker.metric("sluice_requests_total", &["expired_fetch"]);
    while counted()? < 20.0 && unix_ms() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(counted()?, 20.0);
    Ok(())
}

pub async fn a_deadline_that_passes_while_a_slot_is_busy_is_answered_at_once(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    // One long batch holds the only slot.
    let package = fixture::doubler(stack.folder(), "m", 3000, "[batching]\nmax_rows = 1")?;
    let worker = stack.worker(&[(&package, 1)], "")?;
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    for index in 0..3 {
        submit(&broker, Submission::new("m".parse()?, envelope(&format!("long{index}"), &*inbox), rows(&[[1.0; 4]])))
            .await?;
    }
    let soon = Envelope { deadline: Some(unix_ms() + 20), ..envelope("short", &*inbox) };
    submit(&broker, Submission::new("m".parse()?, soon, rows(&[[1.0; 4]]))).await?;
    let mut replies = Vec::new();
    for _ in 0..4 {
        let reply = next(&mut inbox).await?;
        replies.push((reply.id.to_string(), reply.error));
    }
    assert!(replies.contains(&("short".into(), Some(ErrorCode::DeadlineExceeded))), "{replies:?}");
    assert_eq!(worker.metric("sluice_rows_total", &[])?, 3.0);
    Ok(())
}

pub async fn a_version_that_is_not_served_and_a_lost_way_back_are_told(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "version = \"7\"")?;
    let _worker = stack.worker(&[(&package, 1)], "")?;
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    let other = Envelope { version: Some("8".into()), ..envelope("other", &*inbox) };
    broker.submit(Submission::new("m".parse()?, other, rows(&[[1.0; 4]]))).await?;
    let reply = next(&mut inbox).await?;
    assert_eq!(reply.error, Some(ErrorCode::NotFound));
    let failure = codec::decode_failure(reply.content_type, &reply.body);
    assert!(failure.message.contains("no version `8` here; `7` serves"), "{}", failure.message);

    let mute = Envelope { reply_to: None, ..envelope("mute", &*inbox) };
    broker.submit(Submission::new("m".parse()?, mute, rows(&[[1.0; 4]]))).await?;
    let model = "m".parse()?;
    stack.wait_until_empty(&broker, &model).await?;
    let letters = broker.dead_letters(&model, 5).await?;
    assert_eq!(letters.len(), 1, "neither answered nor lost");
    assert!(letters[0].death.reason.contains("sluice-reply-to"), "{:?}", letters[0].death);
    Ok(())
}

pub async fn a_durable_answer_is_there_for_whoever_comes_later(kind: Kind) -> Result<()> {
    let mut stack = Stack::alone(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "")?;
    let worker = stack.worker(&[(&package, 1)], "")?;
    let job = "job-1".parse()?;
    {
        let broker = stack.connect().await?;
        let results = broker.results(&job).await?;
        broker.submit(Submission::new("m".parse()?, envelope("r1", &*results), rows(&[[1.0; 4]]))).await?;
        broker.close().await?;
    }
    stack.server.stop()?;
    stack.server.restart()?;
    let broker = stack.connect().await?;
    let reply = {
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            if let Some(reply) = broker.stored_results(&job, &["r1".parse()?]).await?.pop() {
                break reply;
            }
            ensure!(tokio::time::Instant::now() < deadline, "no answer is stored");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert_eq!(floats(&reply), Ok(vec![2.0; 4]));
    drop(worker);
    Ok(())
}

pub async fn a_pipeline_goes_through_each_model_and_a_failure_ends_it(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let half = half(&stack)?;
    let double = fixture::doubler(stack.folder(), "double", 0, "")?;
    let worker = stack.worker(&[(&half, 1), (&double, 1)], "")?;
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    let mut ask = async |id: &str, then: &[&str]| {
        let then = then.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
        let request = Envelope { then, ..envelope(id, &*inbox) };
        submit(&broker, Submission::new("half".parse()?, request, rows(&[[1.0, 2.0, 3.0, 4.0]; 2]))).await?;
        let reply = next(&mut inbox).await?;
        assert_eq!(reply.id.as_str(), id);
        let failed = codec::failed_model(reply.content_type, &reply.body).unwrap_or_default();
        anyhow::Ok(floats(&reply).map_err(|failure| format!("{failed}: {failure}")))
    };
    let through = ask("through", &["half", "double"]).await?.map_err(anyhow::Error::msg)?;
    assert_eq!(through, [0.5, 1.0, 1.5, 2.0].repeat(2));
    let unknown = ask("unknown", &["nobody"]).await?.expect_err("there is no such model");
    assert!(unknown.starts_with("half: NOT_FOUND") && unknown.contains("model `nobody`"), "{unknown}");
    // The second `double` is given `y`.
    let misfit = ask("misfit", &["double", "double"]).await?.expect_err("it takes no `y`");
    assert!(misfit.starts_with("double: INVALID_ARGUMENT") && misfit.contains("input `x`"), "{misfit}");
    assert_eq!(worker.metric("sluice_requests_total", &["forwarded"])?, 4.0);
    stack.wait_until_empty(&broker, &"half".parse()?).await?;
    assert_eq!(broker.dead_letters(&"half".parse()?, 10).await?.len(), 0, "its sender was told: it is not kept");
    Ok(())
}

/// A model whose output fits its input.
fn half(stack: &Stack) -> Result<PathBuf> {
    let manifest = "name = \"half\"\ninputs = [{ name = \"x\", datatype = \"FP32\", shape = [-1, 4] }]\n\
        outputs = [{ name = \"x\", datatype = \"FP32\", shape = [-1, 4] }]\n";
    Script { signature: "x: Tensor) -> Tensor", body: &["return torch.mul(x, 0.5)"], manifest }
        .write(stack.folder(), "half")
}

/// Faster than any clock: no step may be taken for a repetition of the one before.
pub async fn a_pipeline_may_come_back_to_a_model_at_once(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let half = half(&stack)?;
    let _worker = stack.worker(&[(&half, 1)], "")?;
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    // One after the other: then each step takes well under a millisecond.
    for index in 0..100 {
        let then = vec!["half".parse()?; 8];
        let request = Envelope { then, ..envelope(&format!("r{index}"), &*inbox) };
        submit(&broker, Submission::new("half".parse()?, request, rows(&[[512.0; 4]]))).await?;
        assert_eq!(floats(&next(&mut inbox).await?), Ok(vec![1.0; 4]));
    }
    Ok(())
}
