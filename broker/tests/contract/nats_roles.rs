//! The production files: each role can do its work over TLS, and none another's.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use sluice_broker::{Options, connect, open_store};
use sluice_core::broker::{Broker, BrokerError, Limited, QueueLimits, Settlement};
use sluice_core::{ErrorCode, StoreError};
use xtask::certificates::Certificates;
use xtask::cluster::NatsCluster;
use xtask::nats::NatsServer;

use crate::rig::{self, PATIENCE, SOON, id, model, next, request};
use crate::roles::{Served, a_reply, manages};

pub struct Production {
    server: NatsServer,
    folder: tempfile::TempDir,
}

impl Production {
    pub fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        Certificates::make(folder.path())?;
        Ok(Self { server: NatsServer::production(folder.path(), folder.path())?, folder })
    }

    pub fn options(&self, role: &str) -> Options {
        let tls_ca = Some(self.folder.path().join("ca.pem"));
        Options { tls_ca, patience: PATIENCE, ..Options::new(self.server.url_of(role), role) }
    }

    pub async fn connect(&self, role: &str) -> Result<Arc<dyn Broker>> {
        Ok(connect(&self.options(role)).await?)
    }

    /// A worker with a queue, which a manager has made.
    pub async fn with_queue(&self) -> Result<Arc<dyn Broker>> {
        let limits = QueueLimits { length: 100, message_bytes: 4096 };
        let (manager, worker) = (self.connect("manager").await?, self.connect("worker").await?);
        assert_eq!(manager.ensure_queue(&model(), &limits).await?, Limited::AsAsked);
        assert_eq!(worker.ensure_queue(&model(), &limits).await?, Limited::AsAsked, "it is there");
        Ok(worker)
    }

    /// A client that is bound to nothing but its credentials.
    pub async fn raw(&self, role: &str) -> Result<async_nats::Client> {
        let options = async_nats::ConnectOptions::with_user_and_password(role.into(), format!("{role}-pass"))
            .add_root_certificates(self.folder.path().join("ca.pem"))
            .custom_inbox_prefix(format!("_INBOX.{role}"))
            .require_tls(true);
        Ok(options.connect(format!("tls://127.0.0.1:{}", self.server.port())).await?)
    }
}

/// Whether a request to the server is answered: a forbidden one is not.
pub async fn answered(client: &async_nats::Client, subject: &str, payload: &str) -> bool {
    let asked = client.request(subject.to_owned(), Bytes::copy_from_slice(payload.as_bytes()));
    match tokio::time::timeout(rig::A_WHILE, asked).await {
        Ok(Ok(message)) => !String::from_utf8_lossy(&message.payload).contains("\"error\""),
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_can_do_its_work_over_tls() -> Result<()> {
    let production = Production::start()?;
    let worker = production.with_queue().await?;
    let consumer = worker.consume(&model(), 8).await?;
    let questions = worker.listen("describe.digits").await?;
    let mut served = Served { worker: &worker, consumer, questions };
    for role in ["producer", "gateway"] {
        served.answers(&production.connect(role).await?, role).await?;
    }
    let mut consumer = served.consumer;

    // A request that is given back, then buried.
    let producer = production.connect("producer").await?;
    producer.submit(request("doomed")).await?;
    next(&mut consumer).await?.hold.settle(Settlement::GiveBack).await?;
    let delivery = next(&mut consumer).await?;
    assert_eq!((id(&delivery).as_str(), delivery.charged), ("doomed", 0));
    let death = sluice_core::broker::Death {
        code: ErrorCode::ModelFailed,
        reason: "no".into(),
        attempts: 1,
        host: "h".into(),
        at: 0,
    };
    delivery.hold.settle(Settlement::Dead(death)).await?;

    let monitoring = production.connect("monitoring").await?;
    assert_eq!(monitoring.queues().await?, [model()]);
    assert!(monitoring.depth(&model()).await?.iter().all(|lane| lane.ready.clone().known() == Some(0)));
    assert_eq!(production.connect("manager").await?.dead_letters(&model(), 5).await?[0].id, "doomed");

    let scaler = production.connect("scaler").await?;
    assert_eq!(scaler.depth(&model()).await?.len(), 3);
    let lead = tokio::time::timeout(SOON, scaler.lead("scaler", "one")).await??;
    assert!(lead.holds());
    // Whoever looks may ask the scaler why, and hear the hosts; only a manager may give orders.
    let (mut questions, mut orders) = (scaler.listen("scaler").await?, scaler.listen("scaler-orders").await?);
    let mut reports = monitoring.listen("reports").await?;
    let answering = tokio::spawn(async move {
        for questions in [&mut questions, &mut orders] {
            let question = questions.next().await?;
            question.answer.context("a way back")?.send("because".into()).await?;
        }
        anyhow::Ok(())
    });
    worker.signal("reports", "here".into()).await?;
    assert_eq!(tokio::time::timeout(SOON, reports.next()).await??.payload, "here");
    assert_eq!(monitoring.ask("scaler", "why".into(), SOON).await?.as_deref(), Some(&b"because"[..]));
    assert!(!matches!(monitoring.ask("scaler-orders", "go".into(), Duration::from_secs(1)).await, Ok(Some(_))));
    let manager = production.connect("manager").await?;
    assert_eq!(manager.ask("scaler-orders", "go".into(), SOON).await?.as_deref(), Some(&b"because"[..]));
    answering.await??;
    manages(&manager, &worker, &producer, consumer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_writes_the_registry_and_the_others_read_it_or_not_even_that() -> Result<()> {
    let production = Production::start()?;
    let store = async |role: &str| open_store(&production.options(role)).await;
    let manager = store("manager").await?;
    let file = production.folder.path().join("weights");
    std::fs::write(&file, b"weights")?;
    // Before the first record there is nothing, and that is no error.
    assert!(store("worker").await?.list("revisions").await?.is_empty());
    manager.create("revisions/digits/1.toml", "one".into()).await?;
    manager.upload("blobs/digits/a", &file, &|_| ()).await?;
    for role in ["worker", "gateway", "scaler"] {
        let reader = store(role).await?;
        assert_eq!(reader.read("revisions/digits/1.toml").await?.as_deref(), Some(&b"one"[..]), "{role}");
        assert_eq!(reader.list("revisions").await?, ["revisions/digits/1.toml"], "{role}");
    }
    let worker = store("worker").await?;
    worker.download("blobs/digits/a", &file, &|_| ()).await?;
    assert_eq!(std::fs::read(&file)?, b"weights");
    // A refusal takes its time to be known: all at once.
    let (scaler, gateway) = (store("scaler").await?, store("gateway").await?);
    let (producer, monitoring) = (store("producer").await?, store("monitoring").await?);
    let key = "revisions/digits/2.toml";
    let (one, two, three, removed, uploaded, read, also_read) = tokio::join!(
        worker.create(key, "two".into()),
        scaler.create(key, "two".into()),
        gateway.create(key, "two".into()),
        gateway.remove("revisions/digits/1.toml"),
        worker.upload("blobs/digits/b", &file, &|_| ()),
        producer.read("revisions/digits/1.toml"),
        monitoring.read("revisions/digits/1.toml"),
    );
    for denied in [one, two, three, removed, uploaded, read.map(drop), also_read.map(drop)] {
        assert!(matches!(denied, Err(StoreError::Denied(_))), "{denied:?}");
    }
    manager.remove("revisions/digits/1.toml").await?;
    manager.remove_blob("blobs/digits/a").await?;
    assert!(manager.list("revisions").await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_can_do_anothers_work() -> Result<()> {
    let production = Production::start()?;
    let worker = production.with_queue().await?;
    let producer = production.connect("producer").await?;
    producer.submit(request("r1")).await?;

    // A producer cannot take requests: not through the seam, and not by hand.
    let mut consumer = producer.consume(&model(), 8).await?;
    rig::nothing(&mut consumer).await?;
    let raw = production.raw("producer").await?;
    let pull = r#"{"batch":1,"no_wait":true}"#;
    assert!(!answered(&raw, "$JS.API.CONSUMER.MSG.NEXT.INFER_digits.normal", pull).await);
    assert!(!answered(&raw, "$JS.API.DIRECT.GET.INFER_digits.infer.digits.normal", "").await);
    assert!(!answered(&raw, "$JS.API.STREAM.PURGE.INFER_digits", "").await);
    assert!(!answered(&raw, "$JS.API.STREAM.DELETE.INFER_digits", "").await);
    // Nor listen to the queue's subject or to others' answers: nothing of it arrives.
    let mut eavesdropper = raw.subscribe("infer.>").await?;
    let mut others = raw.subscribe("_INBOX.>").await?;
    raw.flush().await?;
    producer.submit(request("r2")).await?;
    let gateway = production.connect("gateway").await?;
    let inbox = gateway.inbox().await?;
    worker.reply(&inbox.reply_to(), &a_reply("r1")?).await?;
    use futures_util::StreamExt;
    for subscriber in [&mut eavesdropper, &mut others] {
        let heard = tokio::time::timeout(rig::A_WHILE, subscriber.next()).await;
        assert!(!matches!(heard, Ok(Some(_))), "something was overheard: {heard:?}");
    }

    // A worker cannot submit requests, nor make or change anything, nor read results or dead letters.
    let denied = worker.submit(request("r3")).await.expect_err("it may not");
    assert!(matches!(denied, BrokerError::Denied(_)), "{denied:?}");
    let raw = production.raw("worker").await?;
    assert!(!answered(&raw, "infer.digits.high", "x").await);
    let consumer = r#"{"stream_name":"RESULTS","config":{"name":"spy","ack_policy":"none","deliver_policy":"all"}}"#;
    assert!(!answered(&raw, "$JS.API.CONSUMER.CREATE.RESULTS.spy", consumer).await);
    assert!(!answered(&raw, "$JS.API.CONSUMER.CREATE.RESULTS", consumer).await);
    assert!(answered(&raw, "$JS.API.STREAM.INFO.RESULTS", "").await, "what it may do is answered");
    assert!(!answered(&raw, "$JS.API.DIRECT.GET.RESULTS.results.job.r1", "").await);
    assert!(!answered(&raw, "$JS.API.STREAM.DELETE.INFER_digits", "").await);
    // The deployment's settings are for the manager to change; everybody may look.
    let limits = QueueLimits { length: 7, message_bytes: 4096 };
    let limited = worker.ensure_queue(&model(), &limits).await?;
    assert!(matches!(limited, Limited::AsConfigured(_)), "{limited:?}");
    let refused = worker.ensure_queue(&"other".parse()?, &limits).await.expect_err("it may not make it");
    assert!(matches!(&refused, BrokerError::Denied(text) if text.contains("make-queue")), "{refused:?}");
    let settings = r#"{"name":"SLUICE_SETTINGS","subjects":["sluice.settings"],"discard":"new","max_msgs":1,"max_msg_size":1,
        "num_replicas":1,"storage":"file","retention":"limits","metadata":{"hold_time":"7s"}}"#;
    assert!(!answered(&raw, "$JS.API.STREAM.UPDATE.SLUICE_SETTINGS", settings).await);
    assert!(!answered(&raw, "$JS.API.STREAM.DELETE.SLUICE_SETTINGS", "").await);
    let manager = production.raw("manager").await?;
    assert!(!answered(&manager, "$JS.API.STREAM.DELETE.SLUICE_SETTINGS", "").await);
    assert!(answered(&manager, "$JS.API.STREAM.UPDATE.SLUICE_SETTINGS", settings).await);
    for role in ["producer", "worker", "scaler", "gateway", "manager", "monitoring"] {
        assert_eq!(production.connect(role).await?.settings().await?.hold_time, Duration::from_secs(7), "{role}");
    }
    assert_eq!(rig::counts(&production.connect("monitoring").await?).await?.0, 2, "nothing was submitted or taken");

    // Monitoring changes nothing.
    let raw = production.raw("monitoring").await?;
    assert!(!answered(&raw, "infer.digits.high", "x").await);
    assert!(!answered(&raw, "$JS.API.CONSUMER.MSG.NEXT.INFER_digits.normal", pull).await);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_see_nothing_of_each_other() -> Result<()> {
    let production = Production::start()?;
    let staging = production.connect("staging").await?;
    assert_eq!(
        staging.ensure_queue(&"secret".parse()?, &QueueLimits { length: 100, message_bytes: 4096 }).await?,
        Limited::AsAsked
    );
    staging.submit(sluice_core::broker::Submission { model: "secret".parse()?, ..request("r1") }).await?;
    let worker = production.connect("worker").await?;
    let refused = worker.consume(&"secret".parse()?, 8).await.err().expect("another account's queue");
    assert!(matches!(refused, BrokerError::UnknownModel(_)), "{refused:?}");
    assert!(production.connect("monitoring").await?.queues().await?.is_empty());
    assert_eq!(staging.queues().await?.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_and_plain_connections_are_refused_clearly() -> Result<()> {
    let production = Production::start()?;
    let mut options = production.options("worker");
    options.url = options.url.replace("worker-pass", "wrong");
    let error = connect(&options).await.err().expect("a wrong password");
    assert!(matches!(error, BrokerError::Denied(_)), "{error:?}");
    assert!(!error.to_string().contains("wrong"), "the password is not shown: {error}");
    let mut plain = production.options("worker");
    plain.tls_ca = None;
    assert!(connect(&plain).await.is_err(), "an unknown certificate authority");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_three_goes_on_without_one_of_them() -> Result<()> {
    let folder = tempfile::tempdir()?;
    Certificates::make(folder.path())?;
    let mut cluster = NatsCluster::start(folder.path(), folder.path())?;
    let urls = cluster.url_of("ROLE");
    let options = |role: &str| Options {
        tls_ca: Some(folder.path().join("ca.pem")),
        replicas: Some(3),
        patience: PATIENCE,
        ..Options::new(urls.replace("ROLE", role), role)
    };
    let manager = connect(&options("manager")).await?;
    let worker = connect(&options("worker")).await?;
    let producer = connect(&options("producer")).await?;
    let deadline = tokio::time::Instant::now() + SOON;
    // The cluster needs a moment to elect its leader.
    while let Err(error) = manager.ensure_queue(&model(), &QueueLimits { length: 1000, message_bytes: 4096 }).await {
        assert!(tokio::time::Instant::now() < deadline, "{error:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let submit = async |id: String| -> Result<()> {
        let deadline = tokio::time::Instant::now() + SOON;
        // While a new leader is elected nobody answers, which looks like a queue that is not there.
        while let Err(error) = producer.submit(request(&id)).await {
            assert!(tokio::time::Instant::now() < deadline, "{error:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    };
    for index in 0..20 {
        submit(format!("before-{index}")).await?;
    }
    let mut consumer = worker.consume(&model(), 8).await?;
    next(&mut consumer).await?.hold.settle(Settlement::Done).await?;
    cluster.lose("node-0")?;
    for index in 0..20 {
        submit(format!("after-{index}")).await?;
    }
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 39 {
        // Without a leader there is nobody to take orders, which is told as a consumer that is gone; it goes on by itself.
        let delivery = rig::next_after_repair(&mut consumer).await?;
        seen.insert(id(&delivery));
        delivery.hold.settle(Settlement::Done).await?;
    }
    Ok(())
}
