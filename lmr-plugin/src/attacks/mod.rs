//! Attacks: stages that implant a backdoor, as test subjects for the defenses. One file each.

mod poison;

pub use poison::{Attack, Implanted};
