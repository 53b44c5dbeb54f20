//! `sluice dev`: a whole deployment in the foreground: a broker, a registry, a host and a scaler, with one log.

mod programs;
mod reached;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sluice_core::{Manifest, shown};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::cli::{Dev, Global};
use crate::common;
use crate::ends::{self, Ends};
use programs::{beside, nats_server};
use reached::{Reached, quoted};

/// The broker's configuration, which ships with this program.
const NATS_CONFIG: &str = include_str!("../../broker-config/nats/dev.conf");
/// How long a part may take until it is ready: a host's libtorch comes from a cold disk.
const START: Duration = Duration::from_secs(60);
/// How long a part may take to end in order.
const END: Duration = Duration::from_secs(35);

/// A process that belongs to the deployment.
struct Part {
    name: &'static str,
    child: Child,
}

pub async fn run(global: &Global, options: Dev) -> Result<ExitCode> {
    let mut ends = Ends::listen()?;
    // Removed last, when nothing writes there any more.
    let (folder, _own) = match &options.folder {
        Some(folder) => (std::path::absolute(folder)?, None),
        None => {
            let own = tempfile::Builder::new().prefix("sluice-dev-").tempdir().context("cannot make a folder")?;
            (own.path().to_path_buf(), Some(own))
        }
    };
    let mut parts = Vec::new();
    let (log, mut lines) = mpsc::unbounded_channel();
    let work = async {
        start(global, &options, &folder, &mut parts, &log, &mut lines).await?;
        // Whatever ends now should not have.
        loop {
            tokio::select! {
                Some((name, line)) = lines.recv() => show(name, &line),
                () = tokio::time::sleep(Duration::from_millis(200)) => {
                    for part in &mut parts {
                        if let Some(status) = part.child.try_wait()? {
                            bail!("the {} has ended with {status}; its log is above", part.name);
                        }
                    }
                }
            }
        }
    };
    let done: Result<ExitCode> = tokio::select! {
        done = work => done,
        () = ends.next() => Ok(ExitCode::SUCCESS),
    };
    eprintln!("stopping");
    // The broker last, so that hosts can settle what they hold.
    let stopping = async {
        while let Some(mut part) = parts.pop() {
            stop(&mut part).await;
        }
    };
    tokio::select! {
        () = stopping => {}
        () = ends.next() => {}
    }
    while let Ok((name, line)) = lines.try_recv() {
        show(name, &line);
    }
    done
}

/// Starts everything and deploys the models.
async fn start(
    global: &Global,
    options: &Dev,
    folder: &Path,
    parts: &mut Vec<Part>,
    log: &mpsc::UnboundedSender<(&'static str, String)>,
    lines: &mut mpsc::UnboundedReceiver<(&'static str, String)>,
) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
    let url = match options.external {
        true => global.options().url,
        false => start_nats(options, folder, parts, log, lines).await?,
    };
    let registry = options.registry.clone().unwrap_or_else(|| registry_of(&url, folder));
    let reached = Reached { broker: url, registry, by: options.external.then(|| global.options()) };
    let config = folder.join("sluice.toml");
    let (worker, scaler) = (free_port()?, free_port()?);
    let cache = folder.join("packages");
    let text = format!(
        "{}[worker]\nadmin = \"127.0.0.1:{worker}\"\ncache = {}\n[scaler]\nadmin = \"127.0.0.1:{scaler}\"\n",
        reached.sections()?,
        quoted(&cache)
    );
    // It may hold a password.
    common::write_private(&config, text.as_bytes()).with_context(|| format!("cannot write `{}`", config.display()))?;
    for (name, program, ready) in [("scaler", "sluice-scaler", "leading"), ("worker", "sluice-worker", ": ready")] {
        let mut command = Command::new(beside(program)?);
        command.arg("--config").arg(&config);
        parts.push(part(name, command, log)?);
        until_line(name, ready, parts, lines).await?;
    }
    let mut requests = Vec::new();
    for package in packages(options.models.as_deref())? {
        requests.push(request(&package)?);
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["model", "deploy"]).arg(&package).args(["--start", "--wait"]);
        command.env("SLUICE_CONFIG", &config);
        for (name, value) in reached.environment()? {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let output = command.kill_on_drop(true).output().await.context("cannot run sluice")?;
        for line in
            String::from_utf8_lossy(&output.stdout).lines().chain(String::from_utf8_lossy(&output.stderr).lines())
        {
            show("deploy", line);
        }
        if !output.status.success() {
            bail!("`{}` could not be deployed", package.display());
        }
    }
    let sluice = std::env::args().next().unwrap_or_else(|| "sluice".into());
    println!("\nrunning until Ctrl-C, in {}", folder.display());
    println!("  broker    {}", shown::url(&reached.broker));
    println!(
        "  registry  {}",
        shown::url(if reached.registry.is_empty() { &reached.broker } else { &reached.registry })
    );
    println!("  worker    http://127.0.0.1:{worker}/metrics");
    println!("  scaler    http://127.0.0.1:{scaler}/metrics");
    println!("in another terminal:");
    let exports = reached.environment()?.into_iter();
    // What is empty the command line finds by itself: a registry in the broker, as the host does.
    let exports = exports.filter_map(|(name, value)| Some((name, value.filter(|value| !value.is_empty())?)));
    // The configuration has it too.
    let exports = exports.filter(|(_, value)| !value.contains("://") || shown::url(value) == *value);
    let exports: Vec<String> = exports.map(|(name, value)| format!("{name}={value}")).collect();
    // Not a file of the user's own: what that says of another broker is not for this one.
    println!("  export SLUICE_CONFIG={} {}", config.display(), exports.join(" "));
    for request in requests {
        println!("  {sluice} {request}");
    }
    println!("  {sluice} slots --watch\n");
    Ok(())
}

/// Where models are kept if nobody says so: in the broker, where the command line looks too, if that is NATS; else in the folder. A folder
/// that has models keeps them.
fn registry_of(url: &str, folder: &Path) -> String {
    let own = folder.join("registry");
    let on_nats = url.starts_with("nats://") || url.starts_with("tls://");
    if on_nats && !own.is_dir() { String::new() } else { format!("file://{}", own.display()) }
}

async fn start_nats(
    options: &Dev,
    folder: &Path,
    parts: &mut Vec<Part>,
    log: &mpsc::UnboundedSender<(&'static str, String)>,
    lines: &mut mpsc::UnboundedReceiver<(&'static str, String)>,
) -> Result<String> {
    let port = match options.port {
        Some(port) => port,
        None => free_port()?,
    };
    let config = folder.join("nats.conf");
    std::fs::write(&config, NATS_CONFIG).with_context(|| format!("cannot write `{}`", config.display()))?;
    let mut command = Command::new(nats_server()?);
    command.arg("--config").arg(&config).args(["--addr", "127.0.0.1", "--port", &port.to_string()]);
    command.env("SLUICE_NATS_STORE", folder.join("nats"));
    parts.push(part("broker", command, log)?);
    until_line("broker", "Server is ready", parts, lines).await?;
    Ok(format!("nats://127.0.0.1:{port}"))
}

/// Starts a process whose output goes into the log. It is in a group of its own, so that Ctrl-C reaches it only in order.
fn part(name: &'static str, mut command: Command, log: &mpsc::UnboundedSender<(&'static str, String)>) -> Result<Part> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    ends::end_with_us(&mut command);
    let mut child = command.spawn().with_context(|| format!("cannot start the {name}"))?;
    let outputs: [Option<Box<dyn AsyncRead + Send + Unpin>>; 2] = [
        child.stdout.take().map(|output| Box::new(output) as _),
        child.stderr.take().map(|output| Box::new(output) as _),
    ];
    for output in outputs.into_iter().flatten() {
        let log = log.clone();
        tokio::spawn(async move {
            let mut output = BufReader::new(output).lines();
            while let Ok(Some(line)) = output.next_line().await {
                if log.send((name, line)).is_err() {
                    return;
                }
            }
        });
    }
    Ok(Part { name, child })
}

/// Shows the log until a part has said that it is ready.
async fn until_line(
    name: &str,
    text: &str,
    parts: &mut [Part],
    lines: &mut mpsc::UnboundedReceiver<(&'static str, String)>,
) -> Result<()> {
    let deadline = tokio::time::Instant::now() + START;
    loop {
        tokio::select! {
            Some((from, line)) = lines.recv() => {
                show(from, &line);
                if from == name && line.contains(text) {
                    return Ok(());
                }
            }
            () = tokio::time::sleep(Duration::from_millis(200)) => {
                if let Some(status) = parts.last_mut().map(|part| part.child.try_wait()).transpose()?.flatten() {
                    bail!("the {name} has ended with {status}; its log is above");
                }
            }
            () = tokio::time::sleep_until(deadline) => bail!("the {name} is not ready after {START:?}; its log is above"),
        }
    }
}

fn show(name: &str, line: &str) {
    // The server introduces itself at length.
    if name == "broker" && line.contains("[INF]") && !line.contains("Listening for client") {
        return;
    }
    eprintln!("{name:>8} | {}", common::plain(line));
}

async fn stop(part: &mut Part) {
    ends::terminate(&part.child);
    if tokio::time::timeout(END, part.child.wait()).await.is_err() {
        eprintln!("the {} has not ended in {END:?} and is killed", part.name);
        let _ = part.child.kill().await;
    }
}

/// The packages of a folder: itself, or those below it.
fn packages(folder: Option<&Path>) -> Result<Vec<PathBuf>> {
    let Some(folder) = folder else { return Ok(Vec::new()) };
    if folder.join("model.toml").is_file() {
        return Ok(vec![folder.to_path_buf()]);
    }
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))?;
    let mut packages: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.join("model.toml").is_file()).collect();
    packages.sort();
    match packages.is_empty() {
        true => bail!("`{}` holds no package: no folder in it has a model.toml", folder.display()),
        false => Ok(packages),
    }
}

/// How to ask a model, but for the values: `infer digits --input image=FILE.npy  # FP32 [-1, 64]`.
fn request(package: &Path) -> Result<String> {
    let file = package.join("model.toml");
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
    let manifest = Manifest::parse(&text).with_context(|| format!("`{}`", file.display()))?;
    let inputs = manifest.inputs.iter().map(|input| format!(" --input {}=FILE.npy", input.name)).collect::<String>();
    let shapes: Vec<String> = manifest.inputs.iter().map(|input| input.signature()).collect();
    Ok(format!("infer {}{inputs}  # {}", manifest.name, shapes.join(", ")))
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").context("no port is free")?.local_addr()?.port())
}
