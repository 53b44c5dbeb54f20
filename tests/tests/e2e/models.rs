//! Models that are deployed, versioned, tuned and rolled back while they serve.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;
use sluice_core::broker::Submission;
use sluice_core::codec::{self, ContentType};
use sluice_core::{Envelope, ErrorCode, InferRequest};
use sluice_e2e::Stack;
use sluice_e2e::fixture::{self, Script};
use sluice_e2e::stack::{SOON, Worker, envelope, floats, next, rows, submit};
use xtask::broker::Kind;

/// A version of model `m` that multiplies by `factor`.
fn version(stack: &Stack, factor: u32, extra: &str) -> Result<PathBuf> {
    let manifest = format!(
        "name = \"m\"\ninputs = [{{ name = \"x\", datatype = \"FP32\", shape = [-1, 4] }}]\n\
         outputs = [{{ name = \"y\", datatype = \"FP32\", shape = [-1, 4] }}]\n{extra}\n"
    );
    let body = format!("return torch.mul(x, {factor})");
    let script = Script { signature: "x: Tensor) -> Tensor", body: &[&body], manifest: &manifest };
    script.write(stack.folder(), &format!("m-{factor}"))
}

/// Runs `sluice model …`, which must succeed.
fn model(stack: &Stack, arguments: &[&str]) -> Result<String> {
    let output = attempt(stack, arguments)?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("`sluice model {}` failed: {err}{out}", arguments.join(" "));
    }
    Ok(out.into_owned())
}

/// Runs `sluice model …`, which must fail, and returns what it says.
fn refused(stack: &Stack, arguments: &[&str]) -> Result<String> {
    let output = attempt(stack, arguments)?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        bail!("`sluice model {}` should have failed: {text}", arguments.join(" "));
    }
    Ok(text)
}

fn attempt(stack: &Stack, arguments: &[&str]) -> Result<Output> {
    let whole: Vec<&str> = ["model"].into_iter().chain(arguments.iter().copied()).collect();
    stack.cli(&whole)
}

fn deploy(stack: &Stack, package: &Path, more: &[&str]) -> Result<String> {
    let package = package.display().to_string();
    let whole: Vec<&str> = ["deploy", &package].into_iter().chain(more.iter().copied()).collect();
    model(stack, &whole)
}

/// Asks once, and returns the first float or the error.
fn ask(stack: &Stack) -> Result<Result<f64, String>> {
    let output = stack.cli(&["infer", "m", "--input", "x=[1,1,1,1]", "--timeout", "20s"])?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let Ok(answer) = serde_json::from_str::<Value>(&out) else { return Ok(Err(err.into_owned())) };
    Ok(answer["outputs"][0]["data"].as_array().and_then(|data| data.first()?.as_f64()).ok_or(out.into_owned()))
}

pub async fn a_model_is_deployed_started_stopped_and_started_again(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let _worker = stack.follower("*", "")?;
    let package = version(&stack, 2, "")?;
    let text = deploy(&stack, &package, &[])?;
    assert!(text.contains("published version 1 of model `m`") && text.contains("does not serve yet"), "{text}");
    let began = Instant::now();
    let text = model(&stack, &["start", "m", "--wait"])?;
    assert!(text.contains("revision 2, version 1, started") && text.contains("ready on worker-1"), "{text}");
    assert!(began.elapsed() < Duration::from_secs(10), "the signal should be faster than the look");
    assert_eq!(ask(&stack)?, Ok(2.0));
    let text = model(&stack, &["stop", "m", "--wait"])?;
    assert!(text.contains("wait until it is started") && text.contains("stopped on worker-1"), "{text}");
    // A request that comes meanwhile waits, and its sender is told.
    let waiting = stack.cli_command(&["infer", "m", "--input", "x=[3,1,1,1]"])?;
    let waiting = xtask::process::Service::start("waiting", &mut { waiting }, stack.folder())?;
    let mut waiting = waiting;
    waiting.wait_for_line("note: model `m` is stopped: requests wait until it is started", SOON)?;
    model(&stack, &["start", "m", "--wait"])?;
    assert!(waiting.wait(SOON)?.success());
    assert!(waiting.log().contains("6.0"), "{}", waiting.log());
    let history: Value = serde_json::from_str(&model(&stack, &["history", "m", "--json"])?)?;
    let actions: Vec<&str> =
        history.as_array().into_iter().flatten().filter_map(|one| one["action"].as_str()).collect();
    assert_eq!(actions, ["deploy", "start", "stop", "start"]);
    let list: Value = serde_json::from_str(&model(&stack, &["list", "--json"])?)?;
    assert_eq!(list[0]["hosts"][0]["report"]["state"], "ready", "{list}");
    Ok(())
}

/// Requests without pause until told to stop; each answer must be right for the version that gave it.
async fn load(
    stack: &Stack,
    stop: Arc<AtomicBool>,
) -> Result<tokio::task::JoinHandle<Result<BTreeMap<String, usize>>>> {
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    Ok(tokio::spawn(async move {
        let mut by_version = BTreeMap::new();
        let (mut sent, mut answered) = (0, 0);
        while !stop.load(Ordering::Relaxed) || answered < sent {
            while sent < answered + 64 && !stop.load(Ordering::Relaxed) {
                let request = envelope(&format!("r{sent}"), &*inbox);
                submit(&broker, Submission::new("m".parse()?, request, rows(&[[1.0; 4]]))).await?;
                sent += 1;
            }
            let reply = next(&mut inbox).await?;
            let values = floats(&reply).map_err(anyhow::Error::msg)?;
            let response = codec::decode_response(reply.content_type, &reply.body).map_err(anyhow::Error::from)?;
            let factor = if response.model_version == "1" { 2.0 } else { 3.0 };
            assert_eq!(values, [factor; 4], "version {}", response.model_version);
            *by_version.entry(response.model_version.into_owned()).or_default() += 1;
            answered += 1;
        }
        Ok(by_version)
    }))
}

pub async fn versions_change_back_and_forth_under_load_without_a_failed_request(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let _one = stack.follower("m", "")?;
    let _two = stack.follower("*", "")?;
    deploy(&stack, &version(&stack, 2, "")?, &["--start", "--wait"])?;
    let stop = Arc::new(AtomicBool::new(false));
    let load = load(&stack, Arc::clone(&stop)).await?;
    deploy(&stack, &version(&stack, 3, "")?, &["--wait"])?;
    for _ in 0..3 {
        model(&stack, &["rollback", "m", "--wait"])?;
        model(&stack, &["start", "m", "--version", "2", "--wait"])?;
        model(&stack, &["profile", "set", "m", "batching.max_rows=7", "--wait"])?;
        model(&stack, &["profile", "set", "m", "batching.max_rows=", "--wait"])?;
    }
    stop.store(true, Ordering::Relaxed);
    let by_version = load.await??;
    let total: usize = by_version.values().sum();
    assert!(total >= 1000, "only {by_version:?}: that was no load");
    assert!(by_version.len() == 2 && by_version.values().all(|count| *count > 50), "{by_version:?}");
    let broker = stack.connect().await?;
    assert!(broker.dead_letters(&"m".parse()?, 10).await?.is_empty());
    Ok(())
}

pub async fn a_version_that_does_not_load_leaves_the_old_one_serving(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let worker = stack.follower("m", "")?;
    deploy(&stack, &version(&stack, 2, "")?, &["--start", "--wait"])?;
    let manifest = "name = \"m\"\ninputs = [{ name = \"x\", datatype = \"FP32\", shape = [-1, 4] }]\n\
        outputs = [{ name = \"y\", datatype = \"FP32\", shape = [-1, 10] }]\n";
    let bad =
        Script { signature: "x: Tensor) -> Tensor", body: &["return x"], manifest }.write(stack.folder(), "bad")?;
    let text = refused(&stack, &["deploy", &bad.display().to_string(), "--wait"])?;
    assert!(text.contains("the manifest says FP32 [-1, 10], the model gives FP32 [1, 4]"), "{text}");
    assert!(text.contains("version 1 still serves"), "{text}");
    assert_eq!(ask(&stack)?, Ok(2.0));
    let shown = model(&stack, &["show", "m"])?;
    assert!(shown.contains("failed on 1 of 1 host") && shown.contains("FP32 [-1, 10]"), "{shown}");
    let garbage = stack.folder().join("garbage");
    std::fs::create_dir(&garbage)?;
    std::fs::copy(stack.folder().join("m-2/model.toml"), garbage.join("model.toml"))?;
    std::fs::write(garbage.join("model.pt"), b"no model at all")?;
    let text = refused(&stack, &["deploy", &garbage.display().to_string(), "--wait"])?;
    assert!(text.contains("cannot load"), "{text}");
    assert_eq!(ask(&stack)?, Ok(2.0));
    model(&stack, &["rollback", "m", "1", "--wait"])?;
    assert_eq!(ask(&stack)?, Ok(2.0));
    assert_eq!(worker.metric("sluice_slots", &["idle"])?, 1.0);
    Ok(())
}

pub async fn a_profile_applies_without_a_reload(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let worker = stack.follower("m", "")?;
    deploy(&stack, &version(&stack, 2, "[batching]\nmax_rows = 4")?, &["--start", "--wait"])?;
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    let mut largest = async |id: &str, stack: &Stack| {
        submit(&broker, Submission::new("m".parse()?, envelope(id, &*inbox), rows(&[[1.0; 4]; 64]))).await?;
        let reply = next(&mut inbox).await?;
        assert_eq!(floats(&reply).map_err(anyhow::Error::msg)?.len(), 256);
        stack.wait_until_empty(&broker, &"m".parse()?).await?;
        // Executions of more than 16 rows.
        anyhow::Ok(
            worker.metric("sluice_batch_rows_count", &[])?
                - worker.metric("sluice_batch_rows_bucket", &["le=\"16\""])?,
        )
    };
    assert_eq!(largest("before", &stack).await?, 0.0);
    let text = refused(&stack, &["profile", "set", "m", "batching.max_row=64"])?;
    assert!(text.contains("there is no setting `batching.max_row`") && text.contains("`batching.max_rows`"), "{text}");
    let text = refused(&stack, &["profile", "set", "m", "limits.attempts=0"])?;
    assert!(text.contains("`limits.attempts` must be greater than 0"), "{text}");
    model(&stack, &["profile", "set", "m", "batching.max_rows=64", "limits.body_bytes=3000", "--wait"])?;
    assert_eq!(largest("after", &stack).await?, 1.0);
    assert_eq!(worker.process.log().matches("model ready").count(), 1, "it was loaded once");
    let shown = model(&stack, &["profile", "show", "m"])?;
    assert!(
        shown.lines().any(|line| line.contains("batching.max_rows") && line.contains("64") && line.contains("tuned"))
    );
    // The queue's limits changed in place: on RabbitMQ the worker refuses.
    let large = Submission::new("m".parse()?, envelope("large", &*inbox), rows(&[[1.0; 4]; 400]));
    if let Ok(_accepted) = broker.submit(large).await {
        assert_eq!(next(&mut inbox).await?.error, Some(ErrorCode::InvalidArgument));
    }
    Ok(())
}

pub async fn a_stopped_model_refuses_if_its_profile_says_so(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let _worker = stack.follower("m", "")?;
    deploy(&stack, &version(&stack, 2, "[serving]\nwhile_stopped = \"refuse\"")?, &["--start", "--wait"])?;
    let text = model(&stack, &["stop", "m", "--wait"])?;
    assert!(text.contains("refused with UNAVAILABLE"), "{text}");
    let told = ask(&stack)?.expect_err("it is stopped");
    assert!(told.contains("model `m` is stopped and refuses requests"), "{told}");
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    submit(&broker, Submission::new("m".parse()?, envelope("r", &*inbox), rows(&[[1.0; 4]]))).await?;
    let refusal = floats(&next(&mut inbox).await?).expect_err("it is stopped");
    assert!(refusal.starts_with("UNAVAILABLE: model `m` is stopped"), "{refusal}");
    model(&stack, &["start", "m", "--wait"])?;
    assert_eq!(ask(&stack)?, Ok(2.0));
    Ok(())
}

pub async fn undeploying_drains_and_answers_what_waits(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let mut worker = stack.follower("m", "")?;
    deploy(&stack, &version(&stack, 2, "")?, &["--start", "--wait"])?;
    let text = refused(&stack, &["undeploy", "m", "--yes"])?;
    assert!(text.contains("model `m` is started") && text.contains("--force"), "{text}");
    let text = refused(&stack, &["undeploy", "m", "--force"])?;
    assert!(text.contains("this removes model `m`: 1 version (") && text.contains("say --yes"), "{text}");
    // Stopped first, so that requests are waiting when it goes.
    model(&stack, &["stop", "m", "--wait"])?;
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    for index in 0..100 {
        submit(&broker, Submission::new("m".parse()?, envelope(&format!("r{index}"), &*inbox), rows(&[[1.0; 4]])))
            .await?;
    }
    let text = model(&stack, &["undeploy", "m", "--yes"])?;
    assert!(text.contains("100 requests that waited were answered"), "{text}");
    for _ in 0..100 {
        assert_eq!(next(&mut inbox).await?.error, Some(ErrorCode::Unavailable));
    }
    let gone = ask(&stack)?.expect_err("it is gone");
    assert!(gone.contains("there is no model `m`"), "{gone}");
    // It comes back as new, on the same worker; now it goes while it serves.
    deploy(&stack, &version(&stack, 3, "")?, &["--start", "--wait"])?;
    assert_eq!(ask(&stack)?, Ok(3.0));
    model(&stack, &["undeploy", "m", "--yes", "--force"])?;
    assert_eq!(model(&stack, &["list", "--json"])?.trim(), "[]");
    assert!(worker.process.stop(SOON)?.success());
    Ok(())
}

pub async fn a_request_may_name_a_version(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let _worker = stack.follower("m", "")?;
    deploy(&stack, &version(&stack, 2, "")?, &["--version", "v1.0", "--start", "--wait"])?;
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    let mut ask = async |wanted: &str| {
        let id = format!("r-{}", wanted.replace('.', "_"));
        let request = Envelope { version: Some(wanted.into()), ..envelope(&id, &*inbox) };
        submit(&broker, Submission::new("m".parse()?, request, rows(&[[1.0; 4]]))).await?;
        anyhow::Ok(floats(&next(&mut inbox).await?))
    };
    assert_eq!(ask("v1.0").await?, Ok(vec![2.0; 4]));
    let unknown = ask("v2").await?.expect_err("unknown");
    assert!(unknown.contains("NOT_FOUND: model `m` has no version `v2` here; `v1.0` serves"), "{unknown}");
    // The same files under another name are another version.
    deploy(&stack, &stack.folder().join("m-2"), &["--version", "v1.1", "--wait"])?;
    assert_eq!(ask("v1.1").await?, Ok(vec![2.0; 4]));
    Ok(())
}

pub async fn a_lost_signal_is_made_up_for_by_the_slow_look(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let _worker = stack.follower("m", "registry_poll = \"500ms\"")?;
    deploy(&stack, &version(&stack, 2, "")?, &["--start", "--wait"])?;
    let registry = stack.registry().await?;
    let folder = sluice_registry::Folder::read(&version(&stack, 3, "")?)?;
    let published = registry.publish(&folder, None, &|_| ()).await?;
    let newest = registry.deployed(&"m".parse()?).await?;
    // A worker that comes later is ready only once it serves.
    let later = stack.follower("m", "")?;
    assert_eq!(later.metric("sluice_slots", &["idle"])?, 1.0);
    drop(later);
    let change = sluice_registry::Change {
        by: "nobody who signals".into(),
        action: sluice_registry::Action::Deploy,
        version: published.version,
        started: true,
        of: None,
        profile: newest.profile.clone(),
    };
    registry.append(&"m".parse()?, Some(&newest), change).await?;
    let deadline = Instant::now() + SOON;
    while ask(&stack)? != Ok(3.0) {
        assert!(Instant::now() < deadline, "the new revision was not found");
    }
    Ok(())
}

pub async fn a_command_that_works_with_another_registry_than_the_hosts_says_so(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let _worker = stack.follower("*", "")?;
    let package = version(&stack, 2, "")?.display().to_string();
    let elsewhere = format!("file://{}/elsewhere", stack.folder().display());
    let attempt = |registry: Option<&str>, arguments: &[&str]| -> Result<(bool, String, String)> {
        let output = stack.cli_command(arguments)?.envs(registry.map(|url| ("SLUICE_REGISTRY", url))).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.success(), text(&output.stdout), text(&output.stderr)))
    };
    let deploy = ["model", "deploy", &package, "--start", "--wait"];
    // Two folders that are both new may be one, mounted twice.
    let (done, _, said) = attempt(None, &deploy)?;
    assert!(done && !said.contains("registry"), "{said}");
    let (done, _, said) = attempt(Some(&elsewhere), &deploy)?;
    assert!(
        !done && said.contains("`worker-1` follows the registry") && said.contains("nothing was written"),
        "{said}"
    );
    let (done, listed, _) = attempt(Some(&elsewhere), &["model", "list", "--json"])?;
    assert!(done && listed.trim() == "[]", "{listed}");
    let (done, _, said) = attempt(Some(&elsewhere), &deploy[..3])?;
    assert!(done && said.contains("warning: host `worker-1` follows the registry"), "{said}");
    // By now both have an identity, and whoever reaches the same one in another way is not told otherwise.
    let (done, _, said) = attempt(None, &["model", "stop", "m", "--wait"])?;
    assert!(done && !said.contains("registry"), "{said}");
    let (done, _, said) = attempt(Some(&elsewhere), &["scale", "set", "m", "--max", "3"])?;
    assert!(done && said.contains("warning: host `worker-1` follows the registry"), "{said}");
    Ok(())
}

pub async fn limits_of_a_stopped_model_change_its_queue(kind: Kind) -> Result<()> {
    let stack = Stack::start(kind)?;
    deploy(&stack, &version(&stack, 2, "")?, &["--start"])?;
    model(&stack, &["stop", "m"])?;
    let text = model(&stack, &["profile", "set", "m", "limits.queue_length=5"])?;
    assert!(text.contains("limits.queue_length: 100000 -> 5"), "{text}");
    let broker = stack.connect().await?;
    let inbox = broker.inbox().await?;
    // Not every broker refuses at exactly the length.
    for index in 0..500 {
        let request = envelope(&format!("r{index}"), &*inbox);
        match broker.submit(Submission::new("m".parse()?, request, rows(&[[1.0; 4]]))).await {
            Err(sluice_core::BrokerError::QueueFull(_)) => {
                assert!(index >= 5 && (kind != Kind::Nats || index == 5), "{index} were taken");
                return Ok(());
            }
            other => drop(other?),
        }
    }
    bail!("500 were taken by a queue of 5")
}

pub async fn an_archive_carries_models_to_another_registry(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let _worker = stack.follower("*", "")?;
    deploy(&stack, &version(&stack, 2, "")?, &["--start", "--wait"])?;
    deploy(&stack, &version(&stack, 3, "")?, &["--wait"])?;
    model(&stack, &["export", "-o", "backup.tar"])?;
    model(&stack, &["undeploy", "m", "--yes", "--force"])?;
    let text = model(&stack, &["import", "backup.tar"])?;
    assert!(text.contains("brought back m"), "{text}");
    let began = Instant::now();
    model(&stack, &["start", "m", "--wait"])?;
    assert!(began.elapsed() < Duration::from_secs(10), "the command that ended before had signalled");
    assert_eq!(ask(&stack)?, Ok(3.0));
    model(&stack, &["rollback", "m", "--wait"])?;
    assert_eq!(ask(&stack)?, Ok(2.0));
    Ok(())
}

pub async fn a_package_may_come_as_an_archive_and_a_profile_from_an_editor(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let _worker = stack.follower("*", "")?;
    version(&stack, 2, "")?;
    let packed =
        std::process::Command::new("tar").args(["czf", "m.tar.gz", "m-2"]).current_dir(stack.folder()).status()?;
    assert!(packed.success());
    model(&stack, &["deploy", "m.tar.gz", "--start", "--wait"])?;
    assert_eq!(ask(&stack)?, Ok(2.0));
    let linked = stack.folder().join("linked");
    std::fs::create_dir(&linked)?;
    std::os::unix::fs::symlink("/etc/passwd", linked.join("model.toml"))?;
    let packed =
        std::process::Command::new("tar").args(["cf", "evil.tar", "linked"]).current_dir(stack.folder()).status()?;
    assert!(packed.success());
    let text = refused(&stack, &["deploy", "evil.tar"])?;
    assert!(text.contains("entry `linked/model.toml` is a symbolic link"), "{text}");

    let edit = |script: &str| {
        let mut command = stack.cli_command(&["model", "profile", "edit", "m", "--wait"])?;
        anyhow::Ok(command.env_remove("VISUAL").env("EDITOR", format!("sed -i {script}")).output()?)
    };
    let edited = edit("'s/^# max_rows = .*/max_rows = 5/'")?;
    assert!(edited.status.success(), "{}", String::from_utf8_lossy(&edited.stderr));
    let shown = model(&stack, &["profile", "show", "m", "--json"])?;
    assert!(shown.contains(r#""key":"batching.max_rows","tuned":true,"value":5"#), "{shown}");
    let wrong = edit("'s/^max_rows = .*/max_rows = 0/'")?;
    let text = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && text.contains("`batching.max_rows` must be greater than 0"), "{text}");
    Ok(())
}

/// Memory for one copy and a half.
fn with_little_memory(stack: &mut Stack) -> Result<Worker> {
    stack.follower("*", "memory = { cpu = 150 }")
}

pub async fn a_version_that_does_not_fit_beside_the_old_one_waits(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let _worker = with_little_memory(&mut stack)?;
    let needs = "[resources]\nmemory_mib = 100";
    deploy(&stack, &version(&stack, 2, needs)?, &["--start", "--wait"])?;
    let package = version(&stack, 3, needs)?.display().to_string();
    let text = refused(&stack, &["deploy", &package, "--wait", "--wait-time", "2s"])?;
    assert!(
        text.contains("worker-1 is waiting: not enough memory: it needs 100 MiB, and cpu has 50 MiB left"),
        "{text}"
    );
    assert_eq!(ask(&stack)?, Ok(2.0));
    // Less of it fits.
    model(&stack, &["profile", "set", "m", "resources.memory_mib=40", "--wait"])?;
    assert_eq!(ask(&stack)?, Ok(3.0));
    Ok(())
}

pub async fn a_version_that_does_not_fit_may_replace_the_old_one_and_back(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let _worker = with_little_memory(&mut stack)?;
    let needs = "[resources]\nmemory_mib = 100\n[serving]\nif_memory_is_short = \"unload\"";
    deploy(&stack, &version(&stack, 2, needs)?, &["--start", "--wait"])?;
    deploy(&stack, &version(&stack, 3, needs)?, &["--wait"])?;
    assert_eq!(ask(&stack)?, Ok(3.0));
    let manifest = format!(
        "name = \"m\"\ninputs = [{{ name = \"x\", datatype = \"FP32\", shape = [-1, 4] }}]\n\
         outputs = [{{ name = \"y\", datatype = \"FP32\", shape = [-1, 10] }}]\n{needs}\n"
    );
    let bad = Script { signature: "x: Tensor) -> Tensor", body: &["return x"], manifest: &manifest };
    let bad = bad.write(stack.folder(), "bad")?.display().to_string();
    let text = refused(&stack, &["deploy", &bad, "--wait"])?;
    assert!(text.contains("version 2 still serves"), "{text}");
    assert_eq!(ask(&stack)?, Ok(3.0), "it was loaded again");
    Ok(())
}

#[test]
fn what_cannot_be_deployed_is_refused_with_every_fault() -> Result<()> {
    let stack = Stack::start(Kind::Nats)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "[batching]\nmax_rows = 0\n[limits]\nattempts = 0")?;
    std::os::unix::fs::symlink("/etc/passwd", package.join("secrets"))?;
    let text = refused(&stack, &["deploy", &package.display().to_string()])?;
    for fault in ["`batching.max_rows`", "`limits.attempts`", "`secrets` is a symbolic link"] {
        assert!(text.contains(fault), "{fault} is not in {text}");
    }
    let text = refused(&stack, &["start", "nobody"])?;
    assert!(text.contains("model `nobody` is not deployed"), "{text}");
    let text = refused(&stack, &["list", "--registry", "ftp://x"])?;
    assert!(text.contains("does not begin with file://"), "{text}");
    let good = version(&stack, 2, "")?.display().to_string();
    let text = refused(&stack, &["deploy", &good, "--start", "--wait", "--wait-time", "1s"])?;
    assert!(text.contains("no worker has taken it up"), "{text}");
    Ok(())
}

/// Resident memory of a process in MiB.
fn resident(worker: &Worker) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{}/statm", worker.process.id()))?;
    let pages: f64 = text.split(' ').nth(1).unwrap_or_default().parse()?;
    Ok(pages * 4096.0 / (1 << 20) as f64)
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_returns_when_models_unload() -> Result<()> {
    let mut stack = Stack::start(Kind::Nats)?;
    let worker = stack.follower("heavy", "")?;
    // With 64 MiB of weights: a copy that stays behind would show.
    let package = stack.folder().join("heavy");
    let made =
        std::process::Command::new(sluice_e2e::binaries::example("make_heavy")?).arg(&package).arg("64").output()?;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    deploy(&stack, &package, &[])?;
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    let mut sizes = Vec::new();
    for cycle in 0..50 {
        model(&stack, &["start", "heavy", "--wait"])?;
        if cycle == 0 {
            let slots: Value = serde_json::from_slice(&stack.cli(&["slots", "heavy", "--json"])?.stdout)?;
            let measured = &slots[0]["slots_of"]["measured"];
            assert!(measured["row_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "before a request: {slots}");
            assert_eq!(measured["rows"], 0);
        }
        let description = broker.ask("describe.heavy", Default::default(), Duration::from_secs(5)).await?;
        let description: Value = serde_json::from_slice(&description.expect("a description"))?;
        let size = description["inputs"][0]["shape"][1].as_i64().unwrap_or(1);
        let name = description["inputs"][0]["name"].as_str().unwrap_or_default().to_owned();
        let data = vec![0; 4 * size as usize];
        let input = sluice_core::Tensor {
            name,
            datatype: sluice_core::Datatype::Fp32,
            shape: vec![1, size],
            data: data.into(),
        };
        let body =
            codec::encode_request(ContentType::MessagePack, &InferRequest { inputs: vec![input], outputs: vec![] });
        submit(&broker, Submission::new("heavy".parse()?, envelope(&format!("r{cycle}"), &*inbox), body)).await?;
        assert_eq!(next(&mut inbox).await?.error, None);
        if cycle == 0 {
            let slots: Value = serde_json::from_slice(&stack.cli(&["slots", "heavy", "--json"])?.stdout)?;
            let measured = slots[0]["slots_of"]["measured"]["memory_mib"].as_u64();
            assert!(measured.is_some_and(|mib| (64..400).contains(&mib)), "measured while it was loaded: {slots}");
        }
        let loaded = resident(&worker)?;
        model(&stack, &["stop", "heavy", "--wait"])?;
        sizes.push((loaded, resident(&worker)?));
    }
    let after: Vec<f64> = sizes.iter().map(|(_, after)| *after).collect();
    // The first cycles fill what the process keeps for good.
    let (early, late) = (after[5..10].iter().sum::<f64>() / 5.0, after[45..].iter().sum::<f64>() / 5.0);
    println!("resident MiB after unloading: {early:.0} early, {late:.0} late; loaded and unloaded: {:?}", sizes.last());
    assert!(late - early < 24.0, "it grows: {after:?}");
    Ok(())
}
