//! `sluice dead`: requests that were given up, and why.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sluice_core::broker::{Broker, DeadLetter};
use sluice_core::codec::{self, ContentType};
use sluice_core::{ModelName, envelope};

use crate::cli::{Dead, DeadCommand, Global};
use crate::common::{self, plain};
use crate::table::Table;

/// How far back `show` looks for an id.
const SEARCHED: usize = 10_000;

pub async fn run(global: &Global, options: Dead) -> Result<ExitCode> {
    let broker = common::connect(global).await?;
    match options.command {
        DeadCommand::List { model, limit } => {
            let letters = letters(&broker, &model, limit).await?;
            if options.json {
                println!("{}", letters.iter().map(summary).collect::<Value>());
            } else if letters.is_empty() {
                println!("no request of model `{model}` was given up");
            } else {
                println!("{}", table(&letters));
            }
        }
        DeadCommand::Show { model, which } => {
            let letters = letters(&broker, &model, SEARCHED).await?;
            let found = match &which {
                None => letters.first(),
                Some(which) => {
                    letters.iter().find(|letter| letter.sequence.to_string() == *which || letter.id == *which)
                }
            };
            let letter = found.with_context(|| match which {
                Some(which) => format!(
                    "no request `{which}` of model `{model}` was given up; `sluice dead list {model}` lists them"
                ),
                None => format!("no request of model `{model}` was given up"),
            })?;
            println!("{:#}", whole(letter));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The newest; they hold what producers wrote, so not everybody who looks may read them.
async fn letters(broker: &Arc<dyn Broker>, model: &ModelName, limit: usize) -> Result<Vec<DeadLetter>> {
    let letters = broker.dead_letters(model, limit).await;
    letters.map_err(|error| common::denied(error, "read dead letters", "only `manager`"))
}

fn table(letters: &[DeadLetter]) -> Table {
    let mut table = Table::new(["NUMBER", "ID", "CODE", "ATTEMPTS", "HOST", "WHEN", "REASON"]);
    for letter in letters {
        let death = &letter.death;
        table.add_row([
            letter.sequence.to_string(),
            plain(&letter.id),
            death.code.to_string(),
            death.attempts.to_string(),
            plain(&death.host),
            when(death.at),
            plain(&death.reason.chars().take(120).collect::<String>()),
        ]);
    }
    table
}

fn when(at: u64) -> String {
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + std::time::Duration::from_millis(at)).to_string()
}

fn summary(letter: &DeadLetter) -> Value {
    let death = &letter.death;
    json!({
        "number": letter.sequence, "id": letter.id, "code": death.code, "reason": death.reason,
        "attempts": death.attempts, "host": death.host, "at": death.at,
    })
}

fn whole(letter: &DeadLetter) -> Value {
    let mut shown = summary(letter);
    shown["headers"] = letter.headers.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
    let content_type = letter.headers.iter().find(|(name, _)| name == envelope::CONTENT_TYPE);
    let content_type: ContentType = content_type.and_then(|(_, value)| value.parse().ok()).unwrap_or_default();
    shown["body"] = match codec::decode_request(content_type, &letter.body) {
        Ok(request) => {
            serde_json::from_slice(&codec::encode_request(ContentType::Json, &request)).unwrap_or(Value::Null)
        }
        Err(failure) => json!({ "bytes": letter.body.len(), "unreadable": failure.message }),
    };
    shown
}
