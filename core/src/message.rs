//! Requests and responses in memory. How they look on the wire is `codec`'s business.

use std::borrow::Cow;

use crate::Tensor;

/// An Open Inference Protocol v2 inference request.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct InferRequest {
    /// The named input tensors; all have the same number of rows.
    pub inputs: Vec<Tensor>,
    /// The outputs wanted, by name; empty for all.
    pub outputs: Vec<String>,
}

impl InferRequest {
    /// The number of rows, which all inputs share.
    pub fn rows(&self) -> usize {
        self.inputs.first().map_or(0, Tensor::rows)
    }
}

/// An Open Inference Protocol v2 inference response.
#[derive(Debug, Clone, PartialEq)]
pub struct InferResponse<'t> {
    /// The model that answered.
    pub model_name: Cow<'t, str>,
    /// The version of it that answered.
    pub model_version: Cow<'t, str>,
    /// The request's id.
    pub id: Cow<'t, str>,
    /// The output tensors.
    pub outputs: Vec<Tensor>,
}
