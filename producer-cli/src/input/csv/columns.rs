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
            // Where names are numbers, it has to be said which of both is meant.
            let number =
                if names.is_some_and(|names| names.iter().any(|name| is_number(name.trim()))) { "number:" } else { "" };
            bail!(
                "its first column has no name, as pandas and R write the names of rows: choose the columns, such as --columns \
                 {number}1-{} without it or {number}0-{0} with it",
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
    parts.any(|part| match By::of(part) {
        (By::Number, _) => false,
        (By::Name, _) => true,
        (By::Either, part) => {
            !is_number(part) && !part.split_once('-').is_some_and(|(from, to)| is_number(from) && is_number(to))
        }
    })
}

/// How a column is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// Digits are a number, anything else a name.
    Either,
    Number,
    Name,
}

impl By {
    /// How it is told, and the column or the range.
    fn of(part: &str) -> (Self, &str) {
        match part.split_once(':') {
            Some(("number", part)) => (Self::Number, part),
            Some(("name", part)) => (Self::Name, part),
            _ => (Self::Either, part),
        }
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn columns_of(text: &str, names: Option<&StringRecord>, width: usize) -> Result<Vec<usize>> {
    let named = |text: &str| names.and_then(|names| names.iter().position(|name| name.trim() == text));
    let mut columns = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        // A name may hold a colon or a dash.
        let (by, part) = if named(part).is_some() { (By::Either, part) } else { By::of(part) };
        let column = |text: &str| column(by, text, names, width);
        match part.split_once('-').filter(|_| by == By::Number || named(part).is_none()) {
            Some((from, to)) if is_number(from) || named(from).is_some() => {
                let (from, to) = (column(from)?, column(to)?);
                if from > to {
                    bail!("`{part}` counts backwards");
                }
                columns.extend(from..=to);
            }
            _ => columns.push(column(part)?),
        }
    }
    if columns.is_empty() {
        bail!("it names no column");
    }
    Ok(columns)
}

/// One column. A number that is the name of another column is not taken for either.
fn column(by: By, text: &str, names: Option<&StringRecord>, width: usize) -> Result<usize> {
    let name_at = |at: usize| names.and_then(|names| names.get(at)).map(str::trim);
    let named = (0..width).find(|at| name_at(*at) == Some(text));
    let absent = || format!("there is no column `{text}`");
    if by == By::Name || by == By::Either && !is_number(text) {
        return named.with_context(absent);
    }
    let number: usize = text.parse().with_context(absent)?;
    if let (By::Either, Some(at)) = (by, named)
        && name_at(number) != Some(text)
    {
        let numbered = match name_at(number) {
            Some(name) => format!("column {number}, which is named `{name}`"),
            None => format!("column {number}, which is not there"),
        };
        bail!(
            "`{text}` may be {numbered}, or the column named `{text}`, which is column {at} counted from 0: say number:{text} or \
             name:{text}, and number:FROM-TO or name:FROM-TO for several"
        );
    }
    if number >= width {
        bail!("there is no column {number}: there are {width}, counted from 0");
    }
    Ok(number)
}
