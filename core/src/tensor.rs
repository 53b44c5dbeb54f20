//! A named tensor as it travels: little-endian, row-major bytes that are shared, never copied.

use bytes::Bytes;

use crate::Datatype;

/// More dimensions than any model takes; a bound on what a hostile shape can cost.
const MAX_RANK: usize = 16;

/// A named, typed, shaped block of bytes. The first dimension counts rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// The input's or output's name.
    pub name: String,
    /// The element type.
    pub datatype: Datatype,
    /// The dimensions; the first counts rows.
    pub shape: Vec<i64>,
    /// Elements in row-major order, little-endian; BYTES elements each follow their length as 4 bytes.
    pub data: Bytes,
}

impl Tensor {
    /// The number of rows: the first dimension.
    pub fn rows(&self) -> usize {
        self.shape.first().map_or(0, |rows| *rows as usize)
    }

    /// Checks that the shape is usable and that the data fill it exactly. The error does not name the tensor.
    pub fn check(&self) -> Result<(), String> {
        let elements = element_count(&self.shape)?;
        let Some(size) = self.datatype.size() else { return check_prefixed(&self.data, elements, &self.shape) };
        let needed = elements.checked_mul(size).ok_or_else(|| format!("shape {:?} is too large", self.shape))?;
        if self.data.len() != needed {
            return Err(format!(
                "{} bytes for shape {:?} of {}, which takes {needed}",
                self.data.len(),
                self.shape,
                self.datatype
            ));
        }
        if self.datatype == Datatype::Bool
            && let Some(at) = self.data.iter().position(|byte| *byte > 1)
        {
            return Err(format!("byte {} at index {at} is not a BOOL: 0 or 1", self.data[at]));
        }
        Ok(())
    }
}

/// How many elements a shape holds, if the shape is one that a request may have.
pub fn element_count(shape: &[i64]) -> Result<usize, String> {
    if shape.is_empty() {
        return Err("shape [] has no first dimension to count rows".into());
    }
    if shape.len() > MAX_RANK {
        return Err(format!("a shape of {} dimensions; at most {MAX_RANK} are taken", shape.len()));
    }
    if shape[0] == 0 {
        return Err(format!("shape {shape:?} has no rows"));
    }
    shape.iter().try_fold(1_usize, |product, &dimension| {
        let dimension = usize::try_from(dimension).map_err(|_| format!("shape {shape:?} has a negative dimension"))?;
        product.checked_mul(dimension).ok_or_else(|| format!("shape {shape:?} is too large"))
    })
}

/// Walks length-prefixed elements (Open Inference Protocol, "Binary Tensor Data Extension").
fn check_prefixed(data: &[u8], elements: usize, shape: &[i64]) -> Result<(), String> {
    let mut rest = data;
    let mut found = 0;
    while !rest.is_empty() {
        let Some((prefix, after)) = rest.split_first_chunk::<4>() else {
            return Err(format!("BYTES element {found} is cut inside its 4-byte length"));
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        if after.len() < length {
            return Err(format!("BYTES element {found} says {length} bytes, {} are left", after.len()));
        }
        rest = &after[length..];
        found += 1;
    }
    if found == elements {
        Ok(())
    } else {
        Err(format!("{found} BYTES elements for shape {shape:?}, which takes {elements}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(datatype: Datatype, shape: &[i64], data: &[u8]) -> Tensor {
        Tensor { name: "x".into(), datatype, shape: shape.into(), data: Bytes::copy_from_slice(data) }
    }

    #[test]
    fn data_must_fill_the_shape_exactly() {
        assert!(tensor(Datatype::Fp32, &[2, 1], &[0; 8]).check().is_ok());
        let cases: [(Tensor, &str); 8] = [
            (tensor(Datatype::Fp32, &[2, 1], &[0; 7]), "7 bytes for shape [2, 1] of FP32, which takes 8"),
            (tensor(Datatype::Fp32, &[], &[]), "has no first dimension"),
            (tensor(Datatype::Fp32, &[0, 4], &[]), "has no rows"),
            (tensor(Datatype::Fp32, &[1, -4], &[]), "negative"),
            (tensor(Datatype::Fp64, &[i64::MAX, i64::MAX], &[]), "too large"),
            (tensor(Datatype::Bool, &[2], &[1, 7]), "byte 7 at index 1 is not a BOOL"),
            (tensor(Datatype::Bytes, &[1], &[9, 0, 0, 0, 1]), "says 9 bytes, 1 are left"),
            (tensor(Datatype::Bytes, &[2], &[1, 0, 0, 0, 65]), "1 BYTES elements for shape [2]"),
        ];
        for (tensor, expected) in cases {
            let error = tensor.check().expect_err("an error");
            assert!(error.contains(expected), "`{error}` does not contain `{expected}`");
        }
    }
}
