//! CSV: some columns make an input, in row-major order.

use std::io::Read;

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use csv::{ReaderBuilder, StringRecord};
use sluice_core::codec;

use super::{Field, Item, Reading, Rows};
use crate::cli::Header;
use crate::takes::InputSpec;

pub(super) fn rows(reader: Box<dyn Read + Send>, reading: &Reading) -> Result<Rows> {
    let mut records = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .buffer_capacity(1 << 16)
        .from_reader(reader)
        .into_records();
    let Some(first) = records.next().transpose().context("its first line is not CSV")? else {
        return Ok(Box::new(std::iter::empty()));
    };
    let named = match reading.header {
        Header::Yes => true,
        Header::No => false,
        Header::Auto => first.iter().any(|field| field.trim().parse::<f64>().is_err()),
    };
    let names = named.then(|| first.clone());
    let selections = select(&reading.inputs, &reading.columns, names.as_ref(), first.len())?;
    let inputs = reading.inputs.clone();
    let first = if named { None } else { Some(Ok(first)) };
    Ok(Box::new(first.into_iter().chain(records).map(move |record| match record {
        Ok(record) => {
            let line = record.position().map_or(0, csv::Position::line);
            Ok(Item { line, row: parse(&inputs, &selections, &record) })
        }
        // Text that is not UTF-8 spoils its line only.
        Err(error) => match error.kind() {
            csv::ErrorKind::Utf8 { pos, .. } => {
                Ok(Item { line: pos.as_ref().map_or(0, csv::Position::line), row: Err("it is not UTF-8".into()) })
            }
            _ => Err(error.into()),
        },
    })))
}

fn parse(inputs: &[InputSpec], selections: &[Vec<usize>], record: &StringRecord) -> Result<Vec<Field>, String> {
    let field = |(spec, columns): (&InputSpec, &Vec<usize>)| {
        let mut data = BytesMut::with_capacity(columns.len() * spec.datatype.size().unwrap_or(8));
        for column in columns {
            let text = record
                .get(*column)
                .ok_or_else(|| format!("it has {} columns, column {column} is missing", record.len()))?;
            codec::put_text(spec.datatype, text, &mut data).map_err(|reason| format!("column {column}: {reason}"))?;
        }
        Ok(Field { shape: spec.row_shape(columns.len())?, data })
    };
    inputs.iter().zip(selections).map(field).collect()
}

/// The columns of each input.
fn select(
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
        if let Some(values) = input.values_per_row()
            && values != width
        {
            let example = values.saturating_sub(1);
            bail!(
                "it has {width} columns, input `{}` takes {values} values: choose them, such as --columns 0-{example}",
                input.name
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
