//! Which columns of a CSV file make which input.

use anyhow::{Context, Result, bail};
use csv::StringRecord;
use sluice_core::print::count;

use crate::takes::InputSpec;

/// The columns of each input.
pub(super) fn select(
    inputs: &[InputSpec],
    given: &[String],
    names: Option<&StringRecord>,
    width: usize,
) -> Result<Vec<Vec<usize>>> {
    if given.is_empty() {
        let [input] = inputs else {
            bail!(
                "the model has {} inputs: give each its columns, such as --columns {}=0-7",
                inputs.len(),
                inputs[0].name
            );
        };
        let unnamed = names.and_then(|names| names.get(0)).is_some_and(|name| name.trim().is_empty());
        if unnamed && width > 1 {
            bail!(
                "its first column has no name, as pandas and R write the names of rows: choose the columns, such as --columns \
                 1-{} without it or 0-{0} with it",
                width - 1
            );
        }
        if let Some(values) = input.values_per_row()
            && values != width
        {
            let example = values.saturating_sub(1);
            bail!(
                "it has {}, input `{}` takes {}: choose them, such as --columns 0-{example}",
                count(width, "column", "columns"),
                input.name,
                count(values, "value", "values")
            );
        }
        return Ok(vec![(0..width).collect()]);
    }
    let mut selections: Vec<Option<Vec<usize>>> = vec![None; inputs.len()];
    for text in given {
        let (input, columns) = match text.split_once('=') {
            Some((name, columns)) => {
                let input = inputs.iter().position(|input| input.name == name);
                (input.with_context(|| format!("--columns `{text}`: the model has no input `{name}`"))?, columns)
            }
            None if inputs.len() == 1 => (0, text.as_str()),
            None => bail!("--columns `{text}`: the model has several inputs, so say NAME=COLUMNS"),
        };
        let columns = columns_of(columns, names, width).with_context(|| format!("--columns `{text}`"))?;
        inputs[input].row_shape(columns.len()).map_err(anyhow::Error::msg)?;
        selections[input] = Some(columns);
    }
    let missing = inputs.iter().zip(&selections).find(|(_, selection)| selection.is_none());
    if let Some((input, _)) = missing {
        bail!("no --columns for input `{}`", input.name);
    }
    Ok(selections.into_iter().flatten().collect())
}

/// Whether columns are chosen by name, so that there must be names.
pub(super) fn by_name(given: &[String]) -> bool {
    let columns = given.iter().map(|text| text.split_once('=').map_or(text.as_str(), |(_, columns)| columns));
    let mut parts = columns.flat_map(|columns| columns.split(',')).map(str::trim).filter(|part| !part.is_empty());
    let number = |text: &str| text.parse::<usize>().is_ok();
    parts.any(|part| !number(part) && !part.split_once('-').is_some_and(|(from, to)| number(from) && number(to)))
}

fn columns_of(text: &str, names: Option<&StringRecord>, width: usize) -> Result<Vec<usize>> {
    let number = |text: &str| -> Result<usize> {
        if let Some(at) = names.and_then(|names| names.iter().position(|name| name.trim() == text)) {
            return Ok(at);
        }
        let number: usize = text.parse().with_context(|| format!("there is no column `{text}`"))?;
        if number >= width {
            bail!("there is no column {number}: there are {width}, counted from 0");
        }
        Ok(number)
    };
    let mut columns = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part.split_once('-').and_then(|(from, to)| Some((number(from).ok()?, number(to)))) {
            // A name may hold a dash.
            Some((from, to)) if names.is_none_or(|names| !names.iter().any(|name| name == part)) => {
                let to = to?;
                if from > to {
                    bail!("`{part}` counts backwards");
                }
                columns.extend(from..=to);
            }
            _ => columns.push(number(part)?),
        }
    }
    if columns.is_empty() {
        bail!("it names no column");
    }
    Ok(columns)
}
