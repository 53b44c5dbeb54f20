//! What goes wrong, and what must not follow from it. In each: submitted = answered + dead-lettered.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use sluice_core::broker::{Broker, BrokerError, Limited, QueueLimits, Replies, Submission};
use sluice_core::codec::ContentType;
use sluice_core::{Envelope, ErrorCode, ReplyTo, RequestId};
use sluice_e2e::fixture::Script;
use sluice_e2e::stack::{Durable, SOON, Worker, envelope, floats, next, rows, submit};
use sluice_e2e::{Stack, fixture};
use xtask::broker::Kind;

/// A model that takes some milliseconds a batch.
fn steady(folder: &Path, extra: &str) -> Result<std::path::PathBuf> {
    fixture::doubler(folder, "m", 20, &format!("[batching]\nmax_rows = 8\n{extra}"))
}

/// The hold time is short so that what a dead worker held comes back soon.
const QUICK: &str = "hold_time = \"2s\"";

/// Submits `count` requests to durable results, several at a time.
async fn submit_many(broker: &Arc<dyn Broker>, to: ReplyTo, count: usize) -> Result<()> {
    let mut pending = tokio::task::JoinSet::new();
    for index in 0..count {
        let envelope = Envelope { reply_to: Some(to.clone()), ..Envelope::new(format!("r{index}").parse()?) };
        let submission = Submission::new("m".parse()?, envelope, rows(&[[index as f32, 0.0, 0.0, 0.0]]));
        let broker = Arc::clone(broker);
        pending.spawn(async move { submit(&broker, submission).await });
        if pending.len() >= 64
            && let Some(done) = pending.join_next().await
        {
            done??;
        }
    }
    while let Some(done) = pending.join_next().await {
        done??;
    }
    Ok(())
}

/// Reads one answer for each request, asserts that each is right and that none comes twice.
async fn all_answered(results: &mut Box<dyn Replies>, count: usize) -> Result<()> {
    let mut seen = BTreeSet::new();
    while seen.len() < count {
        let reply = next(results).await?;
        let index: usize = reply.id.as_str()[1..].parse()?;
        assert_eq!(floats(&reply), Ok(vec![2.0 * index as f32, 0.0, 0.0, 0.0]), "{}", reply.id);
        assert!(seen.insert(index), "{} came twice", reply.id);
    }
    Ok(())
}

pub async fn a_worker_killed_in_the_middle_of_batches_loses_nothing(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = steady(stack.folder(), "")?;
    let mut doomed = stack.worker(&[(&package, 2)], QUICK)?;
    let broker = stack.connect().await?;
    let mut results = Durable::open(&broker, "job", 1500).await?;
    let submitting = submit_many(&broker, results.reply_to(), 1500).await;
    while doomed.metric("sluice_rows_total", &[])? < 100.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(doomed.metric("sluice_in_flight", &[])? > 0.0, "it dies with its hands full");
    doomed.process.kill();
    let second = stack.worker(&[(&package, 2)], QUICK)?;
    submitting?;
    all_answered(&mut results, 1500).await?;
    let model = "m".parse()?;
    stack.wait_until_empty(&broker, &model).await?;
    assert!(broker.dead_letters(&model, 10).await?.is_empty());
    assert!(second.metric("sluice_requests_total", &["outcome=\"ok\""])? > 0.0);
    Ok(())
}

pub async fn sigterm_under_load_loses_nothing_and_charges_no_attempt(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    // With a single attempt, a request that were charged for the drain would become a dead letter.
    let package = steady(stack.folder(), "[limits]\nattempts = 1")?;
    let mut first = stack.worker(&[(&package, 2)], "")?;
    let broker = stack.connect().await?;
    let mut results = Durable::open(&broker, "job", 1200).await?;
    submit_many(&broker, results.reply_to(), 1200).await?;
    for _ in 0..2 {
        while first.metric("sluice_rows_total", &[])? < 50.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let status = first.process.stop(SOON)?;
        assert_eq!(status.code(), Some(0), "{}", first.process.log());
        first = stack.worker(&[(&package, 2)], "")?;
    }
    all_answered(&mut results, 1200).await?;
    let model = "m".parse()?;
    stack.wait_until_empty(&broker, &model).await?;
    assert!(broker.dead_letters(&model, 10).await?.is_empty(), "a drain charged an attempt");
    Ok(())
}

pub async fn a_broker_restarted_under_load_loses_nothing(kind: Kind) -> Result<()> {
    let mut stack = Stack::alone(kind)?;
    let package = steady(stack.folder(), "")?;
    // Longer than the outage: an outage beyond the hold time charges what was in flight.
    let worker = stack.worker(&[(&package, 2)], "hold_time = \"6s\"")?;
    let broker = stack.connect().await?;
    let mut results = Durable::open(&broker, "job", 1500).await?;
    let submitting = {
        let broker = Arc::clone(&broker);
        let to = results.reply_to();
        tokio::spawn(async move { submit_many(&broker, to, 1500).await })
    };
    while worker.metric("sluice_rows_total", &[])? < 200.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stack.server.stop()?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stack.server.restart()?;
    submitting.await??;
    let model = "m".parse()?;
    if let Err(error) = all_answered(&mut results, 1500).await {
        // Who has stopped: the worker, or the reader?
        let ids: Vec<RequestId> = (0..1500).map(|index| format!("r{index}").parse()).collect::<Result<_, _>>()?;
        let stored = broker.stored_results(&"job".parse()?, &ids).await.map(|stored| stored.len());
        let rows = worker.metric("sluice_rows_total", &[]);
        return Err(error.context(format!("the worker has run {rows:?} rows, and {stored:?} answers are stored")));
    }
    stack.wait_until_empty(&broker, &model).await?;
    assert!(broker.dead_letters(&model, 10).await?.is_empty());
    Ok(())
}

pub async fn a_poison_request_fails_alone(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    // A slot that waits a little gathers all of them into one batch.
    let package = fixture::doubler(stack.folder(), "m", 0, "[batching]\nmax_rows = 32\nmax_delay = \"300ms\"")?;
    let worker = stack.worker(&[(&package, 1)], "")?;
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    for index in 0..20 {
        let value = if index == 13 { 2e6 } else { index as f32 };
        broker
            .submit(Submission::new("m".parse()?, envelope(&format!("r{index}"), &*inbox), rows(&[[value; 4]])))
            .await?;
    }
    for _ in 0..20 {
        let reply = next(&mut inbox).await?;
        if reply.id.as_str() == "r13" {
            assert_eq!(reply.error, Some(ErrorCode::ModelFailed));
            let text = floats(&reply).expect_err("an error");
            assert!(
                text.contains("a value over a million") && text.contains("dead letter") && text.len() < 700,
                "{text}"
            );
            assert!(
                !text.contains("Traceback") && !text.contains("__torch__"),
                "stack frames are not for callers: {text}"
            );
        } else {
            let index: f32 = reply.id.as_str()[1..].parse()?;
            assert_eq!(floats(&reply), Ok(vec![index * 2.0; 4]));
        }
    }
    let model = "m".parse()?;
    stack.wait_until_empty(&broker, &model).await?;
    let letters = broker.dead_letters(&model, 10).await?;
    assert_eq!(letters.len(), 1);
    assert_eq!(
        (letters[0].id.as_str(), letters[0].death.attempts, letters[0].death.host.as_str()),
        ("r13", 1, "worker-1")
    );
    assert_eq!(
        worker.metric("sluice_requests_total", &["outcome=\"retried\""])?,
        0.0,
        "its neighbours were not charged"
    );
    assert!(worker.metric("sluice_batches_total", &["split"])? >= 1.0);
    let shown = stack.cli(&["dead", "show", "m", "r13"])?;
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout)?;
    assert_eq!(shown["body"]["inputs"][0]["data"][0], 2e6);
    let listed = stack.cli(&["dead", "list", "m", "--json"])?;
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&listed.stdout)?[0]["id"], "r13");
    Ok(())
}

pub async fn a_request_whose_worker_died_each_time_ends_as_a_dead_letter(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    // One that never ends: each worker that takes it is found hung, and ends so that a fresh one can start.
    let body = [
        "_0 = bool(torch.gt(torch.max(x), 1000000.))",
        "y = torch.mul(x, 2)",
        "if _0:",
        "  z = y",
        "  for _1 in range(9223372036854775807):",
        "    z = torch.cos(z)",
        "  y = z",
        "else:",
        "  y = y",
        "return y",
    ];
    let manifest = "name = \"m\"\ninputs = [{ name = \"x\", datatype = \"FP32\", shape = [-1, 4] }]\n\
        outputs = [{ name = \"y\", datatype = \"FP32\", shape = [-1, 4] }]\n\
        [batching]\nmax_delay = \"200ms\"\n[limits]\nattempts = 3\nbatch_time = \"1s\"\nretry_delay = \"10ms\"\n";
    let package =
        fixture::Script { signature: "x: Tensor) -> Tensor", body: &body, manifest }.write(stack.folder(), "m")?;
    let mut worker = stack.worker(&[(&package, 1)], QUICK)?;
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    for index in 0..6 {
        let value = if index == 3 { 2e6 } else { index as f32 };
        broker
            .submit(Submission::new("m".parse()?, envelope(&format!("r{index}"), &*inbox), rows(&[[value; 4]])))
            .await?;
    }
    let mut codes = Vec::new();
    let mut restarts = 0;
    while codes.len() < 6 {
        match tokio::time::timeout(Duration::from_millis(100), inbox.next()).await {
            Ok(reply) => {
                let reply = reply?;
                codes.push((reply.id.to_string(), reply.error));
            }
            Err(_) => {
                if let Some(status) = worker.process.ended() {
                    assert_eq!(
                        status.code(),
                        Some(70),
                        "it says that a fresh process is needed: {}",
                        worker.process.log()
                    );
                    restarts += 1;
                    assert!(restarts <= 3, "it must not go on for ever: {codes:?}");
                    worker = stack.worker(&[(&package, 1)], QUICK)?;
                }
            }
        }
    }
    codes.sort_by(|one: &(String, _), other| one.0.cmp(&other.0));
    let good = |id: &str| (id.to_owned(), None);
    let expected =
        [good("r0"), good("r1"), good("r2"), ("r3".into(), Some(ErrorCode::Aborted)), good("r4"), good("r5")];
    assert_eq!(codes, expected);
    let model = "m".parse()?;
    stack.wait_until_empty(&broker, &model).await?;
    let letters = broker.dead_letters(&model, 10).await?;
    assert_eq!(
        letters.iter().map(|letter| (letter.id.as_str(), letter.death.attempts)).collect::<Vec<_>>(),
        [("r3", 3)]
    );
    Ok(())
}

pub async fn a_full_queue_refuses_and_loses_nothing_that_it_took(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "[limits]\nqueue_length = 50")?;
    let broker = stack.connect().await?;
    let model = "m".parse()?;
    assert_eq!(
        broker.ensure_queue(&model, &QueueLimits { length: 50, message_bytes: 1 << 20 }).await?,
        Limited::AsAsked
    );
    let mut results = Durable::open(&broker, "job", 80).await?;
    let mut accepted = BTreeSet::new();
    let mut refused = 0;
    for index in 0..80 {
        let id = format!("r{index}");
        match broker.submit(Submission::new(model.clone(), envelope(&id, &*results), rows(&[[1.0; 4]]))).await {
            Ok(_) => drop(accepted.insert(id)),
            Err(BrokerError::QueueFull(_)) => refused += 1,
            Err(error) => return Err(error.into()),
        }
    }
    if broker.capabilities().exact_length {
        assert_eq!((accepted.len(), refused), (50, 30));
    } else {
        assert!(accepted.len() >= 50 && refused > 0, "{} accepted, {refused} refused", accepted.len());
    }
    let _worker = stack.worker(&[(&package, 1)], "")?;
    while !accepted.is_empty() {
        let reply = next(&mut results).await?;
        assert!(accepted.remove(reply.id.as_str()), "{} was refused or came twice", reply.id);
    }
    Ok(())
}

pub async fn thousands_of_malformed_bodies_harm_nobody_else(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "")?;
    let mut worker = stack.worker(&[(&package, 1)], "")?;
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    let good = rows(&[[1.0; 4]]);
    let mut runner = TestRunner::deterministic();
    let damaged = (any::<prop::sample::Index>(), any::<u8>(), any::<bool>()).prop_map({
        let good = good.clone();
        move |(at, byte, cut)| {
            let mut bytes = good.to_vec();
            let at = at.index(bytes.len());
            if cut {
                bytes.truncate(at)
            } else {
                bytes[at] = byte
            }
            Bytes::from(bytes)
        }
    });
    let noise = prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
    let json = "\\PC{0,200}".prop_map(Bytes::from);
    let bodies = prop_oneof![damaged, noise, json];
    let mut open = BTreeSet::new();
    for index in 0..3000 {
        let (id, body) = if index % 10 == 0 {
            (format!("good{index}"), good.clone())
        } else {
            (format!("bad{index}"), bodies.new_tree(&mut runner).map_err(anyhow::Error::msg)?.current())
        };
        let content_type =
            if index % 3 == 1 && id.starts_with("bad") { ContentType::Json } else { ContentType::MessagePack };
        let envelope = Envelope { content_type, ..envelope(&id, &*inbox) };
        submit(&broker, Submission::new("m".parse()?, envelope, body)).await?;
        open.insert(id);
        while open.len() > 200 {
            take(&mut inbox, &mut open).await?;
        }
    }
    while !open.is_empty() {
        take(&mut inbox, &mut open).await?;
    }
    stack.wait_until_empty(&broker, &"m".parse()?).await?;
    assert!(worker.process.ended().is_none(), "{}", worker.process.log());
    Ok(())
}

async fn take(inbox: &mut Box<dyn Replies>, open: &mut BTreeSet<String>) -> Result<()> {
    let reply = next(inbox).await?;
    assert!(open.remove(reply.id.as_str()), "{} came twice", reply.id);
    if reply.id.as_str().starts_with("good") {
        assert_eq!(floats(&reply), Ok(vec![2.0; 4]));
    } else if let Err(text) = floats(&reply) {
        // A changed byte may leave a good request, or one with a value that the model refuses.
        assert!(text.starts_with("INVALID_ARGUMENT") || text.starts_with("MODEL_FAILED"), "{text}");
    }
    Ok(())
}

pub async fn a_lost_queue_is_made_again_and_the_worker_says_so(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = steady(stack.folder(), "")?;
    let worker = stack.worker(&[(&package, 1)], "")?;
    let broker = stack.connect().await?;
    assert_eq!(worker.metric("sluice_lost_queues_total", &[])?, 0.0);
    broker.remove_queue(&"m".parse()?).await?;
    answered_again(&worker, &broker, "a").await?;
    let lost = worker.metric("sluice_lost_queues_total", &[])?;
    assert!(lost >= 1.0, "it is counted");
    // The whole broker with all that it stored: nothing to mend until it is back.
    stack.server.wipe()?;
    let text = until_ready_is(&worker, 503).await?;
    assert!(text.contains("model `m` receives no requests"), "{text}");
    stack.server.come_back_empty()?;
    answered_again(&worker, &broker, "b").await?;
    assert!(worker.metric("sluice_lost_queues_total", &[])? > lost);
    let log = worker.process.log();
    assert!(log.contains("receives no requests") && log.contains("receives requests again"), "{log}");
    Ok(())
}

async fn until_ready_is(worker: &Worker, wanted: u16) -> Result<String> {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let (status, text) = worker.admin("/ready")?;
        if status == wanted {
            return Ok(text);
        }
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "{status}: {text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A request that is submitted as soon as there is a queue is answered, and the worker is ready.
async fn answered_again(worker: &Worker, broker: &Arc<dyn Broker>, id: &str) -> Result<()> {
    let mut inbox = broker.inbox().await;
    let deadline = tokio::time::Instant::now() + SOON;
    while let Err(error) = &inbox {
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        inbox = broker.inbox().await;
    }
    let mut inbox = inbox?;
    let submission = Submission::new("m".parse()?, envelope(id, &*inbox), rows(&[[1.0, 0.0, 0.0, 0.0]]));
    while let Err(error) = broker.submit(submission.clone()).await {
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let reply = next(&mut inbox).await?;
    assert_eq!(floats(&reply), Ok(vec![2.0, 0.0, 0.0, 0.0]));
    until_ready_is(worker, 200).await.map(drop)
}

/// Says `deadly` and then takes its time where a value is over a million, so that a test can end the process in the middle.
fn deadly(folder: &Path) -> Result<PathBuf> {
    let body = [
        "_1 = bool(torch.gt(torch.max(x), 1000000.))",
        "w = torch.ones([256, 256])",
        "y = w",
        "if _1:",
        "  print(\"deadly\")",
        "  for _0 in range(20000):",
        "    y = torch.clamp(torch.mm(y, w), 0., 1.)",
        "else:",
        "  pass",
        "return torch.add(torch.mul(x, 2), torch.mul(torch.min(y), 0.))",
    ];
    let manifest = "name = \"m\"\ninputs = [{ name = \"x\", datatype = \"FP32\", shape = [-1, 4] }]\n\
         outputs = [{ name = \"y\", datatype = \"FP32\", shape = [-1, 4] }]\n[batching]\nmax_rows = 8\n";
    Script { signature: "x: Tensor) -> Tensor", body: &body, manifest }.write(folder, "m")
}

pub async fn requests_that_kill_workers_take_no_others_with_them(kind: Kind) -> Result<()> {
    const REQUESTS: usize = 100;
    let is_deadly = |at: usize| at % 25 == 10;
    let mut stack = Stack::start(kind)?;
    let package = deadly(stack.folder())?;
    let mut workers = vec![stack.worker(&[(&package, 1)], QUICK)?, stack.worker(&[(&package, 1)], QUICK)?];
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    for at in 0..REQUESTS {
        let body = rows(&[[if is_deadly(at) { 2e6 } else { 1.0 }; 4]]);
        submit(&broker, Submission::new("m".parse()?, envelope(&format!("r{at}"), &*inbox), body)).await?;
    }
    let mut answers: BTreeMap<String, std::result::Result<Vec<f32>, String>> = BTreeMap::new();
    let deadline = tokio::time::Instant::now() + 2 * SOON;
    while answers.len() < REQUESTS {
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "{} of {REQUESTS} were answered", answers.len());
        tokio::select! {
            reply = inbox.next() => {
                let reply = reply?;
                answers.insert(reply.id.as_str().to_owned(), floats(&reply));
            }
            () = tokio::time::sleep(Duration::from_millis(20)) => {
                for worker in &mut workers {
                    if worker.process.log().contains("deadly") {
                        worker.process.kill();
                        *worker = stack.launch(&[(&package, 1)], QUICK)?;
                    }
                }
            }
        }
    }
    for at in 0..REQUESTS {
        let answer = &answers[&format!("r{at}")];
        match is_deadly(at) {
            true => assert!(answer.as_ref().is_err_and(|error| error.starts_with("ABORTED")), "{answer:?}"),
            false => assert_eq!(answer, &Ok(vec![2.0; 4]), "request {at}"),
        }
    }
    Ok(())
}
