//! Runs requests together, finds the one that fails, and runs what is larger than a batch in pieces.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sluice_core::Tensor;

use super::{Blame, EngineError, Gathered, Model};

/// The outputs of one request, in the manifest's order, or why there are none.
pub type Outcome = Result<Vec<Tensor>, EngineError>;

/// Runs a batch. `gathered` is the whole batch, if it was prepared before; `note` is called before each execution
/// with its number of rows.
///
/// If a batch fails, its halves are run, and their halves, until whatever fails stands alone: its neighbours are
/// answered.
pub fn run_requests(
    model: &Arc<dyn Model>,
    requests: &[&[Tensor]],
    gathered: Option<Gathered>,
    max_rows: usize,
    note: &mut dyn FnMut(usize),
) -> Vec<Outcome> {
    let rows: usize = requests.iter().map(|request| rows_of(request)).sum();
    if let [request] = requests
        && rows > max_rows
    {
        return vec![run_in_pieces(model, request, max_rows, note)];
    }
    note(rows);
    let gathered = match gathered {
        Some(gathered) => Ok(gathered),
        None => Arc::clone(model).gather(requests),
    };
    match gathered.and_then(|run| run()) {
        Ok(outputs) => outputs.into_iter().map(Ok).collect(),
        Err(error) if requests.len() == 1 || error.blame == Blame::Process => {
            requests.iter().map(|_| Err(error.clone())).collect()
        }
        Err(_) => {
            let (one, other) = requests.split_at(requests.len() / 2);
            let mut outcomes = run_requests(model, one, None, max_rows, note);
            // Once the process is of no use, nothing more is tried.
            if let Some(Err(error)) =
                outcomes.iter().find(|outcome| matches!(outcome, Err(error) if error.blame == Blame::Process))
            {
                let error = error.clone();
                return requests.iter().map(|_| Err(error.clone())).collect();
            }
            outcomes.extend(run_requests(model, other, None, max_rows, note));
            outcomes
        }
    }
}

fn rows_of(request: &[Tensor]) -> usize {
    request.first().map_or(0, Tensor::rows)
}

fn run_in_pieces(model: &Arc<dyn Model>, request: &[Tensor], max_rows: usize, note: &mut dyn FnMut(usize)) -> Outcome {
    let rows = rows_of(request);
    let mut whole: Vec<(Tensor, BytesMut)> = Vec::new();
    let mut start = 0;
    while start < rows {
        let count = max_rows.min(rows - start);
        let piece: Vec<Tensor> = request.iter().map(|input| slice(input, start, count)).collect();
        note(count);
        let outputs = Arc::clone(model).gather(&[&piece])?()?.pop().unwrap_or_default();
        if whole.is_empty() {
            whole = outputs
                .into_iter()
                .map(|output| {
                    let mut data = BytesMut::with_capacity(output.data.len() * rows.div_ceil(count));
                    data.extend_from_slice(&output.data);
                    (Tensor { data: Bytes::new(), ..output }, data)
                })
                .collect();
        } else {
            for ((first, data), output) in whole.iter_mut().zip(outputs) {
                if first.shape[1..] != output.shape[1..] {
                    let message = format!(
                        "output `{}` has {:?} in one piece and {:?} in another",
                        first.name, first.shape, output.shape
                    );
                    return Err(EngineError::new(Blame::Request, message));
                }
                first.shape[0] += output.shape[0];
                data.extend_from_slice(&output.data);
            }
        }
        start += count;
    }
    Ok(whole.into_iter().map(|(tensor, data)| Tensor { data: data.freeze(), ..tensor }).collect())
}

/// Some rows of a tensor, sharing its bytes.
fn slice(tensor: &Tensor, start: usize, count: usize) -> Tensor {
    let row = tensor.data.len() / tensor.rows().max(1);
    let mut shape = tensor.shape.clone();
    shape[0] = count as i64;
    Tensor {
        name: tensor.name.clone(),
        datatype: tensor.datatype,
        shape,
        data: tensor.data.slice(start * row..(start + count) * row),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sluice_core::Datatype;

    use super::*;

    /// Doubles each byte. Fails on a batch that holds a zero.
    struct Doubler {
        max_rows: usize,
    }

    impl Model for Doubler {
        fn gather(self: Arc<Self>, requests: &[&[Tensor]]) -> Result<Gathered, EngineError> {
            let requests: Vec<Tensor> = requests.iter().map(|request| request[0].clone()).collect();
            assert!(requests.iter().map(Tensor::rows).sum::<usize>() <= self.max_rows, "too many rows");
            Ok(Box::new(move || {
                if requests.iter().any(|request| request.data.contains(&0)) {
                    return Err(EngineError::new(Blame::Request, "a zero"));
                }
                let double = |request: &Tensor| {
                    let data: Vec<u8> = request.data.iter().map(|byte| byte * 2).collect();
                    vec![Tensor { data: data.into(), ..request.clone() }]
                };
                Ok(requests.iter().map(double).collect())
            }))
        }

        fn for_another_slot(self: Arc<Self>) -> Arc<dyn Model> {
            self
        }
    }

    fn request(bytes: &[u8]) -> Vec<Tensor> {
        let shape = vec![bytes.len() as i64];
        vec![Tensor { name: "x".into(), datatype: Datatype::Uint8, shape, data: Bytes::copy_from_slice(bytes) }]
    }

    proptest! {
        #[test]
        fn only_what_is_bad_fails_and_all_others_are_answered(
            inputs in prop::collection::vec(prop::collection::vec(0..20_u8, 1..4), 1..12),
        ) {
            let max_rows = 64;
            let model: Arc<dyn Model> = Arc::new(Doubler { max_rows });
            let requests: Vec<Vec<Tensor>> = inputs.iter().map(|bytes| request(bytes)).collect();
            let borrowed: Vec<&[Tensor]> = requests.iter().map(Vec::as_slice).collect();
            let outcomes = run_requests(&model, &borrowed, None, max_rows, &mut |_| ());
            prop_assert_eq!(outcomes.len(), inputs.len());
            for (bytes, outcome) in inputs.iter().zip(outcomes) {
                match outcome {
                    Ok(outputs) => prop_assert!(outputs[0].data.iter().zip(bytes).all(|(out, byte)| *out == byte * 2)),
                    Err(_) => prop_assert!(bytes.contains(&0)),
                }
            }
        }

        #[test]
        fn a_request_larger_than_a_batch_is_run_in_pieces_and_answered_once(
            bytes in prop::collection::vec(1..100_u8, 1..200),
            max_rows in 1..50_usize,
        ) {
            let model: Arc<dyn Model> = Arc::new(Doubler { max_rows });
            let mut executed = 0;
            let input = request(&bytes);
            let outcomes = run_requests(&model, &[&input], None, max_rows, &mut |rows| {
                assert!(rows <= max_rows);
                executed += rows;
            });
            let outputs = outcomes[0].as_ref().expect("an answer");
            prop_assert_eq!(outcomes.len(), 1);
            prop_assert_eq!(executed, bytes.len());
            prop_assert_eq!(&outputs[0].shape, &vec![bytes.len() as i64]);
            let doubled: Vec<u8> = bytes.iter().map(|byte| byte * 2).collect();
            prop_assert_eq!(&outputs[0].data[..], &doubled[..]);
        }
    }
}
