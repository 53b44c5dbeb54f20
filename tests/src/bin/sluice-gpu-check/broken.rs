//! What becomes of the others when a request, or the process, breaks.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_e2e::{Stack, Worker};
use xtask::broker::Kind;

use crate::Kit;
use crate::asking::{Answer, Caller, integers};
use crate::report::Found;
use crate::right::{START, rows};

/// So soon the requests of a worker that was killed come again.
const HOLD: &str = "hold_time = \"3s\"";

/// Waits for answers, and starts the worker anew whenever it has ended, as an init system would. Returns the answers, and when it ended.
async fn supervised(
    stack: &mut Stack,
    worker: &mut Worker,
    package: &std::path::Path,
    caller: &mut Caller,
    ids: &[String],
) -> Result<(Vec<Answer>, Vec<i32>)> {
    let mut exits = Vec::new();
    let mut answers = std::pin::pin!(caller.receive(ids));
    loop {
        tokio::select! {
            answers = &mut answers => return Ok((answers?, exits)),
            () = tokio::time::sleep(Duration::from_millis(50)) => {
                if let Some(status) = worker.process.ended() {
                    exits.push(status.code().unwrap_or(-1));
                    *worker = stack.launch(&[(package, 1)], HOLD)?;
                }
            }
        }
    }
}

pub async fn assert(kit: &Kit, found: &mut Found) -> Result<()> {
    const CULPRIT: usize = 30;
    let mut stack = Stack::alone(Kind::Nats)?;
    let package = kit.package("table");
    let mut worker = stack.launch(&[(&package, 1)], HOLD)?;
    worker.process.wait_for_line(": ready", START)?;
    let mut caller = Caller::new(&stack).await?;
    let began = Instant::now();
    let inputs: Vec<_> =
        (0..60).map(|row| integers(&[1], move |_| if row == CULPRIT { 99 } else { row as i64 % 10 })).collect();
    let ids = caller.send("table", &inputs).await?;
    let (answers, exits) = supervised(&mut stack, &mut worker, &package, &mut caller, &ids).await?;
    found.figure("seconds until all were answered", began.elapsed().as_secs_f64(), "s");
    found.remark("the process ended, and was started again", format!("{} times, with {exits:?}", exits.len()));
    let refused: Vec<usize> = (0..answers.len()).filter(|at| answers[*at].is_err()).collect();
    ensure!(refused == [CULPRIT], "refused: {refused:?}: {:?}", refused.first().map(|at| &answers[*at]));
    let error = answers[CULPRIT].as_ref().err().context("the culprit's error")?;
    found.remark("the one out of range", error.clone());
    let dead = stack.cli(&["dead", "list", "table", "--json"])?;
    let dead: Value = serde_json::from_slice(&dead.stdout).context("sluice dead list --json")?;
    let letters = dead.as_array().map_or(0, Vec::len);
    found.figure("dead letters", letters as f64, "");
    ensure!(letters == 1, "{dead}");
    // 70: of no more use. Nothing else may end it.
    ensure!(exits.iter().all(|code| *code == 70), "it ended with {exits:?}");
    let later = caller.outputs("table", &[integers(&[1], |_| 3)]).await?;
    ensure!(later.len() == 1);
    Ok(())
}

pub async fn killed(kit: &Kit, found: &mut Found) -> Result<()> {
    let mut stack = Stack::alone(Kind::Nats)?;
    let package = kit.package("small");
    let mut worker = stack.launch(&[(&package, 1)], HOLD)?;
    worker.process.wait_for_line(": ready", START)?;
    let mut caller = Caller::new(&stack).await?;
    let inputs = rows(kit, "small", 3000);
    let ids = caller.send("small", &inputs).await?;
    let batches = |worker: &Worker| worker.metric("sluice_batch_rows_sum", &[]).unwrap_or(0.0);
    let deadline = Instant::now() + START;
    while batches(&worker) < 64.0 {
        ensure!(Instant::now() < deadline, "nothing ran");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    worker.process.kill();
    let began = Instant::now();
    let (answers, _) = supervised(&mut stack, &mut worker, &package, &mut caller, &ids).await?;
    let failed = answers.iter().filter(|answer| answer.is_err()).count();
    found.figure("requests, one worker killed meanwhile", answers.len() as f64, "");
    found.figure("of them not answered", failed as f64, "");
    found.figure("until all were answered", began.elapsed().as_secs_f64(), "s");
    ensure!(failed == 0, "{:?}", answers.iter().find_map(|answer| answer.as_ref().err()));
    Ok(())
}
