//! Which operators a package's code may name. TorchScript is code: `aten::from_file` reads and writes any file that the worker may. Only what
//! is allowed here exists in a worker's process, so that nothing else can be loaded, wherever in a package it stands: in a block, a function,
//! a fork, or what runs while the file is read. Decides by names; `native` asks libtorch and takes away.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use super::native;
use super::{Blame, EngineError, torch_error};

/// Namespaces of operators that compute. Others exchange tensors with other processes (`c10d`, `symm_mem`), or read and write memory without
/// looking at bounds (`inductor`, `static_runtime`), or are for compilers that export no TorchScript.
const NAMESPACES: [&str; 9] =
    ["_quantized", "aten", "cuda", "mkldnn_prepacked", "prepacked", "prim", "quantization", "quantized", "sparse"];

/// Operators of `aten` that take text, and for which it is no more than text or the name of a way to compute. What is outside of a process is
/// named by text, a path or an address: so one that takes text and is not here is refused, and those that a later libtorch brings are.
const TAKE_TEXT: &str = "
    Delete Float Int __contains__ __getitem__ __interpolate __upsample _assert_async _assert_scalar _convolution_mode
    _functional_assert_async _functional_assert_scalar _linalg_check_errors _linalg_eigh _linalg_svd
    _mixed_dtypes_linear _print _segment_reduce_backward _set_item _sparse_mm _sparse_mm_reduce_impl
    _sparse_mm_reduce_impl_backward _sparse_semi_structured_linear _sparse_semi_structured_tile add any capitalize
    center clear conv1d conv2d conv3d copy count device dict div div_ divide divide_ einsum endswith eq expandtabs
    fft_fft fft_fft2 fft_fftn fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn fft_ihfft fft_ihfft2 fft_ihfftn
    fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftn find format ge gelu gelu_ gelu_backward get
    get_autocast_dtype gt index index_reduce index_reduce_ isalnum isalpha isdecimal isdigit isidentifier islower
    isnumeric isprintable isspace istitle isupper items join keys le len linalg_cond linalg_eigh linalg_eigvalsh
    linalg_lstsq linalg_matrix_norm linalg_norm linalg_qr linalg_svd linalg_svdvals list ljust lower lstrip lt meshgrid
    nanquantile ne ord pad pad_sequence partition percentFormat pop popitem quantile remove replace rfind rindex rjust
    rpartition rsplit rstrip scatter scatter_ scatter_reduce scatter_reduce_ searchsorted segment_reduce setdefault
    slice sort sorted split splitlines startswith stft strip swapcase title update upper values warn zfill";

/// The same of those that take text only in libtorch before 2.13, where a tensor's dimensions may have names.
const NAME_DIMENSIONS: &str = "
    _sparse_log_softmax _sparse_softmax all argsort cat concat concatenate cummax cummin cumprod cumprod_ cumsum
    cumsum_ diagonal empty flatten full gather index_add index_copy index_copy_ index_fill index_fill_ index_select
    kthvalue log_softmax logcumsumexp logsumexp max mean median min mode nanmedian norm ones prod rand randn
    scatter_add select size softmax squeeze squeeze_ std std_mean stride sum transpose unbind unflatten var var_mean
    zeros";

/// The same of other namespaces; the last two mark spans of time for a profiler.
const OTHERS_TAKE_TEXT: [&str; 9] = [
    "mkldnn_prepacked::conv2d_prepack",
    "prim::AddStatValue",
    "prim::ModuleContainerIndex",
    "prim::RaiseException",
    "prim::StringIndex",
    "profiler::_record_function_exit",
    "profiler::_call_end_callbacks_on_jit_fut",
    "profiler::_record_function_enter",
    "profiler::_record_function_enter_new",
];

/// What this process has refused, to tell it from what libtorch never had.
static REFUSED: OnceLock<BTreeSet<String>> = OnceLock::new();

/// The key that allows more.
const KEY: &str = "worker.allow_operators";

/// Leaves models' code only the operators that compute, and those of `allowed`. For all of this process, once, before a model is loaded.
pub(super) fn confine(allowed: &[String]) -> Result<(), EngineError> {
    let explain = |error: tch::TchError| torch_error::explain(&error);
    let operators = native::operators().map_err(explain)?;
    let known: BTreeSet<&str> = operators.iter().map(|(name, _)| name.as_str()).collect();
    if let Some(unknown) = allowed.iter().find(|name| !known.contains(name.as_str())) {
        let message = format!("`{KEY}`: libtorch has no operator `{unknown}`; they are written as `aten::from_file`");
        return Err(EngineError::new(Blame::Request, message));
    }
    let refused = refused(&operators, allowed);
    native::forget(&refused).map_err(explain)?;
    // Set before, by another model host in this process: what was taken away stays away.
    _ = REFUSED.set(refused.into_iter().collect());
    Ok(())
}

/// The operators that models may not name.
fn refused(operators: &[(String, bool)], allowed: &[String]) -> Vec<String> {
    let text: BTreeSet<&str> = TAKE_TEXT.split_whitespace().chain(NAME_DIMENSIONS.split_whitespace()).collect();
    let computes = |name: &str, takes_text: bool| {
        if OTHERS_TAKE_TEXT.contains(&name) {
            return true;
        }
        match name.split_once("::") {
            Some(("aten", own)) if takes_text => text.contains(own),
            Some((namespace, _)) => NAMESPACES.contains(&namespace) && !takes_text,
            None => false,
        }
    };
    let refused = operators.iter().filter(|(name, takes_text)| !computes(name, *takes_text) && !allowed.contains(name));
    refused.map(|(name, _)| name.clone()).collect::<BTreeSet<_>>().into_iter().collect()
}

/// What is to be said of libtorch's error if a model names what was taken away.
pub(super) fn refusal(text: &str) -> Option<String> {
    let name = text.split_once("Unknown builtin op: ")?.1.split(['\n', ' ']).next()?.trim_end_matches('.');
    REFUSED.get()?.contains(name).then(|| in_words(name))
}

fn in_words(name: &str) -> String {
    format!(
        "the model's code uses the operator `{name}`, which workers do not have: it may reach outside of the model, such as into files. If the \
         package is from somebody you trust, `{KEY} = [\"{name}\"]` in the configuration of all hosts lets models use it \
         (`sluice-worker check --allow-operator`)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_computes_is_allowed_and_what_reaches_outside_is_not() {
        let operators = [
            ("aten::add", false),
            ("aten::add", true),
            ("aten::einsum", true),
            ("aten::from_file", true),
            ("aten::save", true),
            ("aten::from_tomorrow", true),
            ("c10d::send", false),
            ("inductor::_reinterpret_tensor", false),
            ("prim::RaiseException", true),
            ("prim::rpc_sync", true),
            ("profiler::_record_function_enter", true),
            ("quantized::linear", false),
        ]
        .map(|(name, takes_text)| (name.to_owned(), takes_text));
        let all = [
            "aten::from_file",
            "aten::from_tomorrow",
            "aten::save",
            "c10d::send",
            "inductor::_reinterpret_tensor",
            "prim::rpc_sync",
        ];
        assert_eq!(refused(&operators, &[]), all);
        assert_eq!(refused(&operators, &["aten::from_file".into()]), all[1..]);
    }

    /// In a process of its own, as nextest runs tests.
    #[test]
    fn libtorch_has_what_the_list_names_and_loses_the_rest() {
        let operators = native::operators().expect("they are listed");
        let known: BTreeSet<&str> = operators.iter().map(|(name, _)| name.as_str()).collect();
        let listed = TAKE_TEXT.split_whitespace().chain(NAME_DIMENSIONS.split_whitespace());
        let listed = listed.map(|name| format!("aten::{name}"));
        let missing: Vec<String> = listed.filter(|name| !known.contains(name.as_str())).collect();
        assert!(missing.is_empty(), "libtorch has no {missing:?}");
        let unknown = confine(&["aten::from_nowhere".into()]).expect_err("there is no such operator").message;
        assert!(
            unknown.contains("`worker.allow_operators`: libtorch has no operator `aten::from_nowhere`"),
            "{unknown}"
        );
        confine(&["inductor::_mm_plus_mm".into()]).expect("it confines");
        let left: BTreeSet<String> =
            native::operators().expect("they are listed").into_iter().map(|(name, _)| name).collect();
        for gone in ["aten::from_file", "aten::save", "c10d::send", "inductor::_reinterpret_tensor"] {
            assert!(known.contains(gone) && !left.contains(gone), "{gone}");
            let told = refusal(&format!("\nUnknown builtin op: {gone}.\nHere are some")).expect("it is told");
            assert!(told.contains(&format!("operator `{gone}`")) && told.contains("worker.allow_operators"), "{told}");
        }
        assert!(left.contains("aten::einsum") && left.contains("inductor::_mm_plus_mm"));
        assert_eq!(refusal("Unknown builtin op: torchvision::nms.\n"), None);
    }
}
