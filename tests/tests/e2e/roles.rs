//! A user for each producer, as `sluice broker-config` makes them: neither reads, forges nor swallows what the other does.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use sluice_broker::{Options, connect};
use sluice_core::broker::{Broker, BrokerError, QueueLimits, Receipt, Reply, Settlement, Submission};
use sluice_core::codec::ContentType;
use sluice_core::{Envelope, JobId, ModelName, ReplyTo};
use sluice_e2e::binaries;
use sluice_e2e::stack::SOON;
use xtask::certificates::Certificates;
use xtask::nats::{NatsServer, production_environment};

#[tokio::test(flavor = "multi_thread")]
async fn two_producers_on_nats_are_strangers_to_each_other() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = Certificates::make(folder.path())?.authority;
    let made = Command::new(binaries::path("sluice")?)
        .args(["broker-config", "nats", "--producers", "web,batch-2", "--workers", "gpu"])
        .output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::write(folder.path().join("roles.conf"), made.stdout)?;
    let config = folder.path().join("production.conf");
    std::fs::copy(xtask::root().join("broker-config/nats/production.conf"), &config)?;
    let mut environment = production_environment(folder.path())?;
    for (variable, user) in [("WEB", "web"), ("BATCH_2", "batch-2"), ("GPU", "gpu")] {
        environment.push((format!("SLUICE_{variable}_PASSWORD"), format!("'{user}-pass'")));
    }
    let environment: Vec<_> = environment.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let server = NatsServer::start(&config.display().to_string(), folder.path(), &environment)?;
    let user = async |name: &str| -> Result<Arc<dyn Broker>> {
        let options = Options { tls_ca: Some(authority.clone()), ..Options::new(server.url_of(name), name) };
        Ok(connect(&options).await?)
    };

    let model: ModelName = "m".parse()?;
    let manager = user("manager").await?;
    _ = manager.ensure_queue(&model, &QueueLimits { length: 100, message_bytes: 4096 }).await?;
    let (web, batch, worker) = (user("web").await?, user("batch-2").await?, user("gpu").await?);
    let mut consumer = worker.consume(&model, 8).await?;
    let job = JobId::of(web.user(), "job")?;
    let mut results = web.results(&job).await?;
    let request = |id: &str, to: ReplyTo| -> Result<Submission> {
        let envelope = Envelope { reply_to: Some(to), ..Envelope::new(id.parse()?) };
        Ok(Submission::new(model.clone(), envelope, "body".into()))
    };

    // The same request id twice: each is another's own, and both are queued.
    let theirs = batch.inbox().await?;
    assert_eq!(batch.submit(request("r1", theirs.reply_to())?).await?, Receipt::Queued);
    assert_eq!(web.submit(request("r1", results.reply_to())?).await?, Receipt::Queued);
    for _ in 0..2 {
        let delivery = tokio::time::timeout(SOON, consumer.next()).await??;
        let envelope = delivery.envelope.expect("headers that can be served");
        let reply = Reply {
            id: envelope.id,
            error: None,
            content_type: ContentType::Json,
            body: "{}".into(),
            traceparent: None,
        };
        worker.reply(&envelope.reply_to.expect("a way back"), &reply).await?;
        delivery.hold.settle(Settlement::Done).await?;
    }
    assert_eq!(tokio::time::timeout(SOON, results.next()).await??.id.as_str(), "r1");
    assert_eq!(web.stored_results(&job, &["r1".parse()?]).await?.len(), 1);

    // Knowing the job and the id helps nobody else.
    let stolen = batch.stored_results(&job, &["r1".parse()?]).await;
    assert!(matches!(stolen, Err(BrokerError::Denied(_))), "{stolen:?}");
    assert!(matches!(batch.results(&job).await.map(drop), Err(BrokerError::Denied(_))));
    let forged = batch.reply(&ReplyTo::Results { job: job.clone(), inbox: None }, &a_forged_one()?).await;
    assert!(forged.is_err(), "{forged:?}");
    let heard = tokio::time::timeout(Duration::from_millis(300), results.next()).await;
    assert!(heard.is_err(), "something forged was heard: {heard:?}");
    assert!(web.stored_results(&job, &["r2".parse()?]).await?.is_empty());
    Ok(())
}

fn a_forged_one() -> Result<Reply> {
    Ok(Reply { id: "r2".parse()?, error: None, content_type: ContentType::Json, body: "{}".into(), traceparent: None })
}
