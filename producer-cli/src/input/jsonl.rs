//! JSON Lines: each line is a row, an object with one key per input, or the value alone if there is one input.

use std::io::{BufRead, BufReader, Read};

use anyhow::Result;
use bytes::BytesMut;
use serde_json::Value;
use sluice_core::codec;

use super::{Field, Item, Reading, Rows};
use crate::takes::InputSpec;

/// A line without an end would otherwise be read into memory whole.
const LONGEST_LINE: u64 = 64 * 1024 * 1024;

pub(super) fn rows(reader: Box<dyn Read + Send>, reading: &Reading) -> Result<Rows> {
    let mut reader = BufReader::with_capacity(1 << 16, reader);
    let inputs = reading.inputs.clone();
    let mut line = 0;
    let mut text = Vec::new();
    Ok(Box::new(std::iter::from_fn(move || {
        loop {
            text.clear();
            line += 1;
            match reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut text) {
                Ok(0) => return None,
                Ok(read) if read as u64 == LONGEST_LINE => {
                    return Some(Err(anyhow::anyhow!("line {line} is longer than {LONGEST_LINE} bytes")));
                }
                Ok(_) => {}
                Err(error) => return Some(Err(error.into())),
            }
            if text.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let row = serde_json::from_slice(&text).map_err(|error| format!("it is not JSON: {error}"));
            return Some(Ok(Item { line, row: row.and_then(|value| parse(&inputs, value)) }));
        }
    })))
}

fn parse(inputs: &[InputSpec], value: Value) -> Result<Vec<Field>, String> {
    match value {
        Value::Object(mut object) => {
            let mut field = |spec: &InputSpec| {
                let value = object
                    .remove(&spec.name)
                    .ok_or_else(|| format!("it has no `{}` ({})", spec.name, spec.signature()))?;
                field(spec, &value)
            };
            // Identifiers and labels may stand beside the inputs: other keys are passed over.
            inputs.iter().map(&mut field).collect()
        }
        value => match inputs {
            [spec] => Ok(vec![field(spec, &value)?]),
            _ => Err(format!("the model has {} inputs, so a line is an object with a key for each", inputs.len())),
        },
    }
}

fn field(spec: &InputSpec, value: &Value) -> Result<Field, String> {
    let wrong = |reason: String| format!("`{}`: {reason}", spec.name);
    let mut shape = shape_of(value);
    let values: i64 = shape.iter().product();
    let fits = shape.len() == spec.sizes.len()
        && spec.sizes.iter().zip(&shape).all(|(size, found)| size.is_none_or(|size| size as i64 == *found));
    if !fits {
        // A flat array may stand for a shaped one.
        if shape.len() > 1 {
            return Err(wrong(format!("its shape is {shape:?}, the input takes {}", spec.signature())));
        }
        shape = spec.row_shape(values as usize).map_err(wrong)?;
    }
    let data = codec::data_from_json(spec.datatype, &array(value)).map_err(wrong)?;
    let needed = spec.datatype.size().map(|size| size * shape.iter().product::<i64>() as usize);
    if needed.is_some_and(|needed| needed != data.len()) {
        return Err(wrong(format!("its arrays are not all of the same length: {shape:?}")));
    }
    Ok(Field { shape, data: BytesMut::from(&data[..]) })
}

/// The lengths of the first arrays at each depth.
fn shape_of(value: &Value) -> Vec<i64> {
    let mut shape = Vec::new();
    let mut value = value;
    while let Value::Array(items) = value {
        shape.push(items.len() as i64);
        match items.first() {
            Some(first) => value = first,
            None => break,
        }
    }
    shape
}

fn array(value: &Value) -> Value {
    match value {
        Value::Array(_) => value.clone(),
        scalar => Value::Array(vec![scalar.clone()]),
    }
}
