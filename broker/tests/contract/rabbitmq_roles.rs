//! RabbitMQ's production files: each role can do its work over TLS, and none another's.

use std::sync::Arc;

use anyhow::Result;
use lapin::options::{BasicGetOptions, BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use sluice_broker::{Options, connect};
use sluice_core::ErrorCode;
use sluice_core::broker::{Broker, BrokerError, Death, Limited, QueueLimits, Settlement};
use sluice_core::settings::{Apply, Settings};
use xtask::certificates::Certificates;
use xtask::rabbitmq::RabbitServer;

use crate::rig::{PATIENCE, SOON, id, model, next, request};
use crate::roles::{Served, a_reply, manages};

const LIMITS: QueueLimits = QueueLimits { length: 100, message_bytes: 4096 };

struct Production {
    server: RabbitServer,
    certificates: Certificates,
    _folder: tempfile::TempDir,
}

impl Production {
    fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let certificates = Certificates::make(folder.path())?;
        let server = RabbitServer::production(folder.path(), folder.path())?;
        Ok(Self { server, certificates, _folder: folder })
    }

    fn options(&self, role: &str) -> Options {
        Options {
            tls_ca: Some(self.certificates.authority.clone()),
            management: Some(self.server.management_of(role)),
            patience: PATIENCE,
            ..Options::new(self.server.url_of(role), role)
        }
    }

    async fn connect(&self, role: &str) -> Result<Arc<dyn Broker>> {
        Ok(connect(&self.options(role)).await?)
    }

    /// A channel that is bound to nothing but its credentials.
    async fn raw(&self, role: &str) -> Result<lapin::Channel> {
        let url = self.options(role).url.parse().map_err(anyhow::Error::msg)?;
        let authority = std::fs::read_to_string(&self.certificates.authority)?;
        let tls = lapin::tcp::OwnedTLSConfig { cert_chain: Some(authority), ..Default::default() };
        let properties = lapin::ConnectionProperties::default();
        let runtime = lapin::runtime::default_runtime()?;
        let connection = lapin::Connection::connect_uri_with_config(url, properties, tls, runtime).await?;
        Ok(connection.create_channel().await?)
    }
}

fn is_refused<T>(outcome: lapin::Result<T>) -> bool {
    outcome.err().is_some_and(|error| error.to_string().contains("ACCESS_REFUSED"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_can_do_its_work_over_tls() -> Result<()> {
    let production = Production::start()?;
    let worker = production.connect("worker").await?;
    let limited = worker.ensure_queue(&model(), &LIMITS).await?;
    assert!(matches!(&limited, Limited::AsConfigured(why) if why.contains("setting a queue's length")), "{limited:?}");
    let consumer = worker.consume(&model(), 8).await?;
    let questions = worker.listen("describe.digits").await?;
    let mut served = Served { worker: &worker, consumer, questions };
    for role in ["producer", "gateway"] {
        served.answers(&production.connect(role).await?, role).await?;
    }
    let mut consumer = served.consumer;

    // A request that is given back, tried again later, then buried.
    let producer = production.connect("producer").await?;
    producer.submit(request("doomed")).await?;
    next(&mut consumer).await?.hold.settle(Settlement::GiveBack).await?;
    next(&mut consumer).await?.hold.settle(Settlement::Retry(std::time::Duration::from_millis(50))).await?;
    let delivery = next(&mut consumer).await?;
    assert_eq!((id(&delivery).as_str(), delivery.charged), ("doomed", 1));
    let death = Death { code: ErrorCode::ModelFailed, reason: "no".into(), attempts: 1, host: "h".into(), at: 0 };
    delivery.hold.settle(Settlement::Dead(death)).await?;
    assert_eq!(producer.depth(&model()).await?[1].ready.clone().known(), Some(0));

    let monitoring = production.connect("monitoring").await?;
    assert_eq!(monitoring.queues().await?, [model()]);
    assert_eq!(monitoring.dead_letters(&model(), 5).await?[0].id, "doomed");

    let scaler = production.connect("scaler").await?;
    assert_eq!(scaler.depth(&model()).await?.len(), 3);
    let lead = tokio::time::timeout(SOON, scaler.lead("scaler", "one")).await??;
    assert!(lead.holds());
    let manager = production.connect("manager").await?;
    manages(&manager, &worker, &producer, consumer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_can_do_anothers_work() -> Result<()> {
    let production = Production::start()?;
    let worker = production.connect("worker").await?;
    let _ = worker.ensure_queue(&model(), &LIMITS).await?;
    let producer = production.connect("producer").await?;
    let results = producer.results(&"job".parse()?).await?;
    producer.submit(request("r1")).await?;
    let denied = |error: BrokerError| assert!(matches!(error, BrokerError::Denied(_)), "{error:?}");

    // A producer cannot take requests: not through the seam, and not by hand. Nor remove or copy them.
    denied(producer.consume(&model(), 8).await.err().expect("it may not consume"));
    let lane = "infer.digits.normal";
    let get = production.raw("producer").await?.basic_get(lane.into(), BasicGetOptions::default()).await;
    assert!(is_refused(get));
    let delete = production.raw("producer").await?.queue_delete(lane.into(), QueueDeleteOptions::default()).await;
    assert!(is_refused(delete));
    let channel = production.raw("producer").await?;
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let own = channel.queue_declare("".into(), options, FieldTable::default()).await?.name().clone();
    let eavesdropping =
        channel.queue_bind(own, "sluice.infer".into(), lane.into(), Default::default(), FieldTable::default()).await;
    assert!(is_refused(eavesdropping));
    denied(producer.dead_letters(&model(), 5).await.expect_err("dead letters are not for it"));
    // Nor answer in a worker's place.
    denied(producer.reply(&results.reply_to(), &a_reply("r1")?).await.expect_err("it may not answer"));

    // A worker cannot submit requests, not even by the way that leads to every queue, nor read results or dead letters.
    denied(worker.submit(request("r2")).await.expect_err("it may not submit"));
    for (exchange, key) in [("sluice.infer", lane), ("", lane)] {
        let channel = production.raw("worker").await?;
        channel.confirm_select(Default::default()).await?;
        let options = BasicPublishOptions::default();
        let published = channel.basic_publish(exchange.into(), key.into(), options, b"x", Default::default()).await?;
        assert!(is_refused(published.await), "exchange `{exchange}`");
    }
    denied(worker.stored_results(&"job".parse()?, &["r1".parse()?]).await.expect_err("results are not for it"));
    denied(worker.dead_letters(&model(), 5).await.expect_err("dead letters are not for it"));

    // The deployment's settings are for the manager to change; who needs them may read them.
    let manager = production.connect("manager").await?;
    let settings = Settings { results_kept: std::time::Duration::from_secs(7), ..manager.settings().await? };
    manager.store_settings(&settings).await?;
    manager.apply_settings(&settings, Apply::Change).await?;
    for role in ["producer", "worker", "gateway", "monitoring"] {
        let broker = production.connect(role).await?;
        assert_eq!(broker.settings().await?, settings, "{role}");
        denied(broker.store_settings(&settings).await.expect_err("it may not change settings"));
    }

    // Scaler and monitoring take and change nothing.
    for role in ["scaler", "monitoring"] {
        let broker = production.connect(role).await?;
        denied(broker.consume(&model(), 8).await.err().expect("it may not consume"));
        denied(broker.submit(request("r3")).await.expect_err("it may not submit"));
        denied(broker.remove_queue(&model()).await.expect_err("it may not remove"));
    }
    let ready: u64 = producer.depth(&model()).await?.iter().filter_map(|lane| lane.ready.clone().known()).sum();
    assert_eq!(ready, 1, "nothing was submitted or taken");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_and_strange_places_are_refused_clearly() -> Result<()> {
    let production = Production::start()?;
    let mut options = production.options("worker");
    options.url = options.url.replace("worker-pass", "wrong");
    let error = connect(&options).await.err().expect("a wrong password");
    assert!(matches!(error, BrokerError::Denied(_)), "{error:?}");
    assert!(!error.to_string().contains("wrong"), "the password is not shown: {error}");
    let mut stranger = production.options("worker");
    stranger.tls_ca = None;
    assert!(connect(&stranger).await.is_err(), "an unknown certificate authority");
    // A virtual host that is not there, and one where this user may not be.
    for (place, expected) in [("nowhere", "vhost nowhere not found"), ("%2f", "vhost")] {
        let mut elsewhere = production.options("worker");
        elsewhere.url = elsewhere.url.replace("/sluice", &format!("/{place}"));
        let error = connect(&elsewhere).await.err().expect("it is not for this user");
        assert!(matches!(&error, BrokerError::Denied(text) if text.contains(expected)), "{place}: {error:?}");
    }
    Ok(())
}
