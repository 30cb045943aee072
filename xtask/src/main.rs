//! The command line of LMR.
fn main() {}
