//! `sluice scale`: why a model has the slots that it has, and how many it may have.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Result, anyhow, bail};
use sluice_core::broker::Broker;
use sluice_core::print::count;
use sluice_core::scaler::{Answer, Explanation, Question, SCALER};

use crate::cli::{Global, Scale, ScaleCommand};
use crate::common::{self, plain};
use crate::model;

/// How long the scaler that leads may take to answer. Longer than a standby takes to take over.
const PATIENCE: Duration = Duration::from_secs(6);
/// One that was asked while nobody led does not answer.
const ONE_TRY: Duration = Duration::from_secs(2);

pub async fn run(global: &Global, options: Scale) -> Result<ExitCode> {
    let settings = |min: Option<usize>, max: Option<usize>| {
        let setting = |name: &str, value: Option<usize>| value.map(|value| format!("scaling.{name}={value}"));
        [setting("min_slots", min), setting("max_slots", max)].into_iter().flatten().collect::<Vec<_>>()
    };
    let (model, settings) = match options.command {
        ScaleCommand::Explain { model, watch } => {
            let broker = common::connect(global).await?;
            return common::show_again(watch, async || {
                match ask(&broker, &Question::Explain(model.clone())).await? {
                    Answer::Explained(explanation) if options.json => {
                        println!("{}", serde_json::to_string(&explanation)?)
                    }
                    Answer::Explained(explanation) => print!("{}", in_words(&explanation)),
                    other => bail!("the scaler answered something else: {other:?}"),
                }
                Ok(())
            })
            .await;
        }
        ScaleCommand::Set { model, min, max } => (model, settings(min, max)),
        ScaleCommand::Pause { model } => (model, vec!["scaling.paused=true".into()]),
        ScaleCommand::Resume { model } => (model, vec!["scaling.paused=".into()]),
    };
    model::set_profile(global, options.registry.as_deref(), options.json, &model, &settings).await
}

/// Asks the scaler that leads; what it refuses is an error.
pub async fn ask(broker: &Arc<dyn Broker>, question: &Question) -> Result<Answer> {
    let text = serde_json::to_vec(question)?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let asked = broker.ask(question.topic(), text.clone().into(), ONE_TRY).await;
        let who = if question.topic() == SCALER { "`monitoring` and `manager`" } else { "`manager`" };
        if let Some(answer) = asked.map_err(|error| common::denied(error, "ask the scaler for this", who))? {
            return match serde_json::from_slice(&answer)? {
                Answer::Refused(reason) => Err(anyhow!(reason)),
                answer => Ok(answer),
            };
        }
        if tokio::time::Instant::now() >= deadline {
            bail!("no scaler answers: start `sluice-scaler` with this broker and registry");
        }
        // The broker says at once that nobody listens.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn in_words(of: &Explanation) -> String {
    let mut text = format!("model `{}`: {} wanted", of.model, count(of.wanted, "slot", "slots"));
    if of.granted != of.wanted {
        text += &format!(", {} by its group's share", of.granted);
    }
    text += &format!(", {} placed, {} serving\nwhy: {}\n", of.placed, of.serving, plain(&of.reason));
    if let Some(trouble) = &of.trouble {
        text += &format!("but: {}\n", plain(trouble));
    }
    if !of.hosts.is_empty() {
        let hosts: Vec<String> = of.hosts.iter().map(|(host, slots)| format!("{} ({slots})", plain(host))).collect();
        text += &format!("on: {}\n", hosts.join(", "));
    }
    for changed in &of.changes {
        let ago = UNIX_EPOCH + Duration::from_millis(changed.at);
        let ago = common::short(ago.elapsed().unwrap_or_default());
        text += &format!("{ago} ago, from {} to {}: {}\n", changed.from, changed.to, plain(&changed.reason));
    }
    text
}
