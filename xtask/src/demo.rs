//! `cargo xtask demo`: 1,797 handwritten digits through a real queue, a worker and back, from nothing.

mod deployment;

use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::Value;
use xtask::broker::Kind;
use xtask::http;
use xtask::setup::{self, Accelerator};

use crate::test::cargo;
use deployment::{BURST, Deployment, burst, start, stop_everything};

/// The images that the model was trained on come first; the rest measures it.
const TRAINED_ON: usize = 1347;
/// Below this the demo has failed.
const ACCURACY: f64 = 0.95;
/// Requests of one row each show latency; packed ones show throughput.
const PACKED: &str = "16";
/// How long a model that nobody asks for may keep a slot here.
const TO_ZERO: Duration = Duration::from_secs(60);

pub struct Options {
    keep: bool,
    broker: Kind,
}

impl Options {
    pub fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self { keep: false, broker: Kind::Nats };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--keep" => options.keep = true,
                "--broker" => {
                    options.broker = arguments.next().context("`--broker` wants `nats` or `rabbitmq`")?.parse()?
                }
                _ => bail!(
                    "`cargo xtask demo` takes `--broker nats|rabbitmq`, and `--keep`, which leaves everything running until Ctrl-C"
                ),
            }
        }
        Ok(options)
    }
}

/// What the command line says at the end of a run.
#[derive(Deserialize)]
struct Summary {
    rows: u64,
    failed: u64,
    requests: u64,
    rows_per_second: f64,
    requests_per_second: f64,
    latency_p50_ms: f64,
    latency_p99_ms: f64,
}

pub fn run(options: &Options) -> Result<()> {
    setup::libtorch(Accelerator::None)?;
    match options.broker {
        Kind::Nats => drop(setup::nats_server()?),
        Kind::RabbitMq => drop(setup::rabbitmq_server()?),
    }
    cargo(&["build", "--release", "-p", "sluice", "-p", "sluice-worker", "-p", "sluice-scaler", "--bins"])?;
    ctrlc::set_handler(|| {
        eprintln!("\nstopping");
        stop_everything();
        std::process::exit(130);
    })
    .context("cannot listen for Ctrl-C")?;
    let result = show(options);
    stop_everything();
    result
}

fn show(options: &Options) -> Result<()> {
    let root = xtask::root();
    let folder = tempfile::tempdir()?;
    let path = folder.path().to_path_buf();
    let data = root.join("models/digits/digits.csv.gz");

    eprintln!(
        "starting {}, a host and a scaler with `sluice dev --models models/digits`, in {}",
        options.broker.name(),
        path.display()
    );
    let deployment = start(options, folder)?;
    let settings = ["scaling.target_wait=20ms", "scaling.scale_down_delay=1s", "scaling.idle_to_zero=2s"];
    let tuned = deployment.command().args(["model", "profile", "set", "digits"]).args(settings).output()?;
    ensure!(tuned.status.success(), "{}", String::from_utf8_lossy(&tuned.stderr));
    // The host that tried whether the model loads takes it down again, since nobody asks for it.
    let deadline = Instant::now() + TO_ZERO;
    while deployment.slots()? > 0 {
        ensure!(Instant::now() < deadline, "there still are slots after {TO_ZERO:?}, and nobody has asked");
        std::thread::sleep(Duration::from_millis(100));
    }
    let began = Instant::now();
    let first = deployment
        .command()
        .args(["infer", "digits", "--input"])
        .arg(format!("image=[{}]", example(&data)?))
        .output()?;
    ensure!(first.status.success(), "the first request was not answered: {}", String::from_utf8_lossy(&first.stderr));
    let from_zero = began.elapsed();

    let submit = |output: &Path, rows_per_message: &str| -> Result<Summary> {
        let mut command = deployment.command();
        command.args(["submit", "digits"]).arg(&data).args(["--columns", "0-63", "--json"]);
        command.args(["--rows-per-message", rows_per_message]).arg("--output").arg(output);
        let run = command.stderr(Stdio::inherit()).output().context("cannot run sluice")?;
        ensure!(run.status.success(), "`sluice submit` ended with {}; not every request was answered", run.status);
        Ok(serde_json::from_slice(&run.stdout)?)
    };
    eprintln!("\nsluice submit digits {} --columns 0-63 --rows-per-message 1", data.display());
    let answers = path.join("answers.jsonl");
    let single = submit(&answers, "1")?;
    let packed = submit(&path.join("packed.jsonl"), PACKED)?;
    eprintln!("\na burst of {} rows, and back to no slots", BURST * (single.rows as usize));
    let slots = burst(&deployment, &data, &path)?;

    let labels = labels(&data)?;
    ensure!(
        single.failed == 0 && single.rows as usize == labels.len(),
        "{} of {} images were answered",
        single.rows - single.failed,
        labels.len()
    );
    let accuracy = accuracy(&answers, &labels)?;
    println!("\n{} images of handwritten digits went through {} and libtorch:", labels.len(), options.broker.name());
    println!(
        "  accuracy   {:.1} % on the {} images that the model was not trained on",
        100.0 * accuracy,
        labels.len() - TRAINED_ON
    );
    println!(
        "  one by one {:>7.0} requests/s  {:>8.0} rows/s   p50 {:.1} ms  p99 {:.1} ms",
        single.requests_per_second, single.rows_per_second, single.latency_p50_ms, single.latency_p99_ms
    );
    println!(
        "  in {PACKED}s     {:>7.0} requests/s  {:>8.0} rows/s   p50 {:.1} ms  p99 {:.1} ms  ({} requests)",
        packed.requests_per_second,
        packed.rows_per_second,
        packed.latency_p50_ms,
        packed.latency_p99_ms,
        packed.requests
    );
    println!("  from zero  {:.0} ms from a request while nothing ran to its answer", 1000.0 * from_zero.as_secs_f64());
    let steps = slots.iter().map(|(at, slots)| format!("{slots} at {:.1} s", at.as_secs_f64()));
    println!("  burst      {} rows; slots: {}", BURST * labels.len(), steps.collect::<Vec<_>>().join(", "));
    println!("  batches    by rows, as the worker formed them:");
    for (bucket, count, share) in batch_sizes(&deployment.worker)? {
        println!("    {bucket:>9} {count:>5}  {}", "#".repeat((share * 40.0).ceil() as usize));
    }
    ensure!(accuracy >= ACCURACY, "the accuracy is {:.1} %, below {:.0} %", 100.0 * accuracy, 100.0 * ACCURACY);

    let sluice = deployment.sluice.strip_prefix(&root).unwrap_or(&deployment.sluice).display();
    let Deployment { url, registry, worker, scaler, .. } = &deployment;
    println!("\nTry next{}:", if options.keep { "" } else { ", with `cargo xtask demo --keep` running" });
    let broker = if options.keep { format!(" --broker {url}") } else { " --broker URL".into() };
    println!("  {sluice} slots --watch{broker}");
    println!("  {sluice} infer digits --input 'image=[{}]'{broker}", example(&data)?);
    println!("  {sluice} scale explain digits{broker}");
    if options.keep {
        println!(
            "\nRunning until Ctrl-C:\n  broker   {url}\n  registry {registry}\n  metrics  http://{worker}/metrics http://{scaler}/metrics\n  files    {}",
            path.display()
        );
        loop {
            std::thread::park();
        }
    }
    Ok(())
}

/// Where cargo puts what it builds.
pub fn target_folder() -> std::path::PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| xtask::root().join("target"), Into::into)
}

fn read(data: &Path) -> Result<String> {
    let mut text = String::new();
    GzDecoder::new(std::fs::File::open(data)?).read_to_string(&mut text)?;
    Ok(text)
}

fn labels(data: &Path) -> Result<Vec<u64>> {
    let label = |line: &str| {
        line.rsplit(',').next().and_then(|label| label.trim().parse().ok()).context("a line without a label")
    };
    read(data)?.lines().map(label).collect()
}

/// The first image, for a command to try.
fn example(data: &Path) -> Result<String> {
    let text = read(data)?;
    let line = text.lines().next().context("the data are empty")?;
    Ok(line.rsplit_once(',').map_or(line, |(pixels, _)| pixels).to_owned())
}

/// The share of the unseen images whose most probable digit is the right one.
fn accuracy(answers: &Path, labels: &[u64]) -> Result<f64> {
    let text = std::fs::read_to_string(answers)?;
    let mut right = 0;
    for (index, line) in text.lines().enumerate() {
        let answer: Value = serde_json::from_str(line)?;
        ensure!(answer["row"] == index, "line {} of the answers is out of order", index + 1);
        let probabilities = answer["outputs"]["probabilities"].as_array().context("an answer without probabilities")?;
        let best = probabilities
            .iter()
            .enumerate()
            .max_by(|one, other| one.1.as_f64().unwrap_or(0.0).total_cmp(&other.1.as_f64().unwrap_or(0.0)))
            .map_or(0, |(digit, _)| digit as u64);
        if index >= TRAINED_ON && best == labels[index] {
            right += 1;
        }
    }
    ensure!(text.lines().count() == labels.len(), "not every image was answered");
    Ok(f64::from(right) / (labels.len() - TRAINED_ON) as f64)
}

/// Buckets of the worker's histogram: their bounds, counts and shares.
fn batch_sizes(admin: &str) -> Result<Vec<(String, u64, f64)>> {
    let (_, text) = http::get(admin, "/metrics")?;
    let mut buckets = Vec::new();
    let (mut below, mut lower) = (0, 0);
    for line in text.lines().filter(|line| line.starts_with("sluice_batch_rows_bucket")) {
        let bound =
            line.split("le=\"").nth(1).and_then(|rest| rest.split('"').next()).context("a bucket has a bound")?;
        let count: u64 =
            line.rsplit(' ').next().and_then(|count| count.parse().ok()).context("a bucket has a count")?;
        let Ok(upper) = bound.parse::<u64>() else { continue };
        if count > below {
            let name =
                if upper == lower + 1 || upper == 1 { upper.to_string() } else { format!("{}-{upper}", lower + 1) };
            buckets.push((name, count - below));
        }
        (below, lower) = (count, upper);
    }
    let total = below.max(1) as f64;
    Ok(buckets.into_iter().map(|(name, count)| (name, count, count as f64 / total)).collect())
}
