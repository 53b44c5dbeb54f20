//! A NumPy array, row by row: its first dimension counts rows, the others are those of the input.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use half::f16;
use npyz::{DType, NpyHeader, Order};
use sluice_core::{Datatype, Tensor};

use super::convert::{Number, Packing, Precision};
use super::source::Source;
use super::{Field, Item, Reading, Rows};
use crate::takes::InputSpec;

/// An array that is read row by row, for an input.
pub(super) struct Array<R> {
    reader: R,
    datatype: Datatype,
    big_endian: bool,
    /// Of a row, as the input has it.
    shape: Vec<i64>,
    pub(super) rows: u64,
    row_bytes: usize,
}

impl<R: Read> Array<R> {
    pub(super) fn open(mut reader: R, spec: &InputSpec) -> Result<Self> {
        let header = NpyHeader::from_reader(&mut reader).context("it is not a NumPy array")?;
        let DType::Plain(kind) = header.dtype() else {
            bail!("it is a structured array: save one array per input, in an NPZ archive")
        };
        let kind = kind.to_string();
        let datatype = datatype_of(&kind).with_context(|| {
            format!(
                "its dtype `{kind}` is none of numbers that models take: save array.astype(numpy.float32), or the like"
            )
        })?;
        ensure!(
            spec.datatype != Datatype::Bytes,
            "input `{}` takes text, which comes by JSON Lines or CSV, not by arrays",
            spec.name
        );
        if header.order() == Order::Fortran && header.shape().len() > 1 {
            bail!("it is in Fortran order, as pandas' to_numpy() gives it: save numpy.ascontiguousarray(array)");
        }
        let Some((&rows, inner)) = header.shape().split_first() else {
            bail!("it has no dimensions: the first one counts rows")
        };
        let found: Vec<i64> = inner.iter().map(|size| i64::try_from(*size)).collect::<Result<_, _>>()?;
        let values: usize = inner
            .iter()
            .try_fold(1_usize, |product, size| product.checked_mul(*size as usize))
            .context("its shape is too large")?;
        let row_bytes = values
            .checked_mul(datatype.size().unwrap_or(1))
            .filter(|bytes| *bytes < 1 << 31)
            .context("a row is too large")?;
        let shape = spec.fit(&found).map_err(|reason| {
            anyhow::anyhow!("it is an array of shape {:?}, whose first dimension counts rows: {reason}", header.shape())
        })?;
        let mut array = Self { reader, datatype, big_endian: kind.starts_with('>'), shape, rows, row_bytes };
        if rows == 0 {
            array.end()?;
        }
        Ok(array)
    }

    /// The next row; the outer error ends the array.
    pub(super) fn next_row(&mut self, spec: &InputSpec, reading: &Reading) -> Result<Result<Field, String>> {
        let mut data = BytesMut::zeroed(self.row_bytes);
        self.reader.read_exact(&mut data).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => anyhow::anyhow!("it ends before its last row"),
            _ => error.into(),
        })?;
        if self.big_endian {
            data.chunks_exact_mut(self.datatype.size().unwrap_or(1)).for_each(<[u8]>::reverse);
        }
        if self.datatype == spec.datatype {
            return Ok(Ok(Field { shape: self.shape.clone(), data }));
        }
        let packing = convert(self.datatype, &data, spec, reading.precision());
        Ok(packing.map(|packing| reading.field(spec, self.shape.clone(), packing)))
    }

    /// After the last row: reading to the end is what checks the checksum of what it came in.
    pub(super) fn end(&mut self) -> Result<()> {
        let more = std::io::copy(&mut self.reader.by_ref().take(1 << 20), &mut std::io::sink())?;
        ensure!(more == 0, "it goes on after its last row; a file holds one array");
        Ok(())
    }
}

/// `<f4` and the like.
fn datatype_of(kind: &str) -> Option<Datatype> {
    Some(match kind.trim_start_matches(['<', '>', '|']) {
        "b1" => Datatype::Bool,
        "u1" => Datatype::Uint8,
        "u2" => Datatype::Uint16,
        "u4" => Datatype::Uint32,
        "u8" => Datatype::Uint64,
        "i1" => Datatype::Int8,
        "i2" => Datatype::Int16,
        "i4" => Datatype::Int32,
        "i8" => Datatype::Int64,
        "f2" => Datatype::Fp16,
        "f4" => Datatype::Fp32,
        "f8" => Datatype::Fp64,
        _ => return None,
    })
}

/// NumPy's default is 64 bits: numbers are converted where they fit.
fn convert(from: Datatype, data: &[u8], spec: &InputSpec, precision: Precision) -> Result<Packing, String> {
    let mut packing = Packing::new(spec, precision, data.len() / from.size().unwrap_or(1));
    macro_rules! each {
        ($type:ty, $number:expr) => {
            for (index, bytes) in data.as_chunks().0.iter().enumerate() {
                let number = $number(<$type>::from_le_bytes(*bytes));
                packing.number(number).map_err(|reason| format!("`{}`: value {index}: {reason}", spec.name))?;
            }
        };
    }
    let int = |value: i64| Number::Int(i128::from(value));
    match from {
        Datatype::Bool => each!(u8, |value| Number::Int(i128::from(value != 0))),
        Datatype::Uint8 => each!(u8, |value| int(i64::from(value))),
        Datatype::Uint16 => each!(u16, |value| int(i64::from(value))),
        Datatype::Uint32 => each!(u32, |value| int(i64::from(value))),
        Datatype::Uint64 => each!(u64, |value| Number::Int(i128::from(value))),
        Datatype::Int8 => each!(i8, |value| int(i64::from(value))),
        Datatype::Int16 => each!(i16, |value| int(i64::from(value))),
        Datatype::Int32 => each!(i32, |value| int(i64::from(value))),
        Datatype::Int64 => each!(i64, int),
        Datatype::Fp16 => each!(f16, |value: f16| Number::Binary(value.to_f64())),
        Datatype::Fp32 => each!(f32, |value| Number::Binary(f64::from(value))),
        Datatype::Fp64 => each!(f64, Number::Binary),
        Datatype::Bf16 | Datatype::Bytes => return Err(format!("arrays of {from} are not read")),
    }
    Ok(packing)
}

pub(super) fn rows(source: Source, reading: &Reading) -> Result<Rows> {
    let [spec] = &reading.inputs[..] else {
        bail!("the model has {} inputs: give them in one NPZ archive, by their names", reading.inputs.len());
    };
    let (spec, reading) = (spec.clone(), reading.clone());
    let mut array = Array::open(source.bytes, &spec)?;
    let rows = array.rows;
    let one = move |line| {
        let row = array.next_row(&spec, &reading)?.map(|field| vec![field]);
        if line == rows {
            array.end()?;
        }
        Ok(Item { line, row })
    };
    Ok(Box::new((1..=rows).map(one)))
}

/// A whole NPY file as a tensor, for a single request.
pub fn read_array(path: &Path, spec: &InputSpec, reading: &Reading) -> Result<Tensor> {
    let mut array = Array::open(BufReader::new(File::open(path)?), spec)?;
    let mut data = BytesMut::new();
    for row in 1..=array.rows {
        let field = array.next_row(spec, reading)?.map_err(|reason| anyhow::anyhow!("row {row}: {reason}"))?;
        data.extend_from_slice(&field.data);
    }
    array.end()?;
    let mut shape = vec![array.rows as i64];
    shape.extend(array.shape);
    Ok(Tensor { name: spec.name.clone(), datatype: spec.datatype, shape, data: data.freeze() })
}
