//! What a malicious holder of a role tries on the production files, one test for each kind. What is promised in `docs/security.md` is
//! proved here.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use sluice_broker::{Options, connect, open_store};
use sluice_core::JobId;
use sluice_core::broker::{BrokerError, QueueLimits};

use xtask::nats::NatsServer;

use crate::nats_roles::{Production, answered};
use crate::rig::{self, SOON, model, request};
use crate::roles::a_reply;

/// Where an answer that goes astray does harm: streams are deleted, records and results written, hosts and the scaler given orders.
const TARGETS: [&str; 9] = [
    "$JS.API.STREAM.DELETE.DEAD",
    "$JS.API.STREAM.PURGE.DEAD",
    "$KV.SLUICE_REGISTRY.revisions.digits.2=2etoml",
    "$KV.SLUICE_LEADERS.scaler",
    "dead.digits",
    "givenback.digits.1",
    "results.producer.job.r1",
    "control.assign.a",
    "control.scaler-orders",
];

/// All that any role may publish, one of each kind, with what it may say.
const QUESTIONS: [(&str, &str); 11] = [
    ("infer.digits.high", "\u{c0}"),
    ("control.describe.digits", ""),
    ("control.scaler", ""),
    ("control.report-now", ""),
    ("sluice.api.DIRECT.GET.RESULTS.results.producer.no.no", ""),
    ("sluice.api.DIRECT.GET.RESULTS.results.gateway.no.no", ""),
    ("sluice.api.DIRECT.GET.KV_SLUICE_REGISTRY.no", ""),
    ("sluice.api.STREAM.INFO.INFER_digits", ""),
    ("sluice.api.STREAM.NAMES", ""),
    ("sluice.api.CONSUMER.INFO.INFER_digits.high", ""),
    ("$JS.API.INFO", ""),
];

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_lands_where_it_means_something_else() -> Result<()> {
    let production = Production::start()?;
    let worker = production.with_queue().await?;
    let manager = production.raw("manager").await?;
    let registry = open_store(&production.options("manager")).await?;
    registry.create("revisions/digits/1.toml", "one".into()).await?;
    // Somebody answers, so that there are answers.
    let (mut questions, mut asked) = (worker.listen("describe.digits").await?, worker.listen("scaler").await?);
    let answering = tokio::spawn(async move {
        loop {
            let signal = tokio::select! { signal = questions.next() => signal, signal = asked.next() => signal };
            if let Some(answer) = signal?.answer {
                answer.send("{}".into()).await?;
            }
        }
        #[expect(unreachable_code)]
        anyhow::Ok(())
    });
    let mut orders = manager.subscribe("control.assign.*").await?;
    let mut also = manager.subscribe("control.scaler-orders").await?;
    manager.flush().await?;
    let before = counts(&manager).await?;
    for role in ["producer", "gateway", "monitoring"] {
        let attacker = production.raw(role).await?;
        for target in TARGETS {
            for (question, body) in QUESTIONS {
                let body = Bytes::copy_from_slice(body.as_bytes());
                attacker.publish_with_reply(question.to_owned(), target.to_owned(), body).await?;
            }
        }
        attacker.flush().await?;
    }
    // What was sent before is worked off by now, answers included.
    let witness = production.connect("producer").await?;
    assert!(witness.ask("describe.digits", Bytes::new(), SOON).await?.is_some());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(counts(&manager).await?, before);
    for heard in [&mut orders, &mut also] {
        let heard = tokio::time::timeout(Duration::from_millis(100), heard.next()).await;
        assert!(heard.is_err(), "an order was given: {heard:?}");
    }
    assert_eq!(registry.list("revisions").await?, ["revisions/digits/1.toml"]);
    answering.abort();
    Ok(())
}

/// Messages of each stream that nobody but a service writes to.
async fn counts(manager: &async_nats::Client) -> Result<Vec<(String, u64)>> {
    let mut counts = Vec::new();
    for stream in ["DEAD", "RESULTS", "GIVEN_BACK", "KV_SLUICE_REGISTRY", "KV_SLUICE_LEADERS", "SLUICE_SETTINGS"] {
        let info = manager.request(format!("$JS.API.STREAM.INFO.{stream}"), Bytes::new()).await?;
        let info: serde_json::Value = serde_json::from_slice(&info.payload)?;
        counts.push((
            stream.to_owned(),
            info["state"]["messages"].as_u64().with_context(|| format!("{stream} is gone"))?,
        ));
    }
    Ok(counts)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_service_answers_elsewhere_than_at_an_inbox() -> Result<()> {
    let production = Production::start()?;
    let worker = production.with_queue().await?;
    let mut questions = worker.listen("describe.digits").await?;
    // Within the services' account nothing else stands between.
    let scaler = production.raw("scaler").await?;
    for (target, may) in TARGETS.map(|target| (target, false)).into_iter().chain([("_INBOX.scaler.x", true)]) {
        scaler.publish_with_reply("control.describe.digits", target.to_owned(), Bytes::new()).await?;
        let signal = tokio::time::timeout(SOON, questions.next()).await??;
        assert_eq!(signal.answer.is_some(), may, "{target}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_sees_only_what_is_its_own() -> Result<()> {
    let production = Production::start()?;
    let worker = production.with_queue().await?;
    let gateway = production.connect("gateway").await?;
    let job = JobId::of(gateway.user(), "job")?;
    let results = gateway.results(&job).await?;
    worker.reply(&results.reply_to(), &a_reply("r1")?).await?;
    assert_eq!(gateway.stored_results(&job, &["r1".parse()?]).await?.len(), 1);

    let producer = production.connect("producer").await?;
    for refused in [
        producer.results(&job).await.map(drop),
        producer.stored_results(&job, &["r1".parse()?]).await.map(drop),
        producer.dead_letters(&model(), 1).await.map(drop),
    ] {
        assert!(matches!(refused, Err(BrokerError::Denied(_))), "{refused:?}");
    }
    let raw = production.raw("producer").await?;
    let consumer = r#"{"stream_name":"RESULTS","config":{"name":"spy","ack_policy":"none","deliver_policy":"all"}}"#;
    let filter = r#"{"subjects_filter":">"}"#;
    let forbidden = [
        ("sluice.api.DIRECT.GET.RESULTS.results.gateway.job.r1", ""),
        ("sluice.api.DIRECT.GET.RESULTS.>", ""),
        ("sluice.api.DIRECT.GET.RESULTS.results.*.job.r1", ""),
        ("sluice.api.DIRECT.GET.RESULTS", r#"{"last_by_subj":"results.gateway.job.r1"}"#),
        ("sluice.api.STREAM.INFO.RESULTS", filter),
        ("sluice.api.STREAM.INFO.DEAD", filter),
        ("sluice.api.STREAM.NAMES", ""),
        ("sluice.api.CONSUMER.CREATE.RESULTS.spy", consumer),
        ("$JS.API.CONSUMER.CREATE.RESULTS.spy", consumer),
        ("$JS.API.STREAM.INFO.RESULTS", filter),
    ];
    let client = &raw;
    let tried = forbidden.map(|(subject, body)| async move { (subject, answered(client, subject, body).await) });
    for (subject, answered) in futures_util::future::join_all(tried).await {
        assert!(!answered, "{subject}");
    }
    assert!(answered(&raw, "sluice.api.STREAM.INFO.INFER_digits", "").await, "what it may do is answered");
    let mut listening = Vec::new();
    for subject in ["_INBOX.>", "_INBOX.gateway.>", "_INBOX.*.x", "infer.>", "results.>", "control.>", "sluice.api.>"] {
        listening.push((subject, raw.subscribe(subject).await?));
    }
    raw.flush().await?;
    worker.reply(&results.reply_to(), &a_reply("r2")?).await?;
    gateway.submit(request("r3")).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    for (subject, heard) in &mut listening {
        let heard = heard.next().now_or_never();
        assert!(!matches!(heard, Some(Some(_))), "{subject}: {heard:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_manager_makes_or_changes_what_stores() -> Result<()> {
    let production = Production::start()?;
    production.with_queue().await?;
    let stream = r#"{"name":"SPY","sources":[{"name":"RESULTS"},{"name":"DEAD"}]}"#;
    let shorter = r#"{"name":"RESULTS","subjects":["results.>"],"max_age":100000000}"#;
    let republish =
        r#"{"name":"SPY","subjects":["control.x.>"],"republish":{"src":"control.x.>","dest":"infer.digits.high"}}"#;
    let push =
        r#"{"stream_name":"DEAD","config":{"name":"spy","deliver_subject":"control.assign.a","ack_policy":"none"}}"#;
    for role in ["producer", "gateway", "monitoring", "worker", "scaler"] {
        let raw = production.raw(role).await?;
        for api in ["$JS.API", "sluice.api"] {
            for (operation, body) in [
                ("STREAM.CREATE.SPY", stream),
                ("STREAM.CREATE.SPY", republish),
                ("STREAM.UPDATE.RESULTS", shorter),
                ("STREAM.DELETE.INFER_digits", ""),
                ("STREAM.PURGE.INFER_digits", ""),
                ("CONSUMER.CREATE.DEAD.spy", push),
                ("CONSUMER.DELETE.INFER_digits.high", ""),
                ("STREAM.MSG.GET.DEAD", r#"{"seq":1}"#),
                ("STREAM.SNAPSHOT.RESULTS", r#"{"deliver_subject":"control.assign.a"}"#),
            ] {
                // A refusal takes its time to be known; nothing of these is answered.
                raw.publish(format!("{api}.{operation}"), Bytes::copy_from_slice(body.as_bytes())).await?;
            }
        }
        raw.flush().await?;
    }
    tokio::time::sleep(rig::A_WHILE).await;
    let manager = production.raw("manager").await?;
    let names = manager.request("$JS.API.STREAM.NAMES", Bytes::new()).await?;
    let names: serde_json::Value = serde_json::from_slice(&names.payload)?;
    let streams: Vec<&str> =
        names["streams"].as_array().into_iter().flatten().filter_map(|name| name.as_str()).collect();
    assert!(streams.contains(&"INFER_digits") && !streams.contains(&"SPY"), "{streams:?}");
    let consumers = manager.request("$JS.API.CONSUMER.NAMES.DEAD", Bytes::new()).await?;
    assert!(!String::from_utf8_lossy(&consumers.payload).contains("spy"), "{consumers:?}");
    let results = manager.request("$JS.API.STREAM.INFO.RESULTS", Bytes::new()).await?;
    let results: serde_json::Value = serde_json::from_slice(&results.payload)?;
    assert_ne!(results["config"]["max_age"], 100_000_000);
    // Whoever may not make a queue is told who may.
    let scaler = production.connect("scaler").await?;
    let refused = scaler.ensure_queue(&"other".parse()?, &QueueLimits { length: 1, message_bytes: 1 }).await;
    assert!(matches!(refused, Err(BrokerError::Denied(_))), "{refused:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_ill_formed_request_does_not_keep_the_scaler_from_seeing_how_much_waits() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = NatsServer::start("dev.conf", folder.path(), &[])?;
    let scaler = connect(&Options::new(server.url(), "scaler")).await?;
    _ = scaler.ensure_queue(&model(), &QueueLimits { length: 100, message_bytes: 4096 }).await?;
    // The server takes headers without a look at them: a line without a colon ends the connection of whoever reads it.
    let headers = "NATS/1.0\r\nfoo\r\n\r\n";
    let size = headers.len();
    let mut raw = std::net::TcpStream::connect(("127.0.0.1", server.port()))?;
    let hello = r#"CONNECT {"verbose":false,"headers":true}"#;
    write!(raw, "{hello}\r\nHPUB infer.digits.normal {size} {}\r\n{headers}body\r\nPING\r\n", size + 4)?;
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let depth = scaler.depth(&model()).await?;
        if depth[1].ready.clone().known() == Some(1) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{depth:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..3 {
        let depth = scaler.depth(&model()).await?;
        assert_eq!(depth[1].ready.clone().known(), Some(1), "{depth:?}");
        assert!(depth[1].oldest.clone().known().is_some_and(|age| age > Duration::ZERO), "{depth:?}");
    }
    Ok(())
}
