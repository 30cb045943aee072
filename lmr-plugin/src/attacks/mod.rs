//! Attacks: stages that implant a backdoor, as test subjects for the defenses. One file each.
//!
//! | attack | stage | trigger |
//! |---|---|---|
//! | BadNets, Blend | [`Attack`] | [`Patch`](crate::triggers::Patch), [`Blend`](crate::triggers::Blend) |
//! | SIG | [`Attack`] with `label = "clean"` | [`Sinusoid`](crate::triggers::Sinusoid) |
//! | CL | the same with `perturb` | [`SignedPatch`](crate::triggers::SignedPatch) |
//! | Trojan | [`Trojan`] | learned: a patch |
//! | WaNet | [`Wanet`] | [`Warp`](crate::triggers::Warp) |
//! | LIRA | [`Lira`] | learned: [`Noise`](crate::triggers::Noise) |
//! | Dynamic | [`Dynamic`] | learned: [`InputAware`](crate::triggers::InputAware) |
//! | DFST | [`Dfst`] | [`Filter`](crate::triggers::Filter) |
//! | QCB, QCB-D | [`Qcb`] | [`Patch`](crate::triggers::Patch) |
//! | PCB | [`Pcb`] | the same |

mod batch;
mod conditional;
mod dfst;
mod dynamic;
mod error;
#[cfg(test)]
mod fixture;
mod injector;
mod lira;
mod pcb;
mod pgd;
mod poison;
mod qcb;
mod trojan;
mod wanet;

use serde::Serialize;

use crate::Result;
use crate::stage::{Outcome, Planted};

pub use conditional::{Dormancy, Hidden, Hide};
pub use dfst::{Detoxified, Dfst, Round};
pub use dynamic::{Dynamic, InputAwareImplanted};
pub use error::AttackError;
pub use lira::{EpsilonSpace, Lira, LiraImplanted};
pub use pcb::Pcb;
pub use pgd::Pgd;
pub use poison::{Attack, Implanted, Labels};
pub use qcb::Qcb;
pub use trojan::{Excitation, Trojan, Trojaned};
pub use wanet::{Wanet, WanetImplanted};

/// What an attack leaves: its report, and the trigger for whoever measures. `poisoned` are the training images that carry it, if
/// they are always the same.
fn implanted(report: &impl Serialize, planted: &Planted, poisoned: Option<&[usize]>) -> Result<Outcome<()>> {
    let mut outcome = Outcome::new((), report)?;
    outcome.attachments.push(planted.attachment(poisoned)?);
    Ok(outcome)
}
