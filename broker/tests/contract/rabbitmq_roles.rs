//! RabbitMQ's production files: each role can do its work over TLS.

use std::sync::Arc;

use anyhow::Result;
use sluice_broker::{Options, connect};
use sluice_core::ErrorCode;
use sluice_core::broker::{Broker, BrokerError, Death, Limited, QueueLimits, Settlement};
use xtask::certificates::Certificates;
use xtask::rabbitmq::RabbitServer;

use crate::rig::{PATIENCE, SOON, id, model, next, request};
use crate::roles::{Served, manages};

pub const LIMITS: QueueLimits = QueueLimits { length: 100, message_bytes: 4096 };

pub struct Production {
    pub server: RabbitServer,
    certificates: Certificates,
    _folder: tempfile::TempDir,
}

impl Production {
    pub fn start() -> Result<Self> {
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

    pub async fn connect(&self, role: &str) -> Result<Arc<dyn Broker>> {
        Ok(connect(&self.options(role)).await?)
    }

    /// A connection that is bound to nothing but its credentials.
    pub async fn raw(&self, role: &str) -> Result<lapin::Connection> {
        let url = self.options(role).url.parse().map_err(anyhow::Error::msg)?;
        let authority = std::fs::read_to_string(&self.certificates.authority)?;
        let tls = lapin::tcp::OwnedTLSConfig { cert_chain: Some(authority), ..Default::default() };
        let properties = lapin::ConnectionProperties::default();
        let runtime = lapin::runtime::default_runtime()?;
        Ok(lapin::Connection::connect_uri_with_config(url, properties, tls, runtime).await?)
    }

    /// What the management API answers to a role.
    pub async fn management(&self, role: &str, method: reqwest::Method, path: &str, body: &str) -> Result<u16> {
        let authority = reqwest::Certificate::from_pem(&std::fs::read(&self.certificates.authority)?)?;
        let client = reqwest::Client::builder().add_root_certificate(authority).build()?;
        let url = format!("{}{path}", self.server.management_of(role));
        Ok(client.request(method, url).body(body.to_owned()).send().await?.status().as_u16())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_can_do_its_work_over_tls() -> Result<()> {
    let production = Production::start()?;
    let (worker, manager) = (production.connect("worker").await?, production.connect("manager").await?);
    let missing = worker.ensure_queue(&model(), &LIMITS).await.expect_err("a manager makes queues");
    assert!(
        matches!(&missing, BrokerError::Denied(text) if text.contains("`sluice model start digits`")),
        "{missing:?}"
    );
    assert_eq!(manager.ensure_queue(&model(), &LIMITS).await?, Limited::AsAsked);
    let limited = worker.ensure_queue(&model(), &LIMITS).await?;
    assert!(matches!(&limited, Limited::AsConfigured(why) if why.contains("setting a queue's length")), "{limited:?}");
    let consumer = worker.consume(&model(), 8).await?;
    assert_eq!(consumer.trouble(), None, "that it may not make queues is none");
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
    assert_eq!(manager.dead_letters(&model(), 5).await?[0].id, "doomed");

    let scaler = production.connect("scaler").await?;
    assert_eq!(scaler.depth(&model()).await?.len(), 3);
    let lead = tokio::time::timeout(SOON, scaler.lead("scaler", "one")).await??;
    assert!(lead.holds());
    manages(&manager, &worker, &producer, consumer).await
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
