//! Which steps there are, and running each in a process of its own, ended with all that it has started when its time is over.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::report::{Done, Figure, Found};
use crate::{Kit, broken, elastic, fast, right, shared};

/// A step.
pub struct Step {
    pub name: &'static str,
    pub title: &'static str,
    /// What it shows cannot be shown without a GPU.
    needs_gpu: bool,
    limit: Duration,
}

const fn step(name: &'static str, limit: u64, needs_gpu: bool, title: &'static str) -> Step {
    Step { name, title, needs_gpu, limit: Duration::from_secs(limit) }
}

/// What all of it may take.
const WHOLE: Duration = Duration::from_secs(470);

/// In the order in which they are run.
pub const STEPS: &[Step] = &[
    step("models", 60, false, "Python makes the models that the others serve"),
    step("digits", 40, false, "Digits by `sluice submit`, batched from the queue, as the CPU answers them"),
    step("networks", 60, false, "A convolutional network, a residual one and an encoder give the CPU's answers"),
    step("datatypes", 40, false, "Every datatype that the protocol and libtorch share comes back as it went"),
    step("layouts", 30, false, "Outputs that lie in memory otherwise than their shapes say"),
    step("half", 40, false, "Models of half precision, FP16 and BF16"),
    step("check", 60, false, "`sluice-worker check` on the device"),
    step("visible", 30, true, "A worker that is to see no GPU refuses one in words"),
    step("speed", 170, false, "Rows per second and latencies by batch size, beside PyTorch alone on the same device"),
    step("slots", 80, false, "One, two and four slots of a model on one device"),
    step("together", 50, false, "Several models and two processes on one device"),
    step("weights", 40, false, "One copy of a model's weights on a device, however many slots"),
    step("memory", 90, false, "Memory before a model, with it, and after 20 loads and unloads"),
    step("unfit", 30, false, "A model that does not fit waits, and says why"),
    step("exhausted", 50, true, "Out of memory in a batch: smaller batches, and others are served"),
    step("assert", 90, false, "An index out of range: its request fails alone, whatever becomes of the process"),
    step("killed", 60, false, "A worker killed in the middle: everything is answered"),
    step("cold", 90, false, "From no slots to the first answer, with and without the model's file in the cache"),
    step("lease", 70, false, "A lease frees the device for a training script, and it serves again afterwards"),
];

/// Runs one step in this process.
pub async fn run(name: &str, kit: &Kit, found: &mut Found) -> Result<()> {
    match name {
        "models" => right::models(kit, found),
        "digits" => right::digits(kit, found),
        "networks" => right::networks(kit, found).await,
        "datatypes" => right::datatypes(kit, found).await,
        "layouts" => right::layouts(kit, found).await,
        "half" => right::half(kit, found).await,
        "check" => right::check(kit, found),
        "visible" => right::visible(kit, found),
        "speed" => fast::speed(kit, found).await,
        "slots" => fast::slots(kit, found).await,
        "together" => shared::together(kit, found).await,
        "weights" => shared::weights(kit, found),
        "memory" => shared::memory(kit, found),
        "unfit" => shared::unfit(kit, found),
        "exhausted" => shared::exhausted(kit, found).await,
        "assert" => broken::assert(kit, found).await,
        "killed" => broken::killed(kit, found).await,
        "cold" => elastic::cold(kit, found).await,
        "lease" => elastic::lease(kit, found).await,
        other => bail!("there is no step `{other}`"),
    }
}

/// Runs all, each in a process of its own.
pub fn run_all(kit: &Kit, wanted: Option<&[&str]>) -> Result<Vec<Done>> {
    let mut done = Vec::new();
    let began = Instant::now();
    for step in STEPS {
        // The others need what it makes.
        let asked = step.name == "models" || wanted.is_none_or(|wanted| wanted.contains(&step.name));
        if !asked {
            continue;
        }
        eprint!("{}: {} ... ", step.name, step.title);
        let left = WHOLE.saturating_sub(began.elapsed());
        let one = match (step.needs_gpu && !kit.gpu, left.is_zero()) {
            (true, _) => left_out(step, "PyTorch finds no GPU here".into()),
            (_, true) => {
                left_out(step, format!("the {WHOLE:?} of all steps were over; `--only {}` runs it", step.name))
            }
            _ => run_apart(kit, step, step.limit.min(left))?,
        };
        match (&one.left_out, &one.failure) {
            (Some(reason), _) => eprintln!("left out: {reason}"),
            (_, Some(failure)) => eprintln!("FAILED after {:.1} s\n{}", one.seconds, failure.trim()),
            _ => eprintln!("passed in {:.1} s", one.seconds),
        }
        done.push(one);
    }
    Ok(done)
}

fn left_out(step: &Step, reason: String) -> Done {
    Done {
        name: step.name.into(),
        title: step.title.into(),
        left_out: Some(reason),
        failure: None,
        seconds: 0.0,
        found: vec![],
    }
}

fn run_apart(kit: &Kit, step: &Step, limit: Duration) -> Result<Done> {
    let began = Instant::now();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--step", step.name, "--gpu", if kit.gpu { "yes" } else { "no" }]);
    command.arg("--kit").arg(&kit.folder).arg("--python").arg(&kit.python).arg("--models").arg(&kit.models);
    command.args(kit.small.then_some("--small"));
    // A group of its own, so that what the step has started ends with it.
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn()?;
    let group = libc::pid_t::try_from(child.id())?;
    let output = BufReader::new(child.stdout.take().context("it is piped")?);
    let mut errors = child.stderr.take().context("it is piped")?;
    let figures = std::thread::spawn(move || {
        let lines = output.lines().map_while(std::result::Result::ok);
        lines.filter_map(|line| serde_json::from_str(&line).ok()).collect::<Vec<Figure>>()
    });
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        // What is no text is of no use to a reader.
        let _ = errors.read_to_string(&mut text);
        text
    });
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if began.elapsed() > limit {
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    // SAFETY: kill has no memory effects; the group is that of our own child, and its number is taken for as long as one of it lives. If
    // none does, nothing happens.
    unsafe { libc::kill(-group, libc::SIGKILL) };
    child.wait()?;
    let found = figures.join().unwrap_or_default();
    let errors = errors.join().unwrap_or_default();
    let failure = match status {
        None => Some(format!("it was ended after its {limit:?}\n{errors}")),
        Some(status) if !status.success() => Some(errors),
        Some(_) => None,
    };
    let seconds = began.elapsed().as_secs_f64();
    Ok(Done { name: step.name.into(), title: step.title.into(), left_out: None, failure, seconds, found })
}

/// Whether PyTorch there finds a GPU.
pub fn has_gpu(python: &Path) -> Result<bool> {
    let text = printed(python, &["-c", "import torch; print(torch.cuda.is_available())"])
        .with_context(|| format!("`{}` has no PyTorch that can be imported", python.display()))?;
    Ok(text.trim() == "True")
}

/// What the report says of the machine.
pub fn machine(kit: &Kit) -> Vec<(String, String)> {
    let asked = "name,driver_version,memory.total";
    let card = printed(Path::new("nvidia-smi"), &[&format!("--query-gpu={asked}"), "--format=csv,noheader"]);
    let pytorch = printed(
        &kit.python,
        &[
            "-c",
            "import torch; print(torch.__version__, torch.version.cuda, [torch.cuda.get_device_capability(n) for n in range(torch.cuda.device_count())])",
        ],
    );
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let worker = sluice_e2e::binaries::path("sluice-worker").and_then(|worker| printed(&worker, &["--version"]));
    let nats = xtask::setup::nats_server().and_then(|server| printed(&server, &["--version"]));
    let said = |text: Result<String>, otherwise: &str| {
        text.map_or_else(|_| otherwise.to_owned(), |text| text.trim().replace('\n', "; "))
    };
    [
        ("card, driver, memory", said(card, "none")),
        ("PyTorch, its CUDA, compute capabilities", said(pytorch, "unknown")),
        ("processors", processors.to_string()),
        ("Sluice", said(worker, "unknown")),
        ("broker", said(nats, "unknown")),
    ]
    .map(|(what, value)| (what.to_owned(), value))
    .to_vec()
}

/// What a program prints; an error if it fails.
pub fn printed(program: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run `{}`", program.display()))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("`{} {}` ended with {}\n{out}{err}", program.display(), arguments.join(" "), output.status);
    }
    Ok(out.into_owned())
}
