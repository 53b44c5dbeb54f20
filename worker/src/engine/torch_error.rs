//! What libtorch's error texts mean. They run to kilobytes, with stack frames and source paths of the machine that
//! exported the model: the caller sees one line, the log sees more.

use tch::TchError;

use super::{Blame, EngineError};

/// The caller's share.
const SHOWN: usize = 500;
/// The log's share.
const LOGGED: usize = 4000;

pub(super) fn explain(error: &TchError) -> EngineError {
    let text = match error {
        TchError::Torch(text) => text.clone(),
        other => other.to_string(),
    };
    let message = super::operators::refusal(&text).unwrap_or_else(|| cut(&first_line(&text), SHOWN));
    EngineError { blame: blame(&text), message, detail: cut(&text, LOGGED) }
}

fn first_line(text: &str) -> String {
    if text.contains("The following operation failed in the TorchScript interpreter") {
        let useful = |line: &&str| {
            let (kind, rest) = line.split_once(": ").unwrap_or_default();
            !rest.is_empty()
                && !kind.is_empty()
                && kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'))
        };
        // What lists kernels or frames has lines behind the error's own.
        let named =
            |line: &&str| useful(line) && line.split_once(": ").is_some_and(|(kind, _)| kind.ends_with("Error"));
        let lines = || text.lines().rev().map(str::trim);
        if let Some(line) = lines().find(named).or_else(|| lines().find(useful)) {
            return of_backend(line);
        }
    }
    if text.contains("constants.pkl") && text.contains("failed locating file") {
        return "the file is not a TorchScript archive: export it with torch.jit.trace or torch.jit.script and save() \
                (a state_dict, a pickled module or a .pt2 cannot be served)"
            .into();
    }
    let before_frames = text.split("Exception raised from").next().unwrap_or(text);
    of_backend(before_frames.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("libtorch gave no reason"))
}

/// An operation that the device does not have is told with guesses at why; the one that helps here is another.
fn of_backend(line: &str) -> String {
    match line.split_once(" This could be because") {
        Some((what, _)) if what.contains("Could not run") => format!(
            "{what} The model's code names a device, or makes a layout, that this operation does not have here: let it take the device of an \
             input (`x.device`) and return dense tensors"
        ),
        _ => line.to_owned(),
    }
}

fn blame(text: &str) -> Blame {
    // After these every later call of the process fails as well.
    const STICKY: [&str; 5] = [
        "device-side assert",
        "illegal memory access",
        "unspecified launch failure",
        "CUDA error: misaligned address",
        "CUBLAS_STATUS_NOT_INITIALIZED",
    ];
    const MEMORY: [&str; 3] = ["out of memory", "can't allocate memory", "not enough memory"];
    if STICKY.iter().any(|sign| text.contains(sign)) {
        Blame::Process
    } else if MEMORY.iter().any(|sign| text.contains(sign)) {
        Blame::Circumstances
    } else {
        Blame::Request
    }
}

fn cut(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let end = (0..=limit).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> EngineError {
        explain(&TchError::Torch(text.into()))
    }

    #[test]
    fn the_caller_sees_the_line_that_matters() {
        let text = "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript, serialized code \
                    (most recent call last):\n  File \"code/__torch__.py\", line 9, in forward\n    return torch.linear(x, w)\n\
                    /home/ana/train.py(12): forward\nRuntimeError: mat1 and mat2 shapes cannot be multiplied (2x63 and 64x256)\n";
        let error = of(text);
        assert_eq!(error.message, "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x63 and 64x256)");
        assert_eq!(error.blame, Blame::Request);
        let error =
            of("index out of range in self\nException raised from embedding at /pytorch/aten: (frame #0: c10::Error)");
        assert_eq!(error.message, "index out of range in self");
        assert!(of(&"x".repeat(100_000)).message.len() < 510);
        assert!(
            of("PytorchStreamReader failed locating file constants.pkl: file not found")
                .message
                .contains("torch.jit.trace")
        );
    }

    #[test]
    fn a_missing_backend_is_told_in_one_line_that_says_what_to_change() {
        let text = "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript (most recent call last):\n\
                    RuntimeError: Could not run 'aten::empty.memory_format' with arguments from the 'CUDA' backend. This could be because \
                    the operator doesn't exist for this backend, or was omitted.\n\n\
                    CPU: registered at /pytorch/build/RegisterCPU.cpp:1 [kernel]\n\
                    PythonDispatcher: registered at /pytorch/aten/src/ATen/core/PythonFallbackKernel.cpp:196 [backend fallback]\n";
        let message = of(text).message;
        assert!(
            message
                .starts_with("RuntimeError: Could not run 'aten::empty.memory_format' with arguments from the 'CUDA'")
        );
        assert!(message.contains("`x.device`") && !message.contains("PythonDispatcher"), "{message}");
    }

    #[test]
    fn circumstances_and_sticky_faults_are_told_apart() {
        assert_eq!(of("DefaultCPUAllocator: can't allocate memory: you tried to allocate").blame, Blame::Circumstances);
        assert_eq!(of("CUDA out of memory. Tried to allocate 2.00 GiB").blame, Blame::Circumstances);
        assert_eq!(of("CUDA error: device-side assert triggered").blame, Blame::Process);
    }
}
