//! The seam between the two implementations: nothing outside the crate knows which one runs.

use std::cell::Cell;
use std::thread::LocalKey;

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
    static COMPUTE_DTYPE: Cell<DType> = const { Cell::new(DType::F32) };
}

/// A thread-local value that returns to what it was when this is dropped.
struct Scope<T: Copy + 'static> {
    cell: &'static LocalKey<Cell<T>>,
    before: T,
}

impl<T: Copy> Scope<T> {
    fn set(cell: &'static LocalKey<Cell<T>>, value: T) -> Self {
        Self { cell, before: cell.replace(value) }
    }
}

impl<T: Copy + 'static> Drop for Scope<T> {
    fn drop(&mut self) {
        self.cell.set(self.before);
    }
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
    let _scope = Scope::set(&FORCED_PORTABLE, true);
    f()
}

/// Runs `f` with convolutions, linear layers and attention of the portable path in `dtype` on this thread: `F32`, `BF16` or
/// `F16`, as the device supports them. Everything else, weights and their gradients included, stays in f32.
///
/// Half the bytes and, on GPUs with units for it, several times the speed. `F16` gradients below 6e-8 become 0, and losses
/// are not scaled against that; prefer `BF16` for training. The CPU kernels compute in f32, whatever is asked for.
pub fn with_compute_dtype<T>(dtype: DType, f: impl FnOnce() -> T) -> T {
    let _scope = Scope::set(&COMPUTE_DTYPE, dtype);
    f()
}

/// A factor of a product of the portable path in the dtype that [`with_compute_dtype`] asks for.
pub(crate) fn factor(x: &Tensor) -> candle_core::Result<Tensor> {
    match Path::of(x) {
        Path::Portable if x.dtype() == DType::F32 => x.to_dtype(COMPUTE_DTYPE.get()),
        _ => Ok(x.clone()),
    }
}
