//! Messages of the control plane from one who has no business there: nothing ends by them, and who leads has the last word.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json as value};
use sluice_core::assignment::{Assignment, assignment_topic};
use sluice_core::broker::{Broker, Signals};
use sluice_core::clock::unix_ms;
use sluice_core::report::{DeviceReport, ModelReport, REPORTS, Report, SIGN_OF_LIFE, State};
use sluice_e2e::stack::{SOON, Stack};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use xtask::broker::Kind;

use crate::scaling::{Load, QUICK, deploy, json, total, until};

async fn assign(broker: &Arc<dyn Broker>, host: &str, term: u64, slots: Value) -> Result<()> {
    let assignment = value!({"host": host, "generation": {"term": term, "counter": 0}, "slots": slots});
    Ok(broker.signal(&assignment_topic(host), assignment.to_string().into()).await?)
}

pub async fn what_is_forged_locks_no_host_and_ends_nothing(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let mut scaler = stack.scaler("")?;
    scaler.wait_for_line("leading", SOON)?;
    let _host = stack.host(2)?;
    deploy(&stack, 1, &QUICK.replace("max_slots = 6", "min_slots = 1\nmax_slots = 2"))?;
    let slots = until(&stack, "one slot", |slots| total(slots) == 1)?;
    let host = slots[0].0.clone();
    let broker = stack.connect().await?;
    // A lease whose group has so many levels that whoever goes down them needs more stack than there is.
    let group = ["a"; 100_000].join("/");
    let order = value!({"acquire": {"id": "l", "devices": 1, "host": null, "kind": null, "group": group, "holder": "x", "until": null}});
    let answer = broker.ask("scaler-orders", order.to_string().into(), SOON).await?.context("the scaler answers")?;
    let answer = String::from_utf8_lossy(&answer);
    ensure!(answer.contains("refused") && answer.contains("is no group"), "{answer}");
    // A gate of a host that is none.
    let order = value!({"gate": {"host": "nowhere", "gate": "drained"}});
    broker.ask("scaler-orders", order.to_string().into(), SOON).await?.context("the scaler answers")?;
    scaler.wait_for_line("gate is not set", SOON)?;
    // Beyond any term: refused, and said so by whom it was sent to and by the scaler.
    assign(&broker, &host, u64::MAX, value!([])).await?;
    scaler.wait_for_line("refuses what somebody sends it", SOON)?;
    let shown = stack.cli(&["slots"])?;
    let told = String::from_utf8_lossy(&shown.stderr);
    ensure!(told.contains("is no number that a leader comes to"), "{told}");
    // Within what a leader might come to: the one that leads has the last word, with no one's help.
    for (term, forged) in [
        (1 << 20, value!([])),
        (1 << 30, value!([{"model": "m", "device": "cpu", "slots": 1_000_000}])),
        (1 << 31, value!([{"model": "m", "device": "cuda:77", "slots": 1}])),
    ] {
        assign(&broker, &host, term, forged).await?;
        let deadline = Instant::now() + SOON;
        let followed = loop {
            let hosts = json(&stack, &["hosts", "--json"])?;
            let followed = hosts[0]["assignment"]["generation"]["term"].as_u64().unwrap_or_default();
            if followed > term {
                break followed;
            }
            ensure!(Instant::now() < deadline, "{hosts}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        ensure!(followed == term + 1, "{followed} after {term}");
        until(&stack, "one slot again", |slots| total(slots) == 1)?;
    }
    scaler.wait_for_line("no leader of this broker sent", SOON)?;
    let mut load = Load::new(&stack).await?;
    load.send(3).await?;
    load.finish(&stack).await
}

/// What the host that is not there is called.
const MADE_UP: &str = "made-up";

/// A host that is not there. Whoever has a worker's role reports it, with more room than all machines have. It says that it serves whatever it is
/// assigned, and takes no request.
struct MadeUp {
    assigned: watch::Receiver<Assignment>,
    reporting: JoinHandle<Result<()>>,
}

impl MadeUp {
    async fn start(stack: &Stack) -> Result<Self> {
        let broker = stack.connect_as("worker").await?;
        let assignments = broker.listen(&assignment_topic(MADE_UP)).await?;
        let (assign, assigned) = watch::channel(Assignment::default());
        let reporting = tokio::spawn(make_up(broker, assignments, assign));
        Ok(Self { assigned, reporting })
    }

    /// Waits until it is assigned so many slots of `m`.
    async fn until(&mut self, slots: usize) -> Result<()> {
        let assigned = |of: &Assignment| of.slots.iter().map(|of| of.slots).sum::<usize>() == slots;
        if let Ok(followed) = tokio::time::timeout(SOON, self.assigned.wait_for(assigned)).await {
            return followed.map(drop).context("it does not report any more");
        }
        bail!("{slots} slots were to be assigned; it follows {:?}", *self.assigned.borrow())
    }
}

impl Drop for MadeUp {
    fn drop(&mut self) {
        self.reporting.abort();
    }
}

async fn make_up(
    broker: Arc<dyn Broker>,
    mut assignments: Box<dyn Signals>,
    assign: watch::Sender<Assignment>,
) -> Result<()> {
    let started = unix_ms();
    loop {
        let assignment = assign.borrow().clone();
        let models = assignment.slots.iter().map(|of| ModelReport {
            serving: Some("1".into()),
            slots: of.slots,
            device: of.device.clone(),
            ..ModelReport::new(of.model.clone(), Some(1), State::Ready)
        });
        let report = Report {
            host: MADE_UP.into(),
            at: unix_ms(),
            started,
            instance: MADE_UP.into(),
            taken_by: None,
            models: models.collect(),
            devices: vec![DeviceReport { name: "cpu".into(), capacity: 1_000_000_000, memory_mib: None }],
            labels: Default::default(),
            assignment: Some(assignment),
            refuses: None,
            registry: None,
            draining: false,
        };
        broker.signal(REPORTS, serde_json::to_vec(&report)?.into()).await?;
        if let Ok(signal) = tokio::time::timeout(SIGN_OF_LIFE, assignments.next()).await {
            assign.send_replace(serde_json::from_slice(&signal?.payload)?);
        }
    }
}

pub async fn a_made_up_host_counts_for_no_more_than_a_machine_may_have(kind: Kind) -> Result<()> {
    let mut stack = Stack::production(kind)?;
    let mut scaler = stack.scaler("max_capacity = { cpu = 3 }")?;
    deploy(&stack, 1, &QUICK.replace("max_slots = 6", "min_slots = 5\nmax_slots = 5"))?;
    scaler.wait_for_line("leading", SOON)?;
    let mut made_up = MadeUp::start(&stack).await?;
    scaler.wait_for_line("3 are counted", SOON)?;
    made_up.until(3).await.with_context(|| scaler.log())?;
    let _host = stack.host(2)?;
    until(&stack, "slots on the host that is there", |slots| slots.contains(&("worker-2".into(), 2)))?;
    let answer = stack.cli_as("producer", &["infer", "m", "--input", "x=[1,2,3,4]", "--timeout", "30s"])?;
    ensure!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    Ok(())
}

pub async fn a_made_up_host_that_serves_nobody_loses_its_model_to_one_that_is_there(kind: Kind) -> Result<()> {
    let mut stack = Stack::production(kind)?;
    let mut scaler = stack.scaler("")?;
    deploy(&stack, 1, &QUICK.replace("max_slots = 6", "min_slots = 1\nmax_slots = 1"))?;
    scaler.wait_for_line("leading", SOON)?;
    let mut made_up = MadeUp::start(&stack).await?;
    made_up.until(1).await.with_context(|| scaler.log())?;
    // Where the model is it stays, until requests wait there in vain.
    let host = stack.host(1)?;
    let answer = stack.cli_as("producer", &["infer", "m", "--input", "x=[1,2,3,4]", "--timeout", "3m"])?;
    ensure!(answer.status.success(), "{}\n{}", String::from_utf8_lossy(&answer.stderr), scaler.log());
    ensure!(host.metric("sluice_rows_total", &[])? >= 1.0, "somebody else answered");
    made_up.until(0).await.with_context(|| scaler.log())
}
