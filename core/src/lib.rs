//! The words and seams that every Sluice crate shares. No sockets, no runtime, no engine.

pub mod assignment;
pub mod bounds;
pub mod broker;
pub mod clock;
pub mod codec;
pub mod datatype;
pub mod envelope;
pub mod failure;
pub mod manifest;
pub mod message;
pub mod metrics;
pub mod names;
pub mod print;
pub mod report;
pub mod scaler;
pub mod settings;
pub mod shown;
pub mod store;
pub mod tensor;

pub use broker::{Broker, BrokerError};
pub use datatype::Datatype;
pub use envelope::{Envelope, ReplyTo};
pub use failure::{ErrorCode, Failure};
pub use manifest::Manifest;
pub use message::{InferRequest, InferResponse};
pub use names::{JobId, Lane, ModelName, RequestId};
pub use store::{Store, StoreError};
pub use tensor::Tensor;
