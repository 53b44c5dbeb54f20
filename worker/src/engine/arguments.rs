//! Which of `forward`'s arguments get the manifest's inputs, and which their defaults.

use super::native::Argument;

/// What an argument is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Given {
    /// An input of the manifest, by its place.
    Input(usize),
    /// What the module says, of the argument at this place.
    Default(usize),
}

/// Gives the inputs to the arguments that take tensors, in their order. What comes behind the last of these keeps its default.
pub(super) fn give(arguments: &[Argument], inputs: usize) -> Result<Vec<Given>, String> {
    let takes: Vec<usize> = (0..arguments.len()).filter(|at| takes_tensor(&arguments[*at])).collect();
    let needed = takes.iter().filter(|at| !arguments[**at].has_default).count();
    if let Some(other) = arguments.iter().find(|one| !one.has_default && !takes_tensor(one)) {
        return Err(format!(
            "the model's forward wants `{}`, {}: an input is a tensor. Give the argument a default, or wrap the module in one that takes tensors",
            other.name, other.kind
        ));
    }
    if inputs < needed || inputs > takes.len() {
        let names: Vec<String> = takes.iter().map(|at| named(&arguments[*at])).collect();
        let count = if needed == takes.len() { needed.to_string() } else { format!("{needed} to {}", takes.len()) };
        let names = if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) };
        return Err(format!("the manifest has {inputs} inputs, the model's forward takes {count}{names}"));
    }
    let last = takes[..inputs].last().map_or(0, |at| at + 1);
    let mut next = 0..inputs;
    let given = |at: usize| match takes_tensor(&arguments[at]).then(|| next.next()).flatten() {
        Some(input) => Given::Input(input),
        None => Given::Default(at),
    };
    Ok((0..last).map(given).collect())
}

fn takes_tensor(argument: &Argument) -> bool {
    matches!(argument.kind.as_str(), "Tensor" | "Optional[Tensor]")
}

fn named(argument: &Argument) -> String {
    if argument.has_default { format!("{} (not needed)", argument.name) } else { argument.name.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(arguments: &[(&str, &str)], inputs: usize) -> Result<Vec<Given>, String> {
        let argument = |(name, kind): &(&str, &str)| Argument {
            name: name.trim_end_matches('=').to_string(),
            kind: kind.to_string(),
            has_default: name.ends_with('='),
        };
        give(&arguments.iter().map(argument).collect::<Vec<_>>(), inputs)
    }

    #[test]
    fn what_has_a_default_need_not_be_given() {
        use Given::{Default, Input};
        let size = ("size=", "Tuple[int, int]");
        assert_eq!(given(&[("x", "Tensor")], 1), Ok(vec![Input(0)]));
        assert_eq!(given(&[("x", "Tensor"), ("scale=", "float")], 1), Ok(vec![Input(0)]));
        assert_eq!(given(&[("x=", "Optional[Tensor]")], 1), Ok(vec![Input(0)]));
        assert_eq!(given(&[("x", "Tensor"), size], 1), Ok(vec![Input(0)]));
        let both = [("x", "Tensor"), size, ("mask=", "Optional[Tensor]")];
        assert_eq!(given(&both, 1), Ok(vec![Input(0)]));
        assert_eq!(given(&both, 2), Ok(vec![Input(0), Default(1), Input(1)]));
    }

    #[test]
    fn refusals_count_what_can_be_given() {
        let pair = [("image1", "Tensor"), ("image2", "Tensor"), ("num_flow_updates=", "int")];
        let refusal = given(&pair, 1).expect_err("one is missing");
        assert_eq!(refusal, "the manifest has 1 inputs, the model's forward takes 2: image1, image2");
        let refusal = given(&[("x", "Tensor"), ("mask=", "Optional[Tensor]")], 3).expect_err("too many");
        assert_eq!(refusal, "the manifest has 3 inputs, the model's forward takes 1 to 2: x, mask (not needed)");
        let refusal = given(&[("x", "Tensor"), ("steps", "int")], 1).expect_err("`steps` cannot be given");
        assert!(refusal.starts_with("the model's forward wants `steps`, int: an input is a tensor."), "{refusal}");
    }
}
