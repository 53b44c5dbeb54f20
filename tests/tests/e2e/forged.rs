//! Messages of the control plane from one who has no business there: nothing ends by them, and who leads has the last word.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json as value};
use sluice_core::broker::Broker;
use sluice_e2e::stack::{SOON, Stack};
use xtask::broker::Kind;

use crate::scaling::{Load, QUICK, deploy, json, total, until};

async fn assign(broker: &Arc<dyn Broker>, host: &str, term: u64, slots: Value) -> Result<()> {
    let assignment = value!({"host": host, "generation": {"term": term, "counter": 0}, "slots": slots});
    let topic = sluice_core::assignment::assignment_topic(host);
    Ok(broker.signal(&topic, assignment.to_string().into()).await?)
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
