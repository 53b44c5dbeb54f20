//! Proves that rows are independent: that a request is answered alone as it is in a batch with others, of its size or of another.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use sluice_core::manifest::Padding;
use sluice_core::{Manifest, Tensor};

use super::run;
use crate::engine::Model;
use crate::engine::compare::difference;
use crate::engine::example::{random, random_of};

/// So many rows together; fewer if batches are smaller.
pub const COMPARED: usize = 5;

/// How a row is answered otherwise in a batch than alone, in words; `None` if it is not. An error if something does not run at all.
pub fn dependence(model: &Arc<dyn Model>, manifest: &Manifest, rows: usize) -> Result<Option<String>> {
    let requests: Vec<Vec<Tensor>> = (0..rows).map(|seed| random(manifest, 1, seed as u64 + 1000)).collect();
    let differs = differs(model, &requests).with_context(|| format!("running {rows} random rows together"))?;
    Ok(differs.map(|what| {
        format!(
            "rows are not independent: {what} when it runs in a batch. Batching would change answers: is the model in eval mode, and are \
             rows the first dimension all along? If it cannot be helped, set `batching.max_rows = 1`"
        )
    }))
}

/// The same for requests of different sizes, which padding lets share a batch of at most `rows` rows.
pub fn padding(model: &Arc<dyn Model>, manifest: &Manifest, rows: usize) -> Result<Option<String>> {
    let all = sizes(manifest);
    if all.is_empty() || rows < 2 {
        return Ok(None);
    }
    let requests = of_sizes(manifest, &all, rows);
    let named = |sizes: &BTreeMap<String, i64>| {
        let all: Vec<String> = sizes.iter().map(|(name, size)| format!("{name} = {size}")).collect();
        all.join(", ")
    };
    let tried =
        || format!("running requests of {} together", all.iter().map(named).collect::<Vec<_>>().join(" and of "));
    let advice = || format!("{}: if requests are never so small, say so by `smallest` in [sizes]", tried());
    let mut found = differs(model, &requests).with_context(advice)?;
    if found.is_none()
        && let Some(larger) = larger(manifest)
    {
        // A size that nobody spoke of: the model need not run on it.
        found = differs(model, &of_sizes(manifest, &[all[0].clone(), larger], rows)).unwrap_or_default();
    }
    Ok(found.map(|what| {
        format!(
            "padding changes answers: {what} beside requests of another size ({}). Let the model leave out what is filled up, by a mask \
             for instance, or take [padding] out of the manifest",
            tried()
        )
    }))
}

/// Requests of these sizes in turns, of one row and of two, with at most `rows` rows together.
fn of_sizes(manifest: &Manifest, all: &[BTreeMap<String, i64>], rows: usize) -> Vec<Vec<Tensor>> {
    let mut requests = Vec::new();
    let mut left = rows;
    for (seed, sizes) in all.iter().cycle().take(COMPARED).enumerate() {
        let own = (1 + seed % 2).min(left);
        if own == 0 {
            break;
        }
        left -= own;
        requests.push(random_of(manifest, own, seed as u64 + 2000, sizes));
    }
    requests
}

/// A size beside which requests of the example's are filled up further, where rounding up makes many sizes alike.
fn larger(manifest: &Manifest) -> Option<BTreeMap<String, i64>> {
    let beyond = |(name, padding): (&String, &Padding)| {
        let (example, multiple) = (manifest.example_size(name), i64::from(padding.multiple_of.max(1)));
        (multiple > 1).then(|| (name.clone(), (example + multiple - 1) / multiple * multiple + 1))
    };
    let larger: BTreeMap<_, _> = manifest.padding.iter().filter_map(beyond).collect();
    (!larger.is_empty()).then_some(larger)
}

/// Some sizes of the dimensions that are padded: the example, the smallest, one between.
fn sizes(manifest: &Manifest) -> Vec<BTreeMap<String, i64>> {
    let names: Vec<&str> = manifest.padding.keys().map(String::as_str).collect();
    let of = |share: i64| -> BTreeMap<String, i64> {
        let size = |name: &&str| {
            let example = manifest.example_size(name);
            // Where nobody said how small it can be, half of the example.
            let smallest = manifest.smallest_size(name);
            let least = if smallest > 1 { smallest } else { (example / 2).max(1) };
            (name.to_string(), least.min(example) + (example - least).max(0) * share / 2)
        };
        names.iter().map(size).collect()
    };
    if names.is_empty() { Vec::new() } else { vec![of(2), of(0), of(1)] }
}

/// The first request that is answered otherwise together than alone, and how much.
fn differs(model: &Arc<dyn Model>, requests: &[Vec<Tensor>]) -> Result<Option<String>> {
    let borrowed: Vec<&[Tensor]> = requests.iter().map(Vec::as_slice).collect();
    let together = run(model, &borrowed)?;
    for (at, (request, in_batch)) in borrowed.iter().zip(together).enumerate() {
        let alone = run(model, &[request])?.pop().unwrap_or_default();
        for (alone, in_batch) in alone.iter().zip(&in_batch) {
            let name = &alone.name;
            match difference(alone, in_batch) {
                Some(amount) if amount.is_finite() => {
                    return Ok(Some(format!("request {at} of output `{name}` differs by {amount:.3e}")));
                }
                Some(_) if alone.shape != in_batch.shape => {
                    return Ok(Some(format!(
                        "request {at} of output `{name}` has the shape {:?} instead of {:?}",
                        in_batch.shape, alone.shape
                    )));
                }
                Some(_) => {
                    return Ok(Some(format!(
                        "request {at} of output `{name}` has other values, or a NaN where a number was,"
                    )));
                }
                None => {}
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_between_the_smallest_and_the_example() {
        let manifest = |more: &str| {
            let text = format!(
                "name = \"m\"\nengine = \"torchscript\"\nfile = \"m.pt\"\n\
                 inputs = [{{ name = \"x\", datatype = \"FP32\", shape = [-1, \"samples\"] }}]\n\
                 outputs = [{{ name = \"y\", datatype = \"FP32\", shape = [-1] }}]\n{more}"
            );
            Manifest::parse(&text).expect("a manifest")
        };
        let sizes =
            |more: &str| -> Vec<i64> { sizes(&manifest(more)).into_iter().flat_map(BTreeMap::into_values).collect() };
        assert!(sizes("").is_empty(), "nothing is padded");
        assert_eq!(sizes("[padding]\nsamples = {}"), [8, 4, 6]);
        let both = "[padding]\nsamples = {}\n[sizes]\nsamples = { smallest = 10, example = 100 }";
        assert_eq!(sizes(both), [100, 10, 55]);
        assert_eq!(sizes("[padding]\nsamples = { multiple_of = 1600 }"), [1600, 800, 1200]);
    }
}
