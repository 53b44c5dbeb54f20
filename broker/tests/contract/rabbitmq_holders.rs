//! RabbitMQ's production files against whoever holds a role: what a plain client with its credentials can do, and what it cannot.

use std::time::Duration;

use anyhow::{Context, Result};
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, ExchangeBindOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use lapin::{BasicProperties, Channel, ExchangeKind};
use reqwest::Method;
use sluice_core::broker::{BrokerError, Signals};
use sluice_core::settings::{Apply, Settings};
use sluice_core::{JobId, ReplyTo};

use crate::rabbitmq_roles::{LIMITS, Production};
use crate::rig::{A_WHILE, SOON, model, request};
use crate::roles::a_reply;

const LANE: &str = "infer.digits.normal";
const EXCHANGES: [&str; 15] = [
    "", // leads to every queue by its name
    "sluice.infer",
    "sluice.retry",
    "sluice.dead",
    "sluice.results",
    "sluice.inbox",
    "sluice.answers",
    "sluice.leader",
    "sluice.settings",
    "sluice.describe",
    "sluice.reports",
    "sluice.assign",
    "sluice.scaler",
    "sluice.orders",
    "sluice.control",
];

/// One who has a role's credentials and whatever client he likes.
struct Holder {
    role: &'static str,
    connection: lapin::Connection,
}

impl Holder {
    async fn new(production: &Production, role: &'static str) -> Result<Self> {
        Ok(Self { role, connection: production.raw(role).await? })
    }

    async fn channel(&self) -> Result<Channel> {
        Ok(self.connection.create_channel().await?)
    }

    async fn publish(&self, exchange: &str, key: &str, headers: FieldTable) -> Result<lapin::Result<()>> {
        let channel = self.channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let properties = BasicProperties::default().with_headers(headers);
        let options = BasicPublishOptions::default();
        let published = channel.basic_publish(exchange.into(), key.into(), options, b"forged", properties).await?;
        Ok(published.await.map(drop))
    }

    async fn own_queue(&self, arguments: FieldTable) -> Result<(Channel, lapin::Result<String>)> {
        let channel = self.channel().await?;
        let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
        let declared = channel.queue_declare("".into(), options, arguments).await;
        Ok((channel, declared.map(|queue| queue.name().to_string())))
    }

    /// Listens at an exchange with a queue of his own.
    async fn eavesdrop(&self, exchange: &str, key: &str) -> Result<lapin::Result<()>> {
        let (channel, queue) = self.own_queue(FieldTable::default()).await?;
        // Not even a queue of one's own is a refusal too.
        let Ok(queue) = queue else { return Ok(queue.map(drop)) };
        let options = QueueBindOptions::default();
        Ok(channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default()).await)
    }

    async fn lead_in(&self, queue: &str, exchange: &str, key: &str) -> Result<lapin::Result<()>> {
        let options = QueueBindOptions::default();
        Ok(self
            .channel()
            .await?
            .queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default())
            .await)
    }

    async fn declare_exchange(&self, name: &str, arguments: FieldTable) -> Result<lapin::Result<()>> {
        let options = ExchangeDeclareOptions::default();
        Ok(self.channel().await?.exchange_declare(name.into(), ExchangeKind::Fanout, options, arguments).await)
    }

    async fn consume(&self, queue: &str) -> Result<lapin::Result<()>> {
        let channel = self.channel().await?;
        channel.basic_qos(1, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        Ok(channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await.map(drop))
    }

    async fn delete(&self, queue: &str) -> Result<lapin::Result<()>> {
        let options = QueueDeleteOptions::default();
        Ok(self.channel().await?.queue_delete(queue.into(), options).await.map(drop))
    }

    /// Asserts that the broker refuses, for want of a right.
    fn refused(&self, what: &str, outcome: lapin::Result<()>) {
        let refusal = outcome.expect_err(&format!("{}: {what} is not refused", self.role)).to_string();
        // The latter of an exclusive queue of another connection.
        let denied = ["ACCESS_REFUSED", "RESOURCE_LOCKED"].iter().any(|code| refusal.contains(code));
        assert!(denied, "{}: {what}: {refusal}", self.role);
    }

    /// Asserts that he writes to these exchanges and to no others, and listens to those and to no others.
    async fn reaches(&self, writes: &[&str], listens: &[&str]) -> Result<()> {
        for exchange in EXCHANGES {
            let may = |those: &[&str]| those.iter().any(|name| exchange.strip_prefix("sluice.") == Some(name));
            let published = self.publish(exchange, "nowhere", FieldTable::default()).await?;
            match may(writes) {
                true => published.with_context(|| format!("{}: publishing to `{exchange}`", self.role))?,
                false => self.refused(&format!("publishing to `{exchange}`"), published),
            }
            let heard = self.eavesdrop(exchange, &format!("inbox.{}.x", self.role)).await?;
            match may(listens) {
                true => heard.with_context(|| format!("{}: listening to `{exchange}`", self.role))?,
                false => self.refused(&format!("listening to `{exchange}`"), heard),
            }
        }
        Ok(())
    }
}

fn table<const N: usize>(pairs: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in pairs {
        table.insert(name.into(), value);
    }
    table
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

async fn hears_nothing(signals: &mut Box<dyn Signals>, what: &str) {
    let heard = tokio::time::timeout(A_WHILE, signals.next()).await;
    assert!(heard.is_err(), "{what} was heard: {:?}", heard.map(|signal| signal.map(|signal| signal.payload)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_gives_no_orders_and_reaches_nothing_of_anothers() -> Result<()> {
    let production = Production::start()?;
    let manager = production.connect("manager").await?;
    let _ = manager.ensure_queue(&model(), &LIMITS).await?;
    let (worker, scaler) = (production.connect("worker").await?, production.connect("scaler").await?);
    let (mut assigned, mut ordered) = (worker.listen("assign.a").await?, scaler.listen("scaler-orders").await?);
    // Another producer has a job's answers, and an address.
    let victim = production.connect("gateway").await?;
    let job: JobId = "gateway.their-job".parse()?;
    let to = ReplyTo::Results { job: job.clone(), inbox: None };
    worker.reply(&to, &a_reply("r1")?).await?;
    let inbox = victim.inbox().await?.reply_to().to_string();
    let inbox = inbox.strip_prefix("inbox:").context("an inbox")?;

    let holder = Holder::new(&production, "producer").await?;
    holder.reaches(&["infer", "describe"], &["inbox", "answers", "settings"]).await?;
    // What a topic permission would not see: further addresses, and exchanges and queues that lead on.
    for header in ["CC", "BCC"] {
        let more = ["assign.a", "scaler-orders", "infer.digits.retried"].map(text).to_vec();
        let more = table([(header, AMQPValue::FieldArray(FieldArray::from(more)))]);
        holder.publish("sluice.describe", "describe.x", more.clone()).await??;
        holder.publish("sluice.infer", "nowhere", more).await??;
    }
    for name in
        ["evil", "results.evil", "results.gateway.evil", "infer.evil", "amq.gen-evil", "amq.evil", "sluice.evil"]
    {
        let declared = holder.declare_exchange(name, FieldTable::default()).await?;
        holder.refused(&format!("making exchange `{name}`"), declared);
    }
    // What is called after its own results it may make, but nothing comes into it, and it leads nowhere.
    let own = "results.producer.evil";
    holder.declare_exchange(own, FieldTable::default()).await??;
    holder.refused("publishing to an exchange of its own", holder.publish(own, "x", FieldTable::default()).await?);
    let alternate = table([("alternate-exchange", text("sluice.control"))]);
    let declared = holder.declare_exchange("results.producer.alternate", alternate).await?;
    holder.refused("making an exchange that leads to another", declared);
    for exchange in EXCHANGES.into_iter().filter(|name| !["sluice.infer", "sluice.describe"].contains(name)) {
        let leading = holder.own_queue(table([("x-dead-letter-exchange", text(exchange))])).await?.1;
        holder.refused(&format!("a queue whose dead letters go to `{exchange}`"), leading.map(drop));
        let options = ExchangeBindOptions::default();
        let channel = holder.channel().await?;
        let bound = channel
            .exchange_bind(exchange.into(), "sluice.describe".into(), "#".into(), options, FieldTable::default())
            .await;
        holder.refused(&format!("leading questions to `{exchange}`"), bound);
    }
    hears_nothing(&mut assigned, "an assignment").await;
    hears_nothing(&mut ordered, "an order").await;

    // A question is answered at an inbox and nowhere else, with the rights of whoever answers.
    let mut questions = worker.listen("describe.digits").await?;
    for address in ["results.gateway.their-job", "amq.rabbitmq.reply-to.x", LANE, "sluice.settings", "inbox.#"] {
        let asked = BasicProperties::default().with_reply_to(address.into());
        let options = BasicPublishOptions::default();
        let (to, key) = ("sluice.describe".into(), "describe.digits".into());
        _ = holder.channel().await?.basic_publish(to, key, options, b"", asked).await?;
        let question = tokio::time::timeout(SOON, questions.next()).await??;
        let sent = question.answer.context("a way back")?.send("yes".into()).await;
        assert!(matches!(sent, Err(BrokerError::Unusable(_))), "{address}: {sent:?}");
    }

    // Others' answers: where they are sent to, and where they are kept.
    for key in [inbox, "#", "inbox.#", "inbox.*.*", "*.gateway.#", "inbox.producer"] {
        for exchange in ["sluice.inbox", "sluice.answers"] {
            holder.refused(&format!("listening at `{key}` of `{exchange}`"), holder.eavesdrop(exchange, key).await?);
        }
    }
    let other = Holder::new(&production, "gateway").await?;
    let (_open, theirs) = other.own_queue(FieldTable::default()).await?;
    let theirs = theirs?;
    let results = "results.gateway.their-job";
    for queue in [theirs.as_str(), LANE, "infer.digits.retried", "dead.digits", results] {
        holder.refused(&format!("reading `{queue}`"), holder.consume(queue).await?);
    }
    for queue in [theirs.as_str(), LANE, "infer.digits.retried", "dead.digits", results, "sluice.settings"] {
        holder.refused(&format!("deleting `{queue}`"), holder.delete(queue).await?);
        let led = holder.lead_in(queue, "sluice.inbox", "inbox.producer.x").await?;
        holder.refused(&format!("leading messages into `{queue}`"), led);
    }
    // Who reads settings as if they were for it alone keeps nobody else from them.
    let channel = holder.channel().await?;
    channel.basic_qos(1, BasicQosOptions::default()).await?;
    let alone = BasicConsumeOptions { exclusive: true, ..Default::default() };
    let _consumer = channel.basic_consume("sluice.settings".into(), "".into(), alone, FieldTable::default()).await;
    worker.settings().await?;
    assert_eq!(victim.stored_results(&job, &["r1".parse()?]).await?.len(), 1);

    // Its own results it removes, and a queue that stands where they should go is no trouble of the worker's.
    worker.reply(&ReplyTo::Results { job: "producer.mine".parse()?, inbox: None }, &a_reply("r1")?).await?;
    holder.refused(
        "leading messages into its own results",
        holder.lead_in("results.producer.mine", "sluice.inbox", own).await?,
    );
    holder.delete("results.producer.mine").await??;
    let channel = holder.channel().await?;
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    channel.queue_declare("results.producer.mine".into(), exclusive, FieldTable::default()).await?;
    let nowhere = worker.reply(&ReplyTo::Results { job: "producer.mine".parse()?, inbox: None }, &a_reply("r1")?).await;
    assert!(matches!(nowhere, Err(BrokerError::Unusable(_))), "{nowhere:?}");

    // The same through the seam; and the management API is not for it at all.
    let producer = production.connect("producer").await?;
    let denied = |error: BrokerError| assert!(matches!(error, BrokerError::Denied(_)), "{error:?}");
    denied(producer.consume(&model(), 8).await.err().expect("it may not consume"));
    denied(producer.dead_letters(&model(), 5).await.expect_err("dead letters are not for it"));
    denied(producer.reply(&to, &a_reply("r2")?).await.expect_err("it may not answer"));
    denied(producer.signal("assign.a", "forged".into()).await.expect_err("it may not assign"));
    for role in ["producer", "gateway"] {
        assert_eq!(production.management(role, Method::GET, "/api/bindings", "").await?, 401, "{role}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_service_reaches_what_its_work_needs_and_no_more() -> Result<()> {
    let production = Production::start()?;
    let manager = production.connect("manager").await?;
    let _ = manager.ensure_queue(&model(), &LIMITS).await?;
    let producer = production.connect("producer").await?;
    producer.submit(request("r1")).await?;
    let worker = production.connect("worker").await?;
    let job: JobId = "producer.their-job".parse()?;
    worker.reply(&ReplyTo::Results { job: job.clone(), inbox: None }, &a_reply("r1")?).await?;
    let scaler = production.connect("scaler").await?;
    let lead = tokio::time::timeout(SOON, scaler.lead("scaler", "one")).await??;

    let mut holders = Vec::new();
    for role in ["worker", "scaler", "manager", "monitoring"] {
        holders.push(Holder::new(&production, role).await?);
    }
    let [a_worker, a_scaler, a_manager, a_monitoring] = &holders[..] else { unreachable!("four roles") };
    let writes = ["retry", "dead", "results", "inbox", "answers", "reports"];
    a_worker.reaches(&writes, &["retry", "results", "describe", "assign", "control", "settings"]).await?;
    let listens = ["reports", "scaler", "orders", "describe", "control", "leader"];
    a_scaler.reaches(&["assign", "control", "answers", "leader"], &listens).await?;
    let writes = ["retry", "dead", "results", "inbox", "describe", "scaler", "orders", "control", "settings"];
    let listens = ["infer", "retry", "dead", "results", "answers", "reports", "settings"];
    a_manager.reaches(&writes, &listens).await?;
    a_monitoring.reaches(&[], &[]).await?;

    let (results, token) = ("results.producer.their-job", "sluice.leader.scaler");
    // What each neither reads, nor deletes, nor leads messages into.
    let beyond: [(&Holder, &[&str]); 4] = [
        (a_worker, &["dead.digits", "sluice.settings", token]),
        (a_scaler, &[LANE, "infer.digits.retried", "dead.digits", results, "sluice.settings"]),
        (a_manager, &[token]),
        (a_monitoring, &[LANE, "infer.digits.retried", "dead.digits", results, "sluice.settings", token]),
    ];
    for (holder, queues) in beyond {
        for queue in queues {
            // The settings are for everybody to read.
            if *queue != "sluice.settings" {
                holder.refused(&format!("reading `{queue}`"), holder.consume(queue).await?);
            }
            holder.refused(&format!("deleting `{queue}`"), holder.delete(queue).await?);
            let led = holder.lead_in(queue, "sluice.settings", "x").await?;
            holder.refused(&format!("leading messages into `{queue}`"), led);
        }
    }
    a_worker.refused("deleting a model's queue", a_worker.delete(LANE).await?);
    a_worker.refused("leading requests into a lane", a_worker.lead_in(LANE, "sluice.retry", LANE).await?);
    for holder in [a_worker, a_manager] {
        holder.refused("reading results", holder.consume(results).await?);
    }

    let denied = |error: BrokerError| assert!(matches!(error, BrokerError::Denied(_)), "{error:?}");
    denied(worker.submit(request("r2")).await.expect_err("it may not submit"));
    denied(worker.stored_results(&job, &["r1".parse()?]).await.expect_err("results are not for it"));
    for role in ["scaler", "monitoring"] {
        let broker = production.connect(role).await?;
        denied(broker.consume(&model(), 8).await.err().expect("it may not consume"));
        denied(broker.submit(request("r3")).await.expect_err("it may not submit"));
        denied(broker.remove_queue(&model()).await.expect_err("it may not remove"));
    }
    // The deployment's settings are for the manager to change; who needs them may read them.
    let settings = Settings { results_kept: Duration::from_secs(7), ..manager.settings().await? };
    manager.store_settings(&settings).await?;
    manager.apply_settings(&settings, Apply::Change).await?;
    for role in ["producer", "worker", "gateway", "monitoring"] {
        let broker = production.connect(role).await?;
        assert_eq!(broker.settings().await?, settings, "{role}");
        denied(broker.store_settings(&settings).await.expect_err("it may not change settings"));
    }

    // The management API: who looks sees names and counts. Only who manages sets policies, and nobody sees or makes users.
    let get = r#"{"count":1,"ackmode":"ack_requeue_true","encoding":"auto"}"#;
    let policy = r#"{"pattern":".*","definition":{"dead-letter-exchange":"sluice.orders"},"apply-to":"queues"}"#;
    for role in ["worker", "scaler", "manager", "monitoring"] {
        let asked = async |method, path: &str, body: &str| production.management(role, method, path, body).await;
        for path in ["/api/users", "/api/definitions", "/api/permissions"] {
            assert_eq!(asked(Method::GET, path, "").await?, 401, "{role} {path}");
        }
        assert_eq!(asked(Method::PUT, "/api/users/evil", r#"{"password":"x","tags":"administrator"}"#).await?, 401);
        if role != "manager" {
            assert_eq!(asked(Method::PUT, "/api/policies/sluice/evil", policy).await?, 401, "{role}");
            assert_eq!(asked(Method::POST, "/api/queues/sluice/dead.digits/get", get).await?, 401, "{role}");
        }
    }
    let counted = producer.depth(&model()).await?.iter().filter_map(|lane| lane.ready.clone().known()).sum::<u64>();
    assert_eq!(counted, 1, "nothing was submitted or taken");
    assert!(lead.holds());
    Ok(())
}
