//! `sluice submit` and `sluice infer` as a person runs them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use sluice_e2e::stack::SOON;
use sluice_e2e::{Stack, binaries, fixture};
use xtask::broker::Kind;

fn lines(stack: &Stack, name: &str) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(stack.folder().join(name)).with_context(|| format!("no {name}"))?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub async fn digits_from_a_file_are_recognised_in_order(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = binaries::root().join("models/digits");
    let _worker = stack.worker(&[(&package, 2)], "")?;
    let data = package.join("digits.csv.gz").display().to_string();
    for (output, extra) in
        [("durable.jsonl", &[][..]), ("inbox.jsonl", &["--reply", "inbox", "--rows-per-message", "7"][..])]
    {
        let mut arguments = vec!["submit", "digits", &data, "--columns", "0-63", "-o", output, "--json"];
        arguments.extend(extra);
        let run = stack.cli(&arguments)?;
        assert!(run.status.success(), "{}", stderr(&run));
        let summary: Value = serde_json::from_slice(&run.stdout)?;
        assert_eq!((&summary["rows"], &summary["failed"]), (&Value::from(1797), &Value::from(0)));
        let answers = lines(&stack, output)?;
        assert_eq!(answers.len(), 1797);
        assert!(answers.iter().enumerate().all(|(row, answer)| answer["row"] == row));
        assert!(!stack.folder().join(format!("{output}.job")).exists(), "a complete run leaves no state");
        assert!(!stack.folder().join(format!("{output}.errors")).exists());
    }
    // Nobody replaces an output by accident.
    let again = stack.cli(&["submit", "digits", &data, "--columns", "0-63", "-o", "inbox.jsonl"])?;
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("--overwrite"), "{}", stderr(&again));
    Ok(())
}

pub async fn failed_rows_go_to_their_own_file_with_line_and_reason(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "")?;
    let _worker = stack.worker(&[(&package, 1)], "")?;
    stack.file("rows.csv", "1,2,3,4\n1,2,x,4\n5,6,7,8\n1,2,3\n9000000,0,0,0\n2,2,2,2\n")?;
    let run = stack.cli(&[
        "submit",
        "m",
        "rows.csv",
        "--header",
        "no",
        "--columns",
        "0-3",
        "-o",
        "out",
        "--rows-per-message",
        "1",
    ])?;
    assert_eq!(run.status.code(), Some(2), "{}", stderr(&run));
    assert!(stderr(&run).contains("3 rows failed: out.errors"), "{}", stderr(&run));
    let rows: Vec<_> = lines(&stack, "out")?.iter().map(|line| line["row"].as_u64()).collect();
    assert_eq!(rows, [Some(0), Some(2), Some(5)]);
    let errors = lines(&stack, "out.errors")?;
    let places: Vec<_> =
        errors.iter().map(|line| (line["row"].as_u64(), line["line"].as_u64(), line["code"].as_str())).collect();
    assert_eq!(
        places,
        [
            (Some(1), Some(2), Some("INVALID_ARGUMENT")),
            (Some(3), Some(4), Some("INVALID_ARGUMENT")),
            (Some(4), Some(5), Some("MODEL_FAILED"))
        ]
    );
    assert!(
        errors[0]["error"].as_str().is_some_and(|text| text.contains("column 2: `x` is not FP32")),
        "{}",
        errors[0]
    );
    Ok(())
}

pub async fn standard_input_goes_to_standard_output(kind: Kind) -> Result<()> {
    use std::io::Write;
    let mut stack = Stack::start(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "")?;
    let _worker = stack.worker(&[(&package, 1)], "")?;
    let mut command = stack.cli_command(&["submit", "m", "-", "-o", "-"])?;
    let mut child = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn()?;
    child.stdin.take().context("a pipe")?.write_all(b"[1,2,3,4]\n{\"x\": [0,0,0,1]}\n")?;
    let output = child.wait_with_output()?;
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout)?;
    assert_eq!(
        text,
        "{\"row\":0,\"outputs\":{\"y\":[2.0,4.0,6.0,8.0]}}\n{\"row\":1,\"outputs\":{\"y\":[0.0,0.0,0.0,2.0]}}\n"
    );
    Ok(())
}

pub async fn an_interrupted_run_is_resumed_without_asking_again(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 40, "[batching]\nmax_rows = 4")?;
    let worker = stack.worker(&[(&package, 1)], "")?;
    let rows: String = (0..4000).map(|row| format!("[{row},0,0,0]\n")).collect();
    stack.file("rows.jsonl", rows)?;
    let arguments = ["submit", "m", "rows.jsonl", "-o", "out", "--rows-per-message", "4", "--window", "64"];
    let mut child = stack.cli_command(&arguments)?.stderr(std::process::Stdio::piped()).spawn()?;
    let deadline = Instant::now() + SOON;
    // Until something is written for good.
    let written = |stack: &Stack| -> u64 {
        let state = std::fs::read(stack.folder().join("out.job")).unwrap_or_default();
        serde_json::from_slice::<Value>(&state).ok().and_then(|state| state["written"]["rows"].as_u64()).unwrap_or(0)
    };
    while written(&stack) < 200 {
        assert!(Instant::now() < deadline, "nothing was written");
        std::thread::sleep(Duration::from_millis(5));
    }
    // SAFETY: a signal to our own child, which has not been waited for.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    let status = child.wait()?;
    assert_eq!(status.code(), Some(130), "it was over too soon to be interrupted");
    let mut resume = arguments.to_vec();
    resume.push("--resume");
    for (changed, expected) in [
        (["--takes", "x:FP32:?"], "the model took x:FP32:4, and takes x:FP32:? now"),
        (["--then", "m"], "it had no --then, this has --then m"),
    ] {
        let changed = stack.cli(&[resume.as_slice(), &changed].concat())?;
        assert!(changed.status.code() == Some(1) && stderr(&changed).contains(expected), "{}", stderr(&changed));
    }
    let changed = stack.cli(&["submit", "m", "rows.jsonl", "-o", "out", "--rows-per-message", "8", "--resume"])?;
    assert!(stderr(&changed).contains("it had --rows-per-message 4"), "{}", stderr(&changed));
    let run = stack.cli(&resume)?;
    assert!(run.status.success(), "{}", stderr(&run));
    let answers = lines(&stack, "out")?;
    assert_eq!(answers.len(), 4000);
    for (row, answer) in answers.iter().enumerate() {
        assert_eq!(answer["outputs"]["y"][0].as_f64(), Some(2.0 * row as f64), "row {row}");
    }
    let run_rows = worker.metric("sluice_rows_total", &[])?;
    assert_eq!(run_rows, 4000.0, "some rows were run twice");
    let nothing = stack.cli(&resume)?;
    assert!(stderr(&nothing).contains("nothing to resume"), "{}", stderr(&nothing));
    Ok(())
}

pub async fn one_request_is_answered_on_the_spot(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "")?;
    let _worker = stack.worker(&[(&package, 1)], "")?;
    let run = stack.cli(&["infer", "m", "--input", "x=[[1,2,3,4]]"])?;
    assert!(run.status.success(), "{}", stderr(&run));
    let answer: Value = serde_json::from_slice(&run.stdout)?;
    assert_eq!(answer["outputs"][0]["data"], serde_json::json!([2.0, 4.0, 6.0, 8.0]));
    stack.file("r.json", r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[9000000,0,0,0]}]}"#)?;
    let run = stack.cli(&["infer", "m", "--json", "r.json"])?;
    assert_eq!(run.status.code(), Some(2));
    assert_eq!(serde_json::from_slice::<Value>(&run.stdout)?["code"], "MODEL_FAILED");
    Ok(())
}

pub async fn what_is_wrong_is_said_at_once_and_by_name(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "")?;
    let _worker = stack.worker(&[(&package, 1)], "")?;
    stack.file("rows.jsonl", "[1,2,3,4]\n")?;
    stack.file("rows.csv", "5,4,3,2,1\n")?;
    stack.file("ask.csv", "0,1,2,3\n1,2,3,4\n")?;
    stack.file("cut.npy", "not numpy")?;
    stack.file("bad.json", "{\"inputs\": [}")?;
    let cases: [(&[&str], i32, &str); 13] = [
        (&["infer", "stranger", "--input", "x=[1]"], 1, "there is no model `stranger`"),
        (&["infer", "Bad_Name", "--input", "x=[1]"], 64, "is not a DNS label"),
        (&["infer", "m", "--input", "z=[1]"], 1, "no input `z`; it takes `x` (FP32, 4 per row)"),
        (&["infer", "m", "--input", "x=[1,2]"], 1, "2 values for input `x` (FP32, 4 per row)"),
        (
            &["infer", "m", "--input", "x=[[[1,2],[3,4]]]"],
            1,
            "a row's shape is [2, 2], input `x` takes FP32, 4 per row",
        ),
        (&["infer", "m", "--json", "bad.json"], 1, "line 1 column"),
        (&["submit", "m", "none.csv", "-o", "out"], 1, "cannot read `none.csv`"),
        (&["submit", "m", "rows.csv", "-o", "out"], 1, "choose them, such as --columns 0-3"),
        (&["submit", "m", "ask.csv", "-o", "out"], 1, "may be a row or column names: say --header no"),
        (&["submit", "m", "cut.npy", "-o", "out"], 1, "not a NumPy array"),
        (&["submit", "m", "rows.jsonl", "-o", "out", "--lane", "fast"], 64, "none of high, normal, low"),
        (&["submit", "m", "rows.jsonl", "-o", "nowhere/out"], 1, "nowhere/out"),
        (&["dead", "show", "m", "77"], 1, "no request `77`"),
    ];
    for (arguments, code, expected) in cases {
        let run = stack.cli(arguments)?;
        let text = stderr(&run);
        assert_eq!(run.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(expected), "{arguments:?}: {text}");
        // The client library's own log is nobody's business here.
        assert!(text.starts_with("error: "), "{arguments:?}: {text}");
    }
    let url = match kind {
        Kind::Nats => "nats://127.0.0.1:1",
        Kind::RabbitMq => "amqp://127.0.0.1:1",
    };
    let began = Instant::now();
    let absent = stack.cli(&["--broker", url, "queue"])?;
    assert!(stderr(&absent).contains(&format!("no broker answers at `{url}")), "{}", stderr(&absent));
    assert!(began.elapsed() < SOON, "it gives up");
    Ok(())
}

pub async fn a_file_is_not_held_in_memory(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package =
        fixture::doubler(stack.folder(), "m", 0, "[batching]\nmax_rows = 4096\n[limits]\nqueue_length = 1000")?;
    let _worker = stack.worker(&[(&package, 1)], "")?;
    let peak = |rows: usize| -> Result<u64> {
        let name = format!("{rows}.csv");
        stack.file(&name, "1,2,3,4\n".repeat(rows))?;
        let arguments = [
            "submit",
            "m",
            &name,
            "--header",
            "no",
            "-o",
            "out",
            "--overwrite",
            "--rows-per-message",
            "512",
            "--window",
            "16",
        ];
        let mut child = stack.cli_command(&arguments)?.stderr(std::process::Stdio::null()).spawn()?;
        let status = format!("/proc/{}/status", child.id());
        let mut peak = 0;
        while child.try_wait()?.is_none() {
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            peak = peak.max(line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0));
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(peak)
    };
    let (small, large) = (peak(40_000)?, peak(800_000)?);
    assert!(small > 0 && large < small + 8 * 1024, "20 times the rows took {large} KiB instead of {small} KiB");
    Ok(())
}

/// One row of an array as NumPy writes it (numpy.org/doc/stable/reference/generated/numpy.lib.format.html, version 1.0).
fn npy(descr: &str, columns: usize, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (1, {columns}), }}");
    let header = format!("{header:<117}\n");
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
}

pub async fn infinities_and_nans_stay_what_they_are_in_every_width(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let manifest = "name = \"m\"\ninputs = [{ name = \"x\", datatype = \"FP32\", shape = [-1, 4] }]\n\
         outputs = [{ name = \"inf\", datatype = \"BOOL\", shape = [-1, 4] }, { name = \"nan\", datatype = \"BOOL\", shape = [-1, 4] }]\n";
    let signature = "x: Tensor) -> Tuple[Tensor, Tensor]";
    let model = fixture::Script { signature, body: &["return (torch.isinf(x), torch.isnan(x))"], manifest };
    let package = model.write(stack.folder(), "m")?;
    let _worker = stack.worker(&[(&package, 1)], "")?;
    let values = [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 3.0];
    let doubles: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let floats: Vec<u8> = values.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect();
    let halves: Vec<u8> = values.iter().flat_map(|value| half::f16::from_f64(*value).to_le_bytes()).collect();
    for (descr, data) in [("<f8", doubles), ("<f4", floats), ("<f2", halves)] {
        let (file, output) = (format!("{}.npy", &descr[1..]), format!("{}.jsonl", &descr[1..]));
        stack.file(&file, npy(descr, values.len(), &data))?;
        let run = stack.cli(&["submit", "m", &file, "-o", &output])?;
        assert!(run.status.success(), "{}", stderr(&run));
        let answers = lines(&stack, &output)?;
        let of = |name: &str| answers[0]["outputs"][name].clone();
        assert_eq!(of("inf"), serde_json::json!([true, true, false, false]), "{descr}");
        assert_eq!(of("nan"), serde_json::json!([false, false, true, false]), "{descr}");
    }
    Ok(())
}
