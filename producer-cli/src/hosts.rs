//! `sluice hosts` and `sluice slots`: what hosts say of themselves, and what an operator lets them have.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::json;
use sluice_core::assignment::Gate;
use sluice_core::broker::Broker;
use sluice_core::print::count;
use sluice_core::report::Report;
use sluice_core::scaler::{Answer, Question, Silent};
use tokio::time::Instant;

use crate::cli::{Global, Hosts, HostsCommand, Slots};
use crate::common::{self, plain};
use crate::reports;
use crate::scale::ask;
use crate::table::Table;

pub async fn run(global: &Global, options: Hosts) -> Result<ExitCode> {
    let broker = common::connect(global).await?;
    let (host, gate, wait) = match options.command {
        None => return common::show_again(options.watch, async || show(&broker, options.json).await).await,
        Some(HostsCommand::Cordon { host }) => (host, Gate::Cordoned, None),
        Some(HostsCommand::Drain { host, wait, wait_time }) => (host, Gate::Drained, wait.then_some(wait_time)),
        Some(HostsCommand::Open { host }) => (host, Gate::Open, None),
    };
    ask(&broker, &Question::Gate { host: host.clone(), gate }).await?;
    let left = match wait {
        Some(limit) => until_empty(&broker, &host, limit).await?,
        None => None,
    };
    if options.json {
        println!("{}", json!({ "host": host, "gate": gate, "slots": left }));
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "host `{}` is {}",
        plain(&host),
        match (gate, left) {
            (Gate::Open, _) => "used again",
            (Gate::Cordoned, _) => "cordoned: what it has stays, and nothing new comes",
            (Gate::Drained, Some(0)) => "drained: nothing runs there",
            (Gate::Drained, _) => "draining: `sluice hosts` shows when nothing runs there",
        }
    );
    Ok(ExitCode::SUCCESS)
}

/// Waits until nothing is left on a host.
async fn until_empty(broker: &Arc<dyn Broker>, host: &str, limit: Duration) -> Result<Option<usize>> {
    let deadline = Instant::now() + limit;
    let mut hosts = reports::Hosts::ask(broker).await?;
    loop {
        let left = hosts
            .all()
            .find(|report| report.host == host && report.taken_by.is_none())
            .map(|report| (report.models.len(), leases(report)));
        if left.as_ref().is_some_and(|(models, leases)| *models == 0 && leases.is_empty()) {
            return Ok(Some(0));
        }
        if tokio::time::timeout_at(deadline, hosts.next()).await.is_err() {
            let left = match left {
                None => "it does not report".into(),
                Some((0, leases)) => leases_in_words(&leases),
                Some((models, leases)) if leases.is_empty() => models_in_words(models),
                Some((models, leases)) => format!("{}; {}", models_in_words(models), leases_in_words(&leases)),
            };
            bail!("host `{host}` is not empty after {}: {left}; it goes on draining", common::short(limit));
        }
    }
}

/// The names of the leases under which its devices are lent.
fn leases(report: &Report) -> BTreeSet<String> {
    let leases = report.assignment.iter().flat_map(|assignment| &assignment.leases);
    leases.map(|lease| plain(&lease.id)).collect()
}

fn models_in_words(models: usize) -> String {
    count(models, "model still runs there", "models still run there")
}

fn leases_in_words(leases: &BTreeSet<String>) -> String {
    let names: Vec<String> = leases.iter().map(|lease| format!("`{lease}`")).collect();
    format!("other work has devices under lease {}, which ends soon", names.join(", "))
}

async fn show(broker: &Arc<dyn Broker>, json: bool) -> Result<()> {
    let (hosts, silent) = tokio::join!(reports::Hosts::gather(broker), silent(broker));
    let hosts = hosts?;
    // One may have come back while the scaler was asked.
    let silent = silent.iter().filter(|silent| hosts.all().all(|report| report.host != silent.report.host));
    if json {
        let heard = hosts.all().map(serde_json::to_value);
        let rows = heard.chain(silent.map(serde_json::to_value)).collect::<Result<Vec<_>, _>>()?;
        println!("{}", serde_json::to_string(&rows)?);
        return Ok(());
    }
    let mut table = Table::new(["HOST", "STATE", "DEVICES", "MEMORY MIB", "MODELS", "SLOTS", "BUSY", "LABELS"]);
    for report in hosts.all() {
        let slots: usize = report.models.iter().map(|model| model.slots).sum();
        let busy: f64 = report.models.iter().map(|model| model.measured.busy * model.slots as f64).sum();
        let busy = if slots == 0 { "-".into() } else { format!("{:.0} %", 100.0 * busy / slots as f64) };
        let models = report.models.iter().filter(|model| model.serving.is_some()).count();
        let twins = hosts.all().filter(|other| other.host == report.host).count() > 1;
        let state = match twins && report.taken_by.is_none() {
            true => format!("{}; another worker has this name too", state(report)),
            false => state(report),
        };
        table.add_row(row(report, state, [models.to_string(), slots.to_string(), busy]));
    }
    for Silent { report, silent_seconds } in silent {
        let state = format!("silent for {}", common::short(Duration::from_secs(*silent_seconds)));
        table.add_row(row(report, state, ["-".into(), "-".into(), "-".into()]));
    }
    match table.is_empty() {
        true => println!("no host reports: start `sluice-worker` with this broker and registry"),
        false => println!("{table}"),
    }
    Ok(())
}

/// Hosts that the scaler has heard lately and that say nothing now; none if no scaler answers.
async fn silent(broker: &Arc<dyn Broker>) -> Vec<Silent> {
    match tokio::time::timeout(reports::PATIENCE, ask(broker, &Question::Silent)).await {
        Ok(Ok(Answer::Silent(silent))) => silent,
        _ => Vec::new(),
    }
}

fn row(report: &Report, state: String, [models, slots, busy]: [String; 3]) -> [String; 8] {
    let devices = report.devices.iter().map(|device| plain(&format!("{} ({})", device.name, device.capacity)));
    let memory = report.devices.iter().map(|device| device.memory_mib.map_or("-".into(), |mib| mib.to_string()));
    let labels = report.labels.iter().map(|(label, value)| plain(&format!("{label}={value}")));
    [
        plain(&report.host),
        state,
        devices.collect::<Vec<_>>().join(", "),
        memory.collect::<Vec<_>>().join(", "),
        models,
        slots,
        busy,
        labels.collect::<Vec<_>>().join(", "),
    ]
}

fn state(report: &Report) -> String {
    if report.draining {
        return "stopping".into();
    }
    if report.taken_by.is_some() {
        return "takes no work: another worker has this name".into();
    }
    let state = open_or_not(report);
    match report.refuses {
        Some(_) => format!("{state}; it refuses what somebody sends it as assignments"),
        None => state,
    }
}

fn open_or_not(report: &Report) -> String {
    match &report.assignment {
        None => "as configured".into(),
        Some(assignment) if !assignment.leases.is_empty() => {
            let devices: Vec<&str> = assignment.leases.iter().map(|lease| lease.device.as_str()).collect();
            format!("{}, lent: {}", assignment.gate.as_str(), devices.join(", "))
        }
        Some(assignment) if assignment.gate == Gate::Drained && !report.models.is_empty() => "draining".into(),
        Some(assignment) => assignment.gate.as_str().into(),
    }
}

pub async fn slots(global: &Global, options: Slots) -> Result<ExitCode> {
    let broker = common::connect(global).await?;
    common::show_again(options.watch, async || show_slots(&broker, &options).await).await
}

async fn show_slots(broker: &Arc<dyn Broker>, options: &Slots) -> Result<()> {
    let hosts = reports::Hosts::gather(broker).await?;
    let mut rows: Vec<_> = hosts
        .all()
        .flat_map(|report| report.models.iter().map(move |model| (report.host.as_str(), model)))
        .filter(|(_, model)| options.model.as_ref().is_none_or(|only| *only == model.model))
        .collect();
    rows.sort_by_key(|(host, model)| (&model.model, *host, &model.device));
    if options.json {
        let rows: Vec<_> = rows.iter().map(|(host, model)| json!({ "host": host, "slots_of": model })).collect();
        println!("{}", serde_json::to_string(&rows)?);
        return Ok(());
    }
    for (host, reason) in hosts.all().filter_map(|report| Some((&report.host, report.refuses.as_ref()?))) {
        eprintln!(
            "note: host `{}` refuses what somebody sends it as an assignment: {}; if it does not do as the scaler says, start its worker anew",
            plain(host),
            plain(reason)
        );
    }
    if rows.is_empty() {
        match &options.model {
            Some(model) => println!("no slots of model `{model}` run: `sluice scale explain {model}` tells why"),
            None => println!("no slots run"),
        }
        return Ok(());
    }
    let mut table =
        Table::new(["MODEL", "HOST", "DEVICE", "STATE", "SLOTS", "BUSY", "ROWS DONE", "PER ROW", "MIB", "WHY"]);
    for (host, model) in rows {
        let row = Duration::try_from_secs_f64(model.measured.row_seconds).unwrap_or_default();
        table.add_row([
            model.model.to_string(),
            plain(host),
            plain(&model.device),
            model.state.as_str().into(),
            model.slots.to_string(),
            format!("{:.0} %", 100.0 * model.measured.busy),
            model.measured.rows.to_string(),
            if row.is_zero() { "-".into() } else { format!("{:.2} ms", 1000.0 * row.as_secs_f64()) },
            if model.measured.memory_mib == 0 { "-".into() } else { model.measured.memory_mib.to_string() },
            plain(model.reason.as_deref().unwrap_or_default()),
        ]);
    }
    println!("{table}");
    Ok(())
}
