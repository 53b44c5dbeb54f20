//! Who has the room, who loads, and who is meant: idle slots that make room, packages that no host can load, two workers under one name.

use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_e2e::fixture;
use sluice_e2e::stack::{SOON, Stack};
use xtask::broker::Kind;

use crate::scaling::{json, until};

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn infer(stack: &Stack, model: &str, timeout: &str) -> Result<Output> {
    stack.cli(&["infer", model, "--input", "x=[1,2,3,4]", "--timeout", timeout])
}

pub async fn an_idle_slot_makes_room_for_a_model_that_has_none(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let mut scaler = stack.scaler("")?;
    scaler.wait_for_line("leading", SOON)?;
    let _host = stack.host(2)?;
    for model in ["first", "second", "m"] {
        let delays = "[scaling]\nscale_down_delay = \"10m\"\nidle_to_zero = \"10m\"\n";
        let package = fixture::doubler(stack.folder(), model, 1, delays)?;
        let output = stack.cli(&["model", "deploy", &package.display().to_string(), "--start"])?;
        ensure!(output.status.success(), "{}", text(&output));
        // A model that is starved has its turn after 30 s in any case.
        let answer = infer(&stack, model, "25s")?;
        let explained = text(&stack.cli(&["scale", "explain", model])?);
        ensure!(answer.status.success(), "{model}: {}\n{explained}\n{}", text(&answer), scaler.log());
    }
    let made = |model: &str| -> Result<bool> {
        let explained = json(&stack, &["scale", "explain", model, "--json"])?;
        Ok(explained["changes"][0]["reason"].as_str().is_some_and(|reason| reason.contains("made room for `m`")))
    };
    ensure!(made("first")? != made("second")?, "one of them made room, and only one\n{}", scaler.log());
    Ok(())
}

pub async fn a_package_that_no_host_can_load_is_known_before_anybody_waits(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let mut scaler = stack.scaler("")?;
    scaler.wait_for_line("leading", SOON)?;
    let _host = stack.host(2)?;
    let deploy = |model: &str, spoil: bool| -> Result<Output> {
        let package = fixture::doubler(stack.folder(), model, 1, "")?;
        if spoil {
            std::fs::write(package.join("model.pt"), "no TorchScript")?;
        }
        stack.cli(&["model", "deploy", &package.display().to_string(), "--start", "--wait"])
    };
    let sound = deploy("sound", false)?;
    ensure!(sound.status.success() && text(&sound).contains("ready on worker-"), "{}\n{}", text(&sound), scaler.log());
    let broken = deploy("broken", true)?;
    ensure!(!broken.status.success() && text(&broken).contains("failed on worker-"), "{}", text(&broken));
    let began = Instant::now();
    let asked = infer(&stack, "broken", "5m")?;
    let said = text(&asked);
    ensure!(
        !asked.status.success() && said.contains("model `broken` does not load") && said.contains("worker-"),
        "{said}"
    );
    ensure!(began.elapsed() < Duration::from_secs(60), "told after {:?}", began.elapsed());
    let shown = text(&stack.cli(&["model", "show", "broken"])?);
    ensure!(shown.contains("worker-") && (shown.contains("did not load where") || shown.contains("failed")), "{shown}");
    Ok(())
}

pub async fn of_two_workers_under_one_name_one_takes_no_work(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let mut scaler = stack.scaler("")?;
    scaler.wait_for_line("leading", SOON)?;
    let mut first = stack.host(1)?;
    let package = fixture::doubler(stack.folder(), "m", 1, "[scaling]\nmin_slots = 1\n")?;
    let output = stack.cli(&["model", "deploy", &package.display().to_string(), "--start", "--wait"])?;
    ensure!(output.status.success(), "{}", text(&output));
    let mut second = stack.host_named("worker-2", 1)?;
    second.process.wait_for_line("this one takes no work", SOON)?;
    first.process.wait_for_line("it takes no work", SOON)?;
    scaler.wait_for_line("two workers report under one host name", SOON)?;
    let hosts = json(&stack, &["hosts", "--json"])?;
    let rows: Vec<&Value> = hosts.as_array().into_iter().flatten().collect();
    let idle = |row: &&&Value| row["taken_by"].is_string() && row["models"] == Value::Array(Vec::new());
    ensure!(rows.len() == 2 && rows.iter().filter(idle).count() == 1, "{hosts}");
    let shown = text(&stack.cli(&["hosts"])?);
    ensure!(shown.contains("another worker has this name"), "{shown}");
    first.process.kill();
    second.process.wait_for_line("this one takes its work", SOON).with_context(|| scaler.log())?;
    until(&stack, "slot of the one that is left", |slots| slots.len() == 1)?;
    let answer = infer(&stack, "m", "30s")?;
    ensure!(answer.status.success(), "{}", text(&answer));
    Ok(())
}
