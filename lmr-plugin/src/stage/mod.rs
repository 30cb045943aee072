//! What a stage is, and what it is given.
//!
//! A stage is two things. First a documented config struct with a typed method that anyone can call from their own
//! Candle loop (`Estimate::estimate`, `LogitRepel::repel`, ...). Second a thin [`Stage`] implementation that takes the
//! inputs from a [`Context`] and hands the outcome back, so that a pipeline can compose it.
//!
//! What a stage needs and gives are types. A pipeline in the wrong order is refused while it is planned. What a stage may know of the
//! attack follows from its [`Role`]: who purifies sees the clean set alone, so a purifying stage that asks for the answer does
//! not compile.
//!
//! ```compile_fail,E0053
//! use lmr_plugin::stage::{Context, Examination, Outcome, Purifies, Stage};
//!
//! #[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
//! struct Peek {}
//!
//! impl Stage for Peek {
//!     const KIND: &'static str = "peek";
//!     const SUMMARY: &'static str = "purifies with the answer in hand";
//!     type Role = Purifies;
//!     type Needs = ();
//!     type Gives = ();
//!     // error: expected `&CleanOnly`, found `&Examination`
//!     fn run(&self, _: &mut Context<'_>, _: (), answer: &Examination) -> lmr_plugin::Result<Outcome<()>> {
//!         Outcome::new((), &answer.test.len())
//!     }
//! }
//! ```
//!
//! Nor does an attack that asks for the test set, by which its success will be measured:
//!
//! ```compile_fail,E0609
//! use lmr_plugin::stage::{Context, Implants, Material, Outcome, Stage};
//!
//! #[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
//! struct Overfit {}
//!
//! impl Stage for Overfit {
//!     const KIND: &'static str = "overfit";
//!     const SUMMARY: &'static str = "implants what the test set likes best";
//!     type Role = Implants;
//!     type Needs = ();
//!     type Gives = ();
//!     fn run(&self, _: &mut Context<'_>, _: (), material: &Material) -> lmr_plugin::Result<Outcome<()>> {
//!         Outcome::new((), &material.test.len()) // error: no field `test`
//!     }
//! }
//! ```
//!
//! Without the answer it compiles:
//!
//! ```
//! use lmr_plugin::stage::{CleanOnly, Context, ModelUse, Outcome, Purifies, Stage};
//!
//! #[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
//! struct Honest {}
//!
//! impl Stage for Honest {
//!     const KIND: &'static str = "honest";
//!     const SUMMARY: &'static str = "looks at the clean set alone";
//!     const MODEL: ModelUse = ModelUse::Reads;
//!     type Role = Purifies;
//!     type Needs = ();
//!     type Gives = ();
//!     fn run(&self, ctx: &mut Context<'_>, _: (), _: &CleanOnly) -> lmr_plugin::Result<Outcome<()>> {
//!         Outcome::new((), &ctx.clean.images.len())
//!     }
//! }
//! ```

mod attachment;
mod definition;
mod erased;
mod facts;
mod role;
mod truth;

pub use attachment::Attachment;
pub(crate) use definition::faults;
pub use definition::{Context, Outcome, Sees, Stage};
pub use erased::AnyStage;
pub use facts::{FactStore, Facts, Finding};
pub use role::{CleanOnly, CleanUse, Deploys, Examines, Implants, Learns, ModelUse, Purifies, Role, RoleKind, Shown};
pub use truth::{Examination, Material, Planted, Target};
