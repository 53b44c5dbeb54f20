//! What a model takes: told by a worker that serves it, or by `--takes`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use serde::Deserialize;
use sluice_core::manifest::WhileStopped;
use sluice_core::names::describe_topic;
use sluice_core::print::count;
use sluice_core::report::State;
use sluice_core::{Broker, BrokerError, Datatype, ModelName};

use crate::cli::Takes;
use crate::common::plain;
use crate::reports::Hosts;

/// How long a worker may take to tell.
const PATIENCE: Duration = Duration::from_millis(1500);

/// An input of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputSpec {
    pub name: String,
    pub datatype: Datatype,
    /// The sizes beyond the rows; `None` where they vary.
    pub sizes: Vec<Option<usize>>,
}

impl InputSpec {
    /// How many values a row has, if that is fixed.
    pub fn values_per_row(&self) -> Option<usize> {
        self.sizes.iter().copied().product()
    }

    /// The shape of a row of so many values.
    pub fn row_shape(&self, values: usize) -> Result<Vec<i64>, String> {
        let known: usize = self.sizes.iter().flatten().product();
        let varying = self.sizes.iter().filter(|size| size.is_none()).count();
        let fits = match varying {
            0 => known == values,
            1 => known > 0 && values > 0 && values.is_multiple_of(known),
            _ => return Err(format!("input `{}` has several sizes that vary: use JSON Lines", self.name)),
        };
        if !fits {
            let values = count(values, "value", "values");
            return Err(format!("{values} for input `{}` ({})", self.name, self.signature()));
        }
        Ok(self.sizes.iter().map(|size| size.unwrap_or(values / known.max(1)) as i64).collect())
    }

    /// The shape that a row of this shape has as the input; one dimension may stand for several. Values of another shape are
    /// other values, even if there are as many.
    pub fn fit(&self, found: &[i64]) -> Result<Vec<i64>, String> {
        let same = found.len() == self.sizes.len()
            && self.sizes.iter().zip(found).all(|(size, found)| size.is_none_or(|size| size as i64 == *found));
        if same {
            return Ok(found.to_vec());
        }
        match found {
            [] => self.row_shape(1),
            [values] => self.row_shape(usize::try_from(*values).unwrap_or(0)),
            _ => Err(format!("a row's shape is {found:?}, input `{}` takes {}", self.name, self.signature())),
        }
    }

    /// As `--takes` has it: `image:FP32:1x8x8`.
    pub fn told(&self) -> String {
        match self.sizes.is_empty() {
            true => format!("{}:{}", self.name, self.datatype),
            false => format!("{}:{}:{}", self.name, self.datatype, self.shown_sizes()),
        }
    }

    /// `FP32, 64 per row`.
    pub fn signature(&self) -> String {
        if self.sizes.is_empty() {
            format!("{}, one value per row", self.datatype)
        } else {
            format!("{}, {} per row", self.datatype, self.shown_sizes())
        }
    }

    fn shown_sizes(&self) -> String {
        let sizes: Vec<_> = self.sizes.iter().map(|size| size.map_or("?".into(), |size| size.to_string())).collect();
        sizes.join("x")
    }
}

/// What is known of a model.
#[derive(Debug)]
pub struct Model {
    pub inputs: Vec<InputSpec>,
    /// What a message may have, if known.
    pub body_bytes: Option<u64>,
    /// Why no host could load it, if that is so.
    pub failed: Option<String>,
}

#[derive(Deserialize)]
struct Description {
    inputs: Vec<DescribedInput>,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Deserialize)]
struct DescribedInput {
    name: String,
    datatype: Datatype,
    shape: Vec<i64>,
}

#[derive(Deserialize, Default)]
struct Parameters {
    body_bytes: Option<u64>,
    stopped: Option<WhileStopped>,
    /// Where it was tried, and why it did not load.
    failed: Option<String>,
}

/// Tells the submitter if the model is stopped or does not load; an error if it refuses requests meanwhile. Gives why it does not load.
pub async fn warn_if_stopped(broker: &Arc<dyn Broker>, model: &ModelName) -> Result<Option<String>> {
    Ok(describe(broker, model).await?.and_then(|description| description.parameters.failed))
}

/// Why no host could load a model, if that is so now.
pub async fn why_it_does_not_load(broker: &Arc<dyn Broker>, model: &ModelName) -> Option<String> {
    let answer = broker.ask(&describe_topic(model), Bytes::new(), PATIENCE).await.ok()?;
    match answer {
        Some(answer) => serde_json::from_slice::<Description>(&answer).ok()?.parameters.failed,
        None => said_by_hosts(broker, model).await,
    }
}

/// Without a scaler, and with no host that serves it, what hosts report; nothing for whoever may not listen to them.
async fn said_by_hosts(broker: &Arc<dyn Broker>, model: &ModelName) -> Option<String> {
    let hosts = Hosts::gather(broker).await.ok()?;
    let reports = hosts.of(model);
    if reports.iter().any(|(_, report)| report.serving.is_some()) {
        return None;
    }
    let failed = reports.iter().find(|(_, report)| report.state == State::Failed);
    failed.map(|(host, report)| format!("{host}: {}", report.reason.as_deref().unwrap_or("no reason given")))
}

/// What a worker says of the model, if there is one.
async fn describe(broker: &Arc<dyn Broker>, model: &ModelName) -> Result<Option<Description>> {
    let Some(answer) = broker.ask(&describe_topic(model), Bytes::new(), PATIENCE).await? else { return Ok(None) };
    let description: Description = serde_json::from_slice(&answer)
        .with_context(|| format!("model `{model}` is described in a way that cannot be read"))?;
    match description.parameters.stopped {
        Some(WhileStopped::Refuse) => {
            bail!("model `{model}` is stopped and refuses requests: `sluice model start {model}` lets it serve")
        }
        Some(WhileStopped::Wait) => eprintln!("note: model `{model}` is stopped: requests wait until it is started"),
        None => {}
    }
    if let Some(reason) = &description.parameters.failed {
        eprintln!("note: {}", does_not_load(model, reason));
    }
    Ok(Some(description))
}

/// For people.
pub fn does_not_load(model: &ModelName, reason: &str) -> String {
    format!(
        "model `{model}` does not load, so requests wait in its queue: {}; `sluice model show {model}`",
        plain(reason)
    )
}

/// Learns what the model takes.
pub async fn learn(broker: &Arc<dyn Broker>, model: &ModelName, takes: &Takes) -> Result<Model> {
    if !takes.takes.is_empty() {
        let inputs = takes.takes.iter().map(|text| parse(text)).collect::<Result<_>>()?;
        let failed = warn_if_stopped(broker, model).await?;
        return Ok(Model { inputs, body_bytes: None, failed });
    }
    let Some(description) = describe(broker, model).await? else {
        // Nobody serves it: perhaps it does not exist at all.
        if let Err(error @ BrokerError::UnknownModel(_)) = broker.depth(model).await {
            return Err(error.into());
        }
        if let Some(reason) = said_by_hosts(broker, model).await {
            bail!(does_not_load(model, &reason));
        }
        bail!(
            "no worker serves model `{model}` now, so nobody tells what it takes: start one, or say it with --takes \
             NAME:DATATYPE:SIZES, such as --takes image:FP32:64"
        );
    };
    let input = |described: DescribedInput| InputSpec {
        name: described.name,
        datatype: described.datatype,
        sizes: described.shape.iter().skip(1).map(|size| usize::try_from(*size).ok()).collect(),
    };
    Ok(Model {
        inputs: description.inputs.into_iter().map(input).collect(),
        body_bytes: description.parameters.body_bytes,
        failed: description.parameters.failed,
    })
}

fn parse(text: &str) -> Result<InputSpec> {
    let wrong = || format!("--takes `{text}` is not NAME:DATATYPE:SIZES, such as image:FP32:1x8x8 or ids:INT64:?");
    let mut parts = text.split(':');
    let (Some(name), Some(datatype), sizes, None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        bail!(wrong());
    };
    let datatype = datatype.to_ascii_uppercase().parse().map_err(anyhow::Error::msg).with_context(wrong)?;
    let size = |size: &str| match size {
        "?" => Ok(None),
        number => number.parse().map(Some).with_context(wrong),
    };
    let sizes = sizes.filter(|sizes| !sizes.is_empty()).map(|sizes| sizes.split('x').map(size).collect::<Result<_>>());
    if name.is_empty() {
        bail!(wrong());
    }
    Ok(InputSpec { name: name.into(), datatype, sizes: sizes.transpose()?.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_model_takes_can_be_said() {
        let spec = parse("image:fp32:1x8x8").expect("a good one");
        assert_eq!((spec.values_per_row(), spec.signature().as_str()), (Some(64), "FP32, 1x8x8 per row"));
        assert_eq!(spec.row_shape(64), Ok(vec![1, 8, 8]));
        assert!(spec.row_shape(63).is_err());
        assert_eq!(spec.fit(&[64]), Ok(vec![1, 8, 8]));
        for other in [&[8, 8, 1][..], &[8, 8], &[8], &[1, 64], &[]] {
            assert!(spec.fit(other).is_err(), "{other:?}");
        }
        let spec = parse("ids:INT64:?x2").expect("a good one");
        assert_eq!(spec.values_per_row(), None);
        assert_eq!(spec.row_shape(6), Ok(vec![3, 2]));
        assert_eq!(parse("age:INT64").expect("a good one").row_shape(1), Ok(vec![]));
        for told in ["image:FP32:1x8x8", "ids:INT64:?x2", "age:INT64"] {
            assert_eq!(parse(told).expect("a good one").told(), told);
        }
        for bad in ["x", "x:FP8:1", ":FP32:1", "x:FP32:a", "x:FP32:1:2"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
