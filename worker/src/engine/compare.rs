//! Whether two outputs are the same, but for rounding.

use sluice_core::{Datatype, Tensor};

/// How much two outputs differ, if it is more than rounding; infinite where it is no matter of amount, such as a number that is none in
/// the other.
pub fn difference(one: &Tensor, other: &Tensor) -> Option<f64> {
    if one.shape != other.shape {
        return Some(f64::INFINITY);
    }
    let (Some(one_values), Some(other_values)) = (floats(one), floats(other)) else {
        return (one.data != other.data).then_some(f64::INFINITY);
    };
    let tolerance = if matches!(one.datatype, Datatype::Fp16 | Datatype::Bf16) { 3e-2 } else { 1e-3 };
    let finite = one_values.iter().map(|value| value.abs()).filter(|value| value.is_finite());
    let scale = finite.fold(1e-3_f64, f64::max);
    let apart = |(one, other): (&f64, &f64)| match (one.is_nan(), other.is_nan()) {
        (true, true) => 0.0,
        // The same infinity is the same; its difference would be no number.
        (false, false) if one == other => 0.0,
        (false, false) => (one - other).abs(),
        _ => f64::INFINITY,
    };
    let largest = one_values.iter().zip(&other_values).map(apart).fold(0.0, f64::max);
    (largest > tolerance * scale).then_some(largest)
}

fn floats(tensor: &Tensor) -> Option<Vec<f64>> {
    let data = &tensor.data;
    Some(match tensor.datatype {
        Datatype::Fp64 => data.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect(),
        Datatype::Fp32 => data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes).into()).collect(),
        Datatype::Fp16 => data.as_chunks().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes).into()).collect(),
        Datatype::Bf16 => data.as_chunks().0.iter().map(|bytes| half::bf16::from_le_bytes(*bytes).into()).collect(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor { name: "y".into(), datatype: Datatype::Fp32, shape: vec![1, values.len() as i64], data: data.into() }
    }

    fn apart(one: &[f32], other: &[f32]) -> Option<f64> {
        difference(&tensor(one), &tensor(other))
    }

    #[test]
    fn rounding_is_no_difference_and_a_number_that_is_none_is_one() {
        let (nan, infinity) = (f32::NAN, f32::INFINITY);
        assert_eq!(apart(&[1.0, 2.0], &[1.0, 2.000_001]), None);
        assert_eq!(apart(&[1.0], &[1.5]), Some(0.5));
        assert_eq!(apart(&[nan, 1.0], &[1.0, 1.0]), Some(f64::INFINITY), "not a number, alone");
        assert_eq!(apart(&[1.0, 1.0], &[1.0, nan]), Some(f64::INFINITY), "not a number, in a batch");
        assert_eq!(apart(&[nan, infinity], &[nan, infinity]), None, "the same");
        assert_eq!(apart(&[infinity], &[-infinity]), Some(f64::INFINITY));
        assert_eq!(apart(&[infinity, 1.0], &[infinity, 1.5]), Some(0.5), "an infinity hides nothing");
        assert_eq!(apart(&[1.0], &[1.0, 1.0]), Some(f64::INFINITY), "another shape");
    }
}
