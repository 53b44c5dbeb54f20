//! Measures Sluice against minimal hand-written loops, in one run on one machine: `cargo xtask bench` builds what it
//! needs and calls it. Absolute figures are noisy; the ratios are what it is for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sluice_core::codec::{self, ContentType};
use sluice_core::{Datatype, InferRequest, Tensor};
use sluice_e2e::fixture::Script;
use sluice_e2e::load::{self, Measured, cpu_of};
use sluice_e2e::{Stack, binaries};
use xtask::broker::Kind;
use xtask::process::Service;

/// The one that the command line has, which this stands for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A case's figures, as `--json` writes them.
#[derive(Serialize, Clone)]
struct Row {
    case: String,
    broker: String,
    window: usize,
    rows_per_message: usize,
    /// Rows per second.
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// The figure that it is compared with: rows per second, or at window 1 the p50 in milliseconds.
    baseline: f64,
    /// Of rates: ours over the baseline. At window 1: our p50 less the model's own time, over the baseline's.
    ratio: f64,
    /// CPU time of all processes per request, in microseconds, ours and the baseline's.
    cpu_us: f64,
    baseline_cpu_us: f64,
}

/// The window of the case that computes.
const COMPUTE_WINDOW: usize = 128;

struct Options {
    rounds: usize,
    seconds: f64,
    json: Option<PathBuf>,
    only: Option<String>,
    window: Option<usize>,
    brokers: Vec<Kind>,
}

const HELP: &str = "\
Usage: cargo xtask bench [--rounds N] [--seconds S] [--broker nats|rabbitmq] [--only WORD] [--window N] [--json FILE]

Runs each case N times (5) of S seconds (3), its baseline before and after each, and prints the medians. --broker runs those
on one broker, --only those whose names contain WORD: overhead, packed, compute, --window those of that window. --json writes a list of {case, broker, window,
rows_per_message, rate, p50_ms, p99_ms, baseline, ratio, cpu_us, baseline_cpu_us}.
";

fn main() -> Result<()> {
    let mut options = Options {
        rounds: 5,
        seconds: 3.0,
        json: None,
        only: None,
        window: None,
        brokers: vec![Kind::Nats, Kind::RabbitMq],
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--rounds" => options.rounds = value()?.parse()?,
            "--seconds" => options.seconds = value()?.parse()?,
            "--json" => options.json = Some(value()?.into()),
            "--broker" => options.brokers = vec![value()?.parse()?],
            "--only" => options.only = Some(value()?),
            "--window" => options.window = Some(value()?.parse()?),
            "--help" | "-h" => {
                print!("{HELP}");
                return Ok(());
            }
            other => bail!("`{other}` is not an option\n{HELP}"),
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rows = runtime.block_on(run(&options))?;
    print_table(&rows);
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&rows)?)?;
    }
    Ok(())
}

async fn run(options: &Options) -> Result<Vec<Row>> {
    let wanted = |case: &str, window: usize| {
        options.only.as_ref().is_none_or(|word| case.contains(word.as_str()))
            && options.window.is_none_or(|only| only == window)
    };
    let mut rows = Vec::new();
    for broker in options.brokers.iter().copied() {
        overhead(options, broker, &wanted, &mut rows).await?;
        if wanted("compute", COMPUTE_WINDOW) {
            rows.push(compute(options, broker).await?);
        }
    }
    Ok(rows)
}

/// The whole path with a model that costs next to nothing, against the raw loop.
async fn overhead(
    options: &Options,
    broker: Kind,
    wanted: &dyn Fn(&str, usize) -> bool,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let cases =
        [("overhead", 1, 1), ("overhead", 64, 1), ("overhead", 1024, 1), ("packed", 256, 16), ("packed", 256, 64)];
    for (case, window, packed) in cases.into_iter().filter(|(case, window, _)| wanted(case, *window)) {
        let (mut ours, mut model) = (Vec::new(), Vec::new());
        let mut baseline = vec![raw(broker, window, options.seconds, packed)?];
        for round in 0..options.rounds {
            let rounds = options.rounds;
            eprintln!("{broker}: {case}, window {window}, {packed} rows a message, round {} of {rounds}", round + 1);
            let (measured, model_ms) = echo(broker, window, options.seconds, packed).await?;
            ours.push(measured);
            model.push(model_ms);
            baseline.push(raw(broker, window, options.seconds, packed)?);
        }
        let ratio = match window {
            1 => ratio(ours.iter().zip(&model).map(|(ours, model)| ours.p50_ms - model), &baseline, |run| run.p50_ms),
            _ => ratio(ours.iter().map(Measured::rate), &baseline, Measured::rate),
        };
        let (ours, baseline) = (median_of(ours), median_of(baseline));
        let compared = if window == 1 { baseline.p50_ms } else { baseline.rate() * packed as f64 };
        rows.push(row(case, broker, window, packed, ours, baseline, compared, ratio));
    }
    Ok(())
}

/// The median of our figures, each over the mean of the baseline's before and after it: a machine whose speed drifts
/// matters less.
fn ratio<B>(ours: impl Iterator<Item = f64>, baseline: &[B], figure: impl Fn(&B) -> f64) -> f64 {
    let around = baseline.windows(2).map(|around| (figure(&around[0]) + figure(&around[1])) / 2.0);
    median(ours.zip(around).map(|(ours, around)| ours / around).collect())
}

/// One run of the raw loop, on a server of its own: what a server remembers of an earlier run slows it down.
fn raw(broker: Kind, window: usize, seconds: f64, packed: usize) -> Result<Measured> {
    let stack = Stack::alone(broker)?;
    let raw = binary(match broker {
        Kind::Nats => "examples/raw_nats",
        Kind::RabbitMq => "examples/raw_amqp",
    })?;
    let mut serving = Service::start("raw", Command::new(&raw).args(["serve", &stack.server.url()]), stack.folder())?;
    serving.wait_for_line("serving", Duration::from_secs(10))?;
    let server = stack.server.id().context("the server runs")?;
    // A row of 128 floats is 512 bytes of tensor; the raw loop carries as much.
    raw_ask(&raw, &stack.server.url(), window, seconds, 512 * packed, &[server, serving.id()])
}

/// One run of ours, on a server of its own, and the milliseconds that the model itself takes for a batch.
async fn echo(broker: Kind, window: usize, seconds: f64, packed: usize) -> Result<(Measured, f64)> {
    let mut stack = Stack::alone(broker)?;
    let manifest = "name = \"echo\"\ninputs = [{ name = \"x\", datatype = \"FP32\", shape = [-1, 128] }]\n\
        outputs = [{ name = \"y\", datatype = \"FP32\", shape = [-1, 128] }]\n\
        [batching]\nmax_rows = 256\n[limits]\nqueue_length = 1000000\n";
    let echo = Script { signature: "x: Tensor) -> Tensor", body: &["return torch.mul(x, 1)"], manifest };
    let package = echo.write(stack.folder(), "echo")?;
    let worker = stack.worker(&[(&package, 1)], "")?;
    let server = stack.server.id().context("the server runs")?;
    let body = row_body(packed, 128);
    let measured = load::measure(&stack, "echo", window, seconds, body, &[server, worker.process.id()]).await?;
    let (seconds, batches) = compute_totals(&worker)?;
    Ok((measured, 1000.0 * seconds / batches.max(1.0)))
}

/// What libtorch alone reaches at a batch size.
#[derive(Deserialize)]
struct Alone {
    rows: usize,
    rate: f64,
}

/// A model that takes milliseconds a row, against libtorch alone at its best batch size and with the same threads.
async fn compute(options: &Options, broker: Kind) -> Result<Row> {
    let mut stack = Stack::alone(broker)?;
    let package = stack.folder().join("heavy");
    let made = Command::new(binary("examples/make_heavy")?).arg(&package).status()?;
    if !made.success() {
        bail!("make_heavy failed");
    }
    let slots = std::thread::available_parallelism()?.get();
    let rows = best_size(options, broker, &package, slots)?;
    // Whoever deploys a model gives it the batch size at which it is fastest. With inputs as small as these and both cores
    // computing, larger batches only leave the caches.
    let manifest = package.join("model.toml");
    let text = std::fs::read_to_string(&manifest)?;
    let (head, _) = text.split_once("max_rows").context("make_heavy says max_rows")?;
    std::fs::write(&manifest, format!("{head}max_rows = {rows}\n"))?;
    let seconds = 2.0 * options.seconds;
    let best = || -> Result<f64> {
        let alone = alone(&package, slots, seconds, Some(rows))?;
        Ok(alone.first().context("no rate")?.rate)
    };
    let (mut ours, mut baseline) = (Vec::new(), vec![best()?]);
    for round in 0..options.rounds {
        eprintln!("{broker}: compute, {rows} rows a batch, round {} of {}", round + 1, options.rounds);
        // A fresh one each round: a worker that idles beside the baseline would hardly disturb it, but be fair.
        let worker = stack.worker(&[(&package, slots)], "")?;
        let server = stack.server.id().context("the server runs")?;
        let pids = [server, worker.process.id()];
        ours.push(load::measure(&stack, "heavy", COMPUTE_WINDOW, seconds, row_body(1, 64), &pids).await?);
        drop(worker);
        baseline.push(best()?);
    }
    let ratio = ratio(ours.iter().map(Measured::rate), &baseline, |rate| *rate);
    let unknown = Measured::default();
    Ok(row("compute", broker, COMPUTE_WINDOW, 1, median_of(ours), unknown, median(baseline), ratio))
}

/// The batch size at which libtorch alone is fastest. Found before anything is compared, by medians: taking the fastest
/// of several noisy runs as the baseline would take the luckiest.
fn best_size(options: &Options, broker: Kind, package: &Path, slots: usize) -> Result<usize> {
    let mut rates: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for round in 0..options.rounds {
        eprintln!("{broker}: compute, looking for the best batch size, round {} of {}", round + 1, options.rounds);
        for alone in alone(package, slots, options.seconds / 4.0, None)? {
            rates.entry(alone.rows).or_default().push(alone.rate);
        }
    }
    let medians = rates.into_iter().map(|(rows, rates)| (rows, median(rates)));
    Ok(medians.max_by(|(_, one), (_, other)| one.total_cmp(other)).context("no rates")?.0)
}

/// Libtorch alone, at one batch size or at all that the package allows.
fn alone(package: &Path, slots: usize, seconds: f64, rows: Option<usize>) -> Result<Vec<Alone>> {
    let output = Command::new(binary("examples/libtorch_alone")?)
        .arg(package)
        .args([slots.to_string(), seconds.to_string()])
        .args(rows.map(|rows| rows.to_string()))
        .output()?;
    serde_json::from_slice(&output.stdout).context("libtorch_alone")
}

#[allow(clippy::too_many_arguments)]
fn row(
    case: &str,
    broker: Kind,
    window: usize,
    packed: usize,
    ours: Measured,
    base: Measured,
    baseline: f64,
    ratio: f64,
) -> Row {
    Row {
        case: case.into(),
        broker: broker.to_string(),
        window,
        rows_per_message: packed,
        rate: ours.rate() * packed as f64,
        p50_ms: ours.p50_ms,
        p99_ms: ours.p99_ms,
        baseline,
        ratio,
        cpu_us: ours.cpu_us,
        baseline_cpu_us: base.cpu_us,
    }
}

fn row_body(rows: usize, columns: usize) -> bytes::Bytes {
    let data = vec![0_u8; rows * columns * 4];
    let shape = vec![rows as i64, columns as i64];
    let input = Tensor { name: "x".into(), datatype: Datatype::Fp32, shape, data: data.into() };
    codec::encode_request(ContentType::MessagePack, &InferRequest { inputs: vec![input], outputs: vec![] })
}

fn raw_ask(raw: &Path, url: &str, window: usize, seconds: f64, bytes: usize, pids: &[u32]) -> Result<Measured> {
    let before = cpu_of(pids)? + cpu_of_children();
    let output = Command::new(raw)
        .args(["ask", url, &window.to_string(), &seconds.to_string(), &bytes.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    let cpu = cpu_of(pids)? + cpu_of_children() - before;
    let measured: Measured = serde_json::from_slice(&output.stdout).context("the raw loop failed")?;
    Ok(Measured { cpu_us: cpu * 1e6 / measured.requests as f64, ..measured })
}

/// User and system time of children that have ended.
fn cpu_of_children() -> f64 {
    // SAFETY: getrusage fills the structure that it is given.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Seconds on slots, and batches, so far.
fn compute_totals(worker: &sluice_e2e::Worker) -> Result<(f64, f64)> {
    Ok((worker.metric("sluice_compute_seconds_sum", &[])?, worker.metric("sluice_compute_seconds_count", &[])?))
}

fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().context("an executable stands in a folder")?;
    let path = folder.join(name);
    if !path.is_file() {
        bail!("`{}` is not there: run this as `cargo xtask bench`", path.display());
    }
    binaries::path("sluice-worker")?;
    Ok(path)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The run whose rate is the median, with medians of the other figures.
fn median_of(runs: Vec<Measured>) -> Measured {
    let of = |figure: fn(&Measured) -> f64| median(runs.iter().map(figure).collect());
    let rate = of(Measured::rate);
    Measured {
        requests: (rate * 1000.0) as u64,
        seconds: 1000.0,
        p50_ms: of(|run| run.p50_ms),
        p99_ms: of(|run| run.p99_ms),
        cpu_us: of(|run| run.cpu_us),
    }
}

fn print_table(rows: &[Row]) {
    println!(
        "{:<10} {:<8} {:>6} {:>8} {:>10} {:>8} {:>8} {:>11} {:>6}  {:>8} {:>8}",
        "case", "broker", "window", "rows/msg", "rows/s", "p50 ms", "p99 ms", "baseline", "ratio", "cpu us", "base us"
    );
    for row in rows {
        let baseline = if row.case == "overhead" && row.window == 1 {
            format!("{:.3} ms", row.baseline)
        } else {
            format!("{:.0}/s", row.baseline)
        };
        println!(
            "{:<10} {:<8} {:>6} {:>8} {:>10.0} {:>8.3} {:>8.3} {:>11} {:>6.2}  {:>8.1} {:>8.1}",
            row.case,
            row.broker,
            row.window,
            row.rows_per_message,
            row.rate,
            row.p50_ms,
            row.p99_ms,
            baseline,
            row.ratio,
            row.cpu_us,
            row.baseline_cpu_us
        );
    }
}
