//! What commands print and write: nothing that is not theirs is replaced, and what cannot be written is told.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Output, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;
use sluice_e2e::{Stack, binaries, fixture};
use xtask::broker::Kind;

/// The end of a command whose output's reader leaves after `lines` lines.
fn closed_after(lines: usize, mut command: Command) -> Result<(ExitStatus, String)> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdout = BufReader::new(child.stdout.take().context("a pipe")?);
    for _ in 0..lines {
        stdout.read_line(&mut String::new())?;
    }
    drop(stdout);
    let output = child.wait_with_output()?;
    Ok((output.status, String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn full(mut command: Command) -> Result<(ExitStatus, String)> {
    let output = command.stdout(File::options().write(true).open("/dev/full")?).output()?;
    Ok((output.status, String::from_utf8_lossy(&output.stderr).into_owned()))
}

pub async fn a_closed_pipe_ends_a_command_quietly_and_a_full_disk_is_an_error(kind: Kind) -> Result<()> {
    let stack = Stack::start(kind)?;
    let commands: [&[&str]; 6] =
        [&["queue", "--watch"], &["queue"], &["model", "list"], &["hosts"], &["completions", "bash"], &["--help"]];
    for arguments in commands {
        let (status, error) = closed_after(usize::from(arguments.len() > 1), stack.cli_command(arguments)?)?;
        assert_eq!((status.code(), error.as_str()), (Some(0), ""), "{arguments:?}");
        let (status, error) = full(stack.cli_command(arguments)?)?;
        assert_eq!(status.code(), Some(1), "{arguments:?}: {error}");
        assert!(error.starts_with("error: cannot write to standard output: No space left"), "{arguments:?}: {error}");
    }
    for program in ["sluice", "sluice-worker", "sluice-scaler"] {
        let mut command = Command::new(binaries::path(program)?);
        assert_eq!(command.arg("--nonsense").output()?.status.code(), Some(64), "{program}");
        let mut command = Command::new(binaries::path(program)?);
        command.arg(if program == "sluice" { "--version" } else { "--print-config" });
        let (status, error) = full(command)?;
        assert!(status.code() == Some(1) && error.contains("No space left"), "{program}: {error}");
    }
    Ok(())
}

/// Each line of a file as JSON.
fn lines(stack: &Stack, name: &str) -> Result<Vec<Value>> {
    let text = fs::read_to_string(stack.folder().join(name)).with_context(|| format!("no {name}"))?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub async fn nothing_that_a_run_did_not_make_is_replaced_or_removed(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "")?;
    let _worker = stack.worker(&[(&package, 1)], "")?;
    stack.file("in.jsonl", "[1,2,3,4]\n")?;
    stack.file("there", "of the user")?;
    let from_stdin = |arguments: &[&str]| -> Result<Output> {
        let mut command = stack.cli_command(arguments)?;
        Ok(command.stdin(File::open(stack.folder().join("in.jsonl"))?).output()?)
    };
    for (arguments, expected) in [
        (["submit", "m", "-", "-o", "there"].as_slice(), "--overwrite"),
        (&["submit", "m", "in.jsonl", "-o", "out", "--errors", "there"], "--overwrite"),
        (&["submit", "m", "in.jsonl", "-o", "there", "--reply", "inbox"], "--overwrite"),
        (&["submit", "m", "in.jsonl", "-o", "out", "--errors", "in.jsonl", "--overwrite"], "are one file"),
        (&["submit", "m", "in.jsonl", "-o", "./in.jsonl", "--overwrite"], "are one file"),
        (&["submit", "m", "-", "-o", "in.jsonl", "--overwrite"], "are one file"),
    ] {
        let run = from_stdin(arguments)?;
        assert!(run.status.code() == Some(1) && said(&run).contains(expected), "{arguments:?}: {}", said(&run));
    }
    let text = |name: &str| fs::read_to_string(stack.folder().join(name)).unwrap_or_default();
    assert_eq!((text("in.jsonl").as_str(), text("there").as_str()), ("[1,2,3,4]\n", "of the user"));
    // With leave it is replaced, and nothing is left over; what failed in an earlier run is not true any more.
    stack.file("there.errors", "of an earlier run")?;
    let run = stack.cli(&["submit", "m", "in.jsonl", "-o", "there", "--overwrite"])?;
    assert!(run.status.success() && said(&run).starts_with("1 row in "), "{}", said(&run));
    assert_eq!(lines(&stack, "there")?.len(), 1);
    assert_eq!(text("there.errors"), "");
    for left in ["there.partial", "there.errors.partial", "there.job", "out", "out.errors"] {
        assert!(!stack.folder().join(left).exists(), "{left}");
    }
    Ok(())
}

pub async fn a_run_that_could_not_write_says_so_and_is_gone_on_with(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "")?;
    let worker = stack.worker(&[(&package, 1)], "")?;
    let rows: String = (0..1000).map(|row| format!("[{row},0,0,0]\n")).collect();
    stack.file("rows.jsonl", rows)?;
    let arguments = ["submit", "m", "rows.jsonl", "-o", "out"];
    let ordinary = stack.cli_command(&arguments)?;
    // A limit on the size of files stands for a disk that is full: 8 KiB at most.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$@\"", "sh"]).arg(ordinary.get_program());
    command.args(arguments).current_dir(stack.folder());
    for (name, value) in ordinary.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let run = command.output()?;
    let error = said(&run);
    assert_eq!(run.status.code(), Some(1), "{error}");
    assert!(error.contains("out.partial`: File too large") && error.contains("--resume"), "{error}");
    assert!(!stack.folder().join("out").exists(), "it is not complete");
    let again = stack.cli(&arguments)?;
    assert!(said(&again).contains("was interrupted"), "{}", said(&again));
    // What still waits or runs is asked for again where the broker drops no repetition.
    stack.wait_until_empty(&stack.connect().await?, &"m".parse()?).await?;
    let run = stack.cli(&[arguments.as_slice(), &["--resume"]].concat())?;
    assert!(run.status.success(), "{}", said(&run));
    let answers = lines(&stack, "out")?;
    assert_eq!(answers.len(), 1000);
    for (row, answer) in answers.iter().enumerate() {
        assert_eq!(answer["outputs"]["y"][0].as_f64(), Some(2.0 * row as f64), "row {row}");
    }
    assert_eq!(worker.metric("sluice_rows_total", &[])?, 1000.0, "some rows were run twice");
    // Whoever reads the answers may leave before the end, which is more than a pipe holds.
    stack.file("many.jsonl", "[1,2,3,4]\n".repeat(4000))?;
    let (status, error) = closed_after(1, stack.cli_command(&["submit", "m", "many.jsonl", "-o", "-"])?)?;
    assert_eq!((status.code(), error.as_str()), (Some(141), ""));
    Ok(())
}

pub async fn a_bad_row_costs_its_neighbours_nothing(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "")?;
    let _worker = stack.worker(&[(&package, 1)], "")?;
    let row = |row| format!("[{},0,0,0]\n", if row == 21 { 9_000_000 } else { row });
    stack.file("rows.jsonl", (0..32).map(row).collect::<String>())?;
    for (output, reply) in [("durable", "durable"), ("live", "inbox")] {
        let run = stack.cli(&["submit", "m", "rows.jsonl", "-o", output, "--reply", reply])?;
        assert_eq!(run.status.code(), Some(2), "{}", said(&run));
        let rows: Vec<u64> = lines(&stack, output)?.iter().filter_map(|line| line["row"].as_u64()).collect();
        assert_eq!(rows, (0..32).filter(|row| *row != 21).collect::<Vec<_>>());
        let failed = lines(&stack, &format!("{output}.errors"))?;
        assert_eq!((failed.len(), &failed[0]["row"], &failed[0]["code"]), (1, &21.into(), &"MODEL_FAILED".into()));
        assert!(failed[0]["error"].as_str().is_some_and(|text| text.contains("a value over a million")), "{failed:?}");
    }
    Ok(())
}

pub async fn a_deadline_ends_the_wait_for_a_model_that_nobody_serves(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "")?;
    drop(stack.worker(&[(&package, 1)], "")?);
    stack.file("rows.jsonl", "[1,2,3,4]\n".repeat(20))?;
    let run = stack.cli(&["submit", "m", "rows.jsonl", "-o", "out", "--takes", "x:FP32:4", "--deadline", "1s"])?;
    assert_eq!(run.status.code(), Some(2), "{}", said(&run));
    let failed = lines(&stack, "out.errors")?;
    assert!(failed.len() == 20 && failed.iter().all(|line| line["code"] == "DEADLINE_EXCEEDED"), "{failed:?}");
    Ok(())
}
