//! Reused buffers. A training step needs the same large buffers every time; fresh memory for each would cost a page fault
//! and a cleared page per 4 KiB, a fifth of a step of a narrow network.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A buffer that goes back to the pool when it is dropped.
pub(crate) struct Scratch(Vec<f32>);

/// Idle buffers with the time of their last use, counted in buffers taken.
struct Pool {
    idle: Vec<(u64, Vec<f32>)>,
    now: u64,
}

/// A buffer that nobody took while this many others were is freed: about ten steps of a ResNet.
const LIFETIME: u64 = 2000;

static POOL: Mutex<Pool> = Mutex::new(Pool { idle: Vec::new(), now: 0 });

fn pool() -> MutexGuard<'static, Pool> {
    // The pool is consistent between any two of its statements.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Scratch {
    /// A buffer of `len` floats of any value.
    pub fn take(len: usize) -> Self {
        let mut pool = pool();
        pool.now += 1;
        // The one that was used last is the likeliest to be in a cache.
        let found = pool.idle.iter().rposition(|(_, buffer)| buffer.len() == len);
        let buffer = found.map(|i| pool.idle.remove(i).1);
        drop(pool);
        Self(buffer.unwrap_or_else(|| vec![0.0; len]))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut pool = pool();
        let now = pool.now;
        pool.idle.push((now, std::mem::take(&mut self.0)));
        let keep = pool.idle.iter().position(|(used, _)| now - used < LIFETIME).unwrap_or(0);
        let stale: Vec<_> = pool.idle.drain(..keep).collect();
        drop(pool);
        drop(stale);
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

thread_local! {
    static WORKSPACE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The current thread's own buffer for one task, which goes back to the thread when it is dropped.
pub(crate) struct Workspace(Vec<f32>);

impl Workspace {
    /// A buffer of at least `len` floats of any value.
    pub fn take(len: usize) -> Self {
        let mut buffer = WORKSPACE.take();
        if buffer.len() < len {
            buffer = vec![0.0; len];
        }
        Self(buffer)
    }

    /// Consecutive parts of the buffer.
    pub fn split<const N: usize>(&mut self, lens: [usize; N]) -> [&mut [f32]; N] {
        let mut rest = self.0.as_mut_slice();
        lens.map(|len| {
            let (part, more) = std::mem::take(&mut rest).split_at_mut(len);
            rest = more;
            part
        })
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        WORKSPACE.set(std::mem::take(&mut self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_taken_again() {
        // A length that no other test uses.
        let mut first = Scratch::take(12_345);
        first[7] = 3.0;
        drop(first);
        assert_eq!(Scratch::take(12_345)[7], 3.0);
        assert_eq!(Scratch::take(12_346)[7], 0.0);
    }

    #[test]
    fn a_workspace_is_split_in_order() {
        let mut work = Workspace::take(10);
        let [a, b] = work.split([4, 6]);
        a.fill(1.0);
        b.fill(2.0);
        drop(work);
        let mut again = Workspace::take(8);
        assert_eq!(again.split([5])[0], [1.0, 1.0, 1.0, 1.0, 2.0]);
    }
}
