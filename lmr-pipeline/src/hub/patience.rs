//! How long the Hub is waited for.

use std::time::Duration;

/// How long is waited for what, and how often something is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For an answer, and for the next bytes of one.
    pub stall: Duration,
    /// How often in all, at least once; a download that goes forward has not failed.
    pub tries: u32,
    /// Before the second try; twice as long before each one after it.
    pub delay: Duration,
    /// The longest wait that a server may ask for.
    pub longest: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            tries: 5,
            delay: Duration::from_millis(500),
            longest: Duration::from_secs(60),
        }
    }
}
