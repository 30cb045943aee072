//! Config in, purified model and evidence out: reads a pipeline file, checks it as a whole, runs its stages and keeps
//! what they found in a run folder.

pub mod artifacts;
pub mod config;
pub mod datasets;
pub mod device;
pub mod error;
pub mod files;
pub mod hub;
pub mod inputs;
pub mod inspect;
mod log;
pub mod model_config;
mod observer;
mod place;
pub mod plan;
pub mod preprocess;
pub mod problem;
pub mod publish;
pub mod registry;
pub mod report;
pub mod run;
pub mod schema;
pub mod tensors;
pub mod triggers;
pub mod weights;
pub mod zoo;

pub use config::Overrides;
pub use error::{Error, Result};
pub use observer::RunObserver;
pub use plan::Plan;
pub use run::{Options, run};
