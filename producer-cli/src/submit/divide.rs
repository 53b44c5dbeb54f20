//! Which failed messages are asked again in parts, and what the parts are: one bad row must not cost its neighbours their answers.

use std::ops::Range;

use bytes::Bytes;
use sluice_core::codec::{self, ContentType};
use sluice_core::{Datatype, ErrorCode, Failure, InferRequest, Tensor};

/// Parts at a time: 16 rows are asked one by one at once, and one bad row of 65,536 is found with 64 requests.
const PARTS: u32 = 16;

/// Whether one row may be what the others failed for. Where a worker died, the row would kill more of them; the other codes are of the
/// request as a whole.
pub fn may_be_one_rows(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::InvalidArgument | ErrorCode::ModelFailed | ErrorCode::ResourceExhausted)
}

/// The parts of several rows, in order.
pub fn parts(rows: &Range<u32>) -> impl Iterator<Item = Range<u32>> + use<> {
    let (end, step) = (rows.end, (rows.end - rows.start).div_ceil(PARTS).max(1));
    (rows.start..end).step_by(step as usize).map(move |start| start..end.min(start + step))
}

/// A message with some of the rows of a message.
pub fn part(body: &Bytes, rows: &Range<u32>) -> Result<Bytes, Failure> {
    let whole = codec::decode_request(ContentType::MessagePack, body)?;
    let inputs = whole.inputs.iter().map(|input| cut(input, rows)).collect::<Result<_, _>>()?;
    let part = InferRequest { inputs, outputs: whole.outputs };
    Ok(codec::encode_request(ContentType::MessagePack, &part))
}

fn cut(input: &Tensor, rows: &Range<u32>) -> Result<Tensor, Failure> {
    let outside = || Failure::invalid(format!("input `{}` has no rows {rows:?}", input.name));
    let (start, end, all) = (rows.start as usize, rows.end as usize, input.rows());
    if start > end || end > all {
        return Err(outside());
    }
    let at = |row: usize| -> Option<usize> {
        match input.datatype {
            // Elements of their own lengths, each after its length.
            Datatype::Bytes => {
                let elements = input.shape[1..].iter().product::<i64>() as usize * row;
                (0..elements).try_fold(0_usize, |at, _| {
                    let length = input.data.get(at..at + 4)?.try_into().ok()?;
                    Some(at + 4 + u32::from_le_bytes(length) as usize)
                })
            }
            _ => Some(input.data.len() / all.max(1) * row),
        }
    };
    let (from, to) = at(start).zip(at(end)).filter(|(_, to)| *to <= input.data.len()).ok_or_else(outside)?;
    let mut shape = input.shape.clone();
    shape[0] = (end - start) as i64;
    Ok(Tensor { shape, data: input.data.slice(from..to), ..input.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_all_rows_and_in_the_end_single_ones() {
        let of = |rows: Range<u32>| parts(&rows).collect::<Vec<_>>();
        assert_eq!(of(0..16).len(), 16);
        assert_eq!(of(3..5), [3..4, 4..5]);
        assert_eq!(of(0..20), (0..10).map(|at| 2 * at..2 * at + 2).collect::<Vec<_>>());
        let mut rows = 0..65_536;
        let mut asked = 0;
        while rows.len() > 1 {
            let parts = of(rows.clone());
            assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert_eq!((parts[0].start, parts[parts.len() - 1].end), (rows.start, rows.end));
            asked += parts.len();
            rows = parts[parts.len() / 2].clone();
        }
        assert_eq!(asked, 64);
    }

    #[test]
    fn a_part_has_its_rows_of_each_input() {
        let input = |name: &str, datatype, shape: &[i64], data: &'static [u8]| Tensor {
            name: name.into(),
            datatype,
            shape: shape.to_vec(),
            data: Bytes::from_static(data),
        };
        let inputs = vec![
            input("x", Datatype::Uint8, &[3, 2], &[1, 2, 3, 4, 5, 6]),
            input("word", Datatype::Bytes, &[3], b"\x01\0\0\0a\0\0\0\0\x02\0\0\0bc"),
        ];
        let whole = InferRequest { inputs, outputs: vec!["y".into()] };
        let body = codec::encode_request(ContentType::MessagePack, &whole);
        let decoded = |rows| codec::decode_request(ContentType::MessagePack, &part(&body, &rows).expect("a part"));
        let last = decoded(1..3).expect("a request");
        assert_eq!((&last.inputs[0].shape[..], &last.inputs[0].data[..]), (&[2, 2][..], &[3, 4, 5, 6][..]));
        assert_eq!((&last.inputs[1].shape[..], &last.inputs[1].data[..]), (&[2][..], &b"\0\0\0\0\x02\0\0\0bc"[..]));
        assert_eq!(last.outputs, whole.outputs);
        assert!(part(&body, &(2..4)).is_err());
    }
}
