//! The seam between the two implementations: nothing outside `nn` knows which one runs.

use std::cell::Cell;

use candle_core::{DType, Tensor};

/// Which implementation computes a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Plain Candle operations: every device and floating-point type.
    Portable,
    /// Hand-written kernels: f32 on the CPU.
    Cpu,
}

thread_local! {
    static FORCED_PORTABLE: Cell<bool> = const { Cell::new(false) };
}

impl Path {
    /// The path for a layer whose input is `x`.
    pub fn of(x: &Tensor) -> Self {
        let native = x.device().is_cpu() && x.dtype() == DType::F32;
        if native && !FORCED_PORTABLE.get() { Self::Cpu } else { Self::Portable }
    }
}

/// Runs `f` with the portable path on this thread, whatever the device: the reference in tests of the other path.
///
/// The choice is made in the forward pass; a later backward pass follows it.
pub fn with_portable_path<T>(f: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED_PORTABLE.set(self.0);
        }
    }
    let _restore = Restore(FORCED_PORTABLE.replace(true));
    f()
}
