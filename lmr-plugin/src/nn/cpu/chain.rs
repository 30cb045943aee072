//! A chain of basic blocks as one Candle operation with a hand-written gradient.
//!
//! One operation rather than one per layer, because Candle adds up the gradient of every operation's output in a fresh
//! tensor, and because what passes between the blocks can then live in reused buffers.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::super::batch_norm::Moments;
use super::access::{blocked, slice, tensor, with_slice};
use super::geometry::Geometry;
use super::layer::{Trace, backward, forward};
use super::layout::Dims;
use super::links::Parameters;
use super::norm;
use super::scratch::Scratch;
use super::single::{Layer, Stash, keep, kept, moments, of_layer};

/// `relu(second(relu(first(x))) + shortcut(x))`; without a shortcut, `x` itself is added.
#[derive(Clone, Copy)]
pub(in super::super) struct Block<'a> {
    pub first: Layer<'a>,
    pub second: Layer<'a>,
    pub shortcut: Option<Layer<'a>>,
}

/// A block's layers: first, second, shortcut.
#[derive(Clone, Copy)]
struct Plan {
    first: Geometry,
    second: Geometry,
    shortcut: Option<Geometry>,
}

/// What a block keeps for its backward pass.
struct Kept {
    first: Trace,
    /// The first layer's output.
    hidden: Scratch,
    second: Trace,
    shortcut: Option<Trace>,
    /// The block's output, unless it is the operation's.
    y: Option<Scratch>,
}

impl Plan {
    fn layers(&self) -> usize {
        2 + usize::from(self.shortcut.is_some())
    }

    /// `parameters` are those of first, second and shortcut.
    fn forward(&self, x: &[f32], parameters: &[&[f32]], y: &mut [f32]) -> Kept {
        let [p1, p2] = [0, 1].map(|i| of_layer(parameters, i));
        let mut hidden = Scratch::take(self.first.y.len());
        let first = forward(x, p1, &self.first, None, true, &mut hidden);
        let (second, shortcut) = match &self.shortcut {
            Some(shortcut) => {
                let mut residual = Scratch::take(shortcut.y.len());
                let trace = forward(x, of_layer(parameters, 2), shortcut, None, false, &mut residual);
                (forward(&hidden, p2, &self.second, Some(&residual), true, y), Some(trace))
            }
            None => (forward(&hidden, p2, &self.second, Some(x), true, y), None),
        };
        Kept { first, hidden, second, shortcut, y: None }
    }

    /// From the gradient of the output in `work.grad`: the gradient of the input, left in `work.grad`, or in `dx` if
    /// that is given, and those of the parameters.
    fn backward(
        &self,
        x: &[f32],
        parameters: &[&[f32]],
        kept: &Kept,
        work: &mut Work,
        down: Down<'_>,
    ) -> Vec<Vec<f32>> {
        let weight = |i: usize| of_layer(parameters, i)[0];
        let Self { first, second, shortcut } = self;
        let Work { grad, other, hidden } = work;
        let (y_len, hidden_len) = (second.y.len(), first.y.len());

        let (g, dz) = (&grad[..y_len], &mut other[..y_len]);
        let [dgamma2, dbeta2] = kept.second.norm.backward(&kept.second.z, second.y, g, dz);
        let dhidden = &mut hidden[..hidden_len];
        let dweight2 = backward(&kept.hidden, weight(1), second, dz, Some(dhidden), None);

        let mut of_shortcut = Vec::new();
        if let (Some(shortcut), Some(trace)) = (shortcut, &kept.shortcut) {
            let g = &mut grad[..y_len];
            let [dgamma, dbeta] = trace.norm.backward_in_place(&trace.z, shortcut.y, g, false);
            let around = (!matches!(down, Down::Nowhere)).then(|| &mut other[..x.len()]);
            of_shortcut = vec![backward(x, weight(2), shortcut, g, around, None), dgamma, dbeta];
            std::mem::swap(grad, other);
        }
        // Now `grad` holds what reaches `x` around the two layers.
        let [dgamma1, dbeta1] = kept.first.norm.backward_in_place(&kept.first.z, first.y, dhidden, true);
        let around = Some(&grad[..x.len()]);
        let dweight1 = match down {
            Down::Nowhere => backward(x, weight(0), first, dhidden, None, None),
            Down::To(dx) => backward(x, weight(0), first, dhidden, Some(dx), around),
            Down::Work => {
                let dweight = backward(x, weight(0), first, dhidden, Some(&mut other[..x.len()]), around);
                std::mem::swap(grad, other);
                dweight
            }
        };
        let mut gradients = vec![dweight1, dgamma1, dbeta1, dweight2, dgamma2, dbeta2];
        gradients.extend(of_shortcut);
        gradients
    }
}

/// Where the gradient of a block's input goes.
enum Down<'a> {
    /// To the block before, through [`Work::grad`].
    Work,
    /// Out of the operation.
    To(&'a mut [f32]),
    /// Nothing depends on it.
    Nowhere,
}

/// Buffers of the backward pass, large enough for every block.
struct Work {
    grad: Scratch,
    other: Scratch,
    hidden: Scratch,
}

struct Chain {
    plans: Vec<Plan>,
    parameters: Parameters,
    stash: Stash<Vec<Kept>>,
}

impl CustomOp2 for Chain {
    fn name(&self) -> &'static str {
        "basic-blocks"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, lx)?;
        let Some(last) = self.plans.last().map(|plan| plan.second.y) else { bail!("a chain of blocks is empty") };
        let mut out = vec![0.0; last.len()];
        let blocks = self.parameters.with(|mut parameters| {
            let mut blocks: Vec<Kept> = Vec::new();
            for (i, plan) in self.plans.iter().enumerate() {
                let (own, rest) = parameters.split_at(3 * plan.layers());
                parameters = rest;
                let input = blocks.last().and_then(|b| b.y.as_deref()).unwrap_or(x);
                if i + 1 < self.plans.len() {
                    let mut y = Scratch::take(plan.second.y.len());
                    let kept = plan.forward(input, own, &mut y);
                    blocks.push(Kept { y: Some(y), ..kept });
                } else {
                    let kept = plan.forward(input, own, &mut out);
                    blocks.push(kept);
                }
            }
            Ok(blocks)
        })?;
        keep(&self.stash, blocks)?;
        Ok(blocked(out, last))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let blocks = kept(&self.stash)?;
        let mut dx = x.track_op().then(|| vec![0.0; x.elem_count()]);
        let most = self.plans.iter().map(|p| p.first.x.len().max(p.first.y.len())).fold(y.elem_count(), usize::max);
        let mut work = Work { grad: Scratch::take(most), other: Scratch::take(most), hidden: Scratch::take(most) };
        with_slice(y, |y| {
            with_slice(dy, |dy| {
                norm::mask(dy, y, &mut work.grad[..y.len()]);
                Ok(())
            })
        })?;
        let mut gradients = Vec::new();
        with_slice(x, |x| {
            self.parameters.with(|mut parameters| {
                for (i, (plan, block)) in self.plans.iter().zip(blocks).enumerate().rev() {
                    let (rest, own) = parameters.split_at(parameters.len() - 3 * plan.layers());
                    parameters = rest;
                    let before = i.checked_sub(1).and_then(|i| blocks[i].y.as_deref());
                    let down = match (before, dx.as_deref_mut()) {
                        (Some(_), _) => Down::Work,
                        (None, Some(dx)) => Down::To(dx),
                        (None, None) => Down::Nowhere,
                    };
                    gradients.push(plan.backward(before.unwrap_or(x), own, block, &mut work, down));
                    if let Some(y) = before {
                        norm::mask_in_place(&mut work.grad[..y.len()], y);
                    }
                }
                Ok(())
            })
        })?;
        let links = self.parameters.resolve(gradients.into_iter().rev().flatten().collect())?;
        Ok((dx.map(|dx| tensor(dx, x.dims())).transpose()?, Some(links)))
    }
}

/// Basic blocks one after the other on a blocked activation, with the batch's statistics; differentiable. Also what the
/// first, the second and the shortcut layer of every block saw.
pub(in super::super) fn basic_blocks(x: &Tensor, blocks: &[Block<'_>]) -> Result<(Tensor, Vec<[Option<Moments>; 3]>)> {
    let (mut plans, mut parameters, mut dims) = (Vec::new(), Vec::new(), Dims::of(x)?);
    for block in blocks {
        let first = block.first.geometry(dims)?;
        let second = block.second.geometry(first.y)?;
        let shortcut = block.shortcut.map(|s| s.geometry(dims)).transpose()?;
        if shortcut.map_or(dims, |g| g.y) != second.y {
            bail!("the residual of a block does not fit its output of {:?}", second.y.shape());
        }
        for layer in [Some(block.first), Some(block.second), block.shortcut].into_iter().flatten() {
            parameters.extend(layer.parameters());
        }
        dims = second.y;
        plans.push(Plan { first, second, shortcut });
    }
    let stash = Stash::default();
    let (parameters, links) = Parameters::new(&parameters)?;
    let op = Chain { plans: plans.clone(), parameters, stash: stash.clone() };
    let y = x.contiguous()?.apply_op2(&links, op)?;
    let mut seen = Vec::new();
    for (plan, kept) in plans.iter().zip(kept(&stash)?) {
        let shortcut = kept.shortcut.as_ref().zip(plan.shortcut.as_ref()).map(|(t, g)| moments(t, g)).transpose()?;
        seen.push([Some(moments(&kept.first, &plan.first)?), Some(moments(&kept.second, &plan.second)?), shortcut]);
    }
    Ok((y, seen))
}
