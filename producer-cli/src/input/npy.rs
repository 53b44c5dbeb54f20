//! NumPy arrays: NPY files, and NPZ archives with one array per input. The first dimension counts rows.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use npyz::{DType, NpyHeader, Order};
use sluice_core::{Datatype, Tensor, codec};

use super::{Field, Item, Reading, Rows};
use crate::takes::InputSpec;

/// An array that is read row by row.
struct Array<R> {
    reader: R,
    datatype: Datatype,
    shape: Vec<i64>,
    rows: u64,
    row_bytes: usize,
}

impl<R: Read> Array<R> {
    fn open(mut reader: R) -> Result<Self> {
        let header = NpyHeader::from_reader(&mut reader).context("it is not a NumPy array")?;
        let DType::Plain(kind) = header.dtype() else { bail!("it is a structured array") };
        let kind = kind.to_string();
        let datatype = datatype_of(&kind).with_context(|| format!("its dtype `{kind}` is not one that models take"))?;
        if header.order() == Order::Fortran && header.shape().len() > 1 {
            bail!("it is in Fortran order: save it with numpy.ascontiguousarray");
        }
        let Some((&rows, inner)) = header.shape().split_first() else {
            bail!("it has no dimensions: rows are missing")
        };
        let shape: Vec<i64> = inner.iter().map(|size| i64::try_from(*size)).collect::<Result<_, _>>()?;
        let values: usize = inner
            .iter()
            .try_fold(1_usize, |product, size| product.checked_mul(*size as usize))
            .context("its shape is too large")?;
        let row_bytes = values
            .checked_mul(datatype.size().unwrap_or(1))
            .filter(|bytes| *bytes < 1 << 31)
            .context("a row is too large")?;
        Ok(Self { reader, datatype, shape, rows, row_bytes })
    }

    fn next_row(&mut self, spec: &InputSpec) -> Result<Result<Field, String>> {
        let mut data = BytesMut::zeroed(self.row_bytes);
        self.reader.read_exact(&mut data).context("it ends before its last row")?;
        Ok(self.fit(spec, data))
    }

    fn fit(&self, spec: &InputSpec, data: BytesMut) -> Result<Field, String> {
        let values: i64 = self.shape.iter().product();
        let same = self.shape.len() == spec.sizes.len()
            && spec.sizes.iter().zip(&self.shape).all(|(size, found)| size.is_none_or(|size| size as i64 == *found));
        let shape = if same { self.shape.clone() } else { spec.row_shape(values as usize)? };
        Ok(Field { shape, data: convert(self.datatype, spec.datatype, data)? })
    }
}

/// `<f4` and the like, little-endian or of one byte.
fn datatype_of(kind: &str) -> Option<Datatype> {
    Some(match kind.trim_start_matches(['<', '|']) {
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
fn convert(from: Datatype, to: Datatype, data: BytesMut) -> Result<BytesMut, String> {
    if from == to {
        return Ok(data);
    }
    let tensor = Tensor { name: String::new(), datatype: from, shape: vec![], data: data.freeze() };
    let converted: Bytes = codec::data_from_json(to, &codec::data_as_json(&tensor))?;
    Ok(BytesMut::from(&converted[..]))
}

pub(super) fn rows(reader: Box<dyn Read + Send>, reading: &Reading) -> Result<Rows> {
    let [_] = &reading.inputs[..] else {
        bail!("the model has {} inputs: give them in one NPZ archive, by their names", reading.inputs.len());
    };
    let inputs = reading.inputs.clone();
    let mut array = Array::open(reader)?;
    let rows = array.rows;
    Ok(Box::new((1..=rows).map(move |line| {
        let field = array.next_row(&inputs[0])?;
        Ok(Item { line, row: field.map(|field| vec![field]) })
    })))
}

type Member = Array<Box<dyn Read + Send>>;

/// Each array is read by itself, so that none is held whole.
pub(super) fn archive_rows(path: &Path, reading: &Reading) -> Result<Rows> {
    let inputs = reading.inputs.clone();
    let mut arrays = Vec::new();
    for input in inputs.iter() {
        arrays.push(member(path, &input.name)?);
    }
    let rows = arrays[0].rows;
    if let Some((input, array)) = inputs.iter().zip(&arrays).find(|(_, array)| array.rows != rows) {
        bail!("`{}` has {} rows, `{}` has {rows}", input.name, array.rows, inputs[0].name);
    }
    Ok(Box::new((1..=rows).map(move |line| {
        let mut row: Result<Vec<Field>, String> = Ok(Vec::with_capacity(arrays.len()));
        for (array, input) in arrays.iter_mut().zip(inputs.iter()) {
            let field = array.next_row(input)?;
            row = row.and_then(|mut fields| {
                fields.push(field?);
                Ok(fields)
            });
        }
        Ok(Item { line, row })
    })))
}

/// Opens one array of an archive, as a stream of its own.
fn member(path: &Path, input: &str) -> Result<Member> {
    let mut archive = zip::ZipArchive::new(BufReader::new(File::open(path)?)).context("it is not an NPZ archive")?;
    let name = format!("{input}.npy");
    let Some(index) = archive.index_for_name(&name) else {
        let names: Vec<_> =
            archive.file_names().flatten().map(|name| name.trim_end_matches(".npy").to_owned()).collect();
        bail!("it holds no array `{input}`; it holds {}", names.join(", "));
    };
    let (reader, mut sender) = std::io::pipe().context("cannot make a pipe")?;
    std::thread::spawn(move || {
        // An error ends the stream early, which the reader notices.
        if let Ok(mut member) = archive.by_index(index) {
            let _ = std::io::copy(&mut member, &mut sender);
        }
    });
    Array::open(Box::new(BufReader::with_capacity(1 << 16, reader)) as Box<dyn Read + Send>)
        .with_context(|| format!("its array `{input}`"))
}

/// A whole NPY file as a tensor, for a single request.
pub fn read_array(path: &Path, spec: &InputSpec) -> Result<Tensor> {
    let mut array = Array::open(BufReader::new(File::open(path)?))?;
    let mut rows = BytesMut::new();
    let mut inner = Vec::new();
    for _ in 0..array.rows {
        let field = array.next_row(spec)?.map_err(anyhow::Error::msg)?;
        rows.extend_from_slice(&field.data);
        inner = field.shape;
    }
    let mut shape = vec![array.rows as i64];
    shape.extend(inner);
    Ok(Tensor { name: spec.name.clone(), datatype: spec.datatype, shape, data: rows.freeze() })
}
