//! Layers with batch norm as Candle operations with hand-written gradients.
//!
//! Operations are as coarse as can be, because Candle adds up the gradient of every operation's output in a fresh tensor:
//! a whole residual block is one. Candle's operations have at most three arguments, so a layer's parameters come
//! flattened in one tensor, `[weight, gamma, beta]`.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::super::ConvConfig;
use super::super::batch_norm::Moments;
use super::access::{blocked, slice, tensor, with_slice};
use super::conv::check;
use super::geometry::Geometry;
use super::layer::{Trace, Wanted, backward, forward};
use super::layout::Dims;
use super::norm::{self, Grad};

/// A convolution with batch norm.
#[derive(Clone, Copy)]
pub(in super::super) struct Layer<'a> {
    pub weight: &'a Tensor,
    pub gamma: &'a Tensor,
    pub beta: &'a Tensor,
    pub config: &'a ConvConfig,
}

impl Layer<'_> {
    fn geometry(&self, x: Dims) -> Result<Geometry> {
        let geometry = Geometry::new(x, self.weight.dims4()?.into(), *self.config)?;
        check(geometry.y, None, &[self.gamma, self.beta])?;
        Ok(geometry)
    }

    fn params(&self) -> Result<[Tensor; 3]> {
        Ok([self.weight.flatten_all()?, self.gamma.clone(), self.beta.clone()])
    }
}

fn params_len(geometry: &Geometry) -> usize {
    geometry.weight_len() + 2 * geometry.y.c
}

fn moments(trace: &Trace, geometry: &Geometry) -> Result<Moments> {
    let of = |values: &[f32]| tensor(values.to_vec(), &[geometry.y.c]);
    Ok(Moments { mean: of(&trace.norm.mean)?, var: of(&trace.norm.var)?, count: geometry.y.count() })
}

/// What a forward pass leaves for the backward pass.
type Stash<T> = Arc<OnceLock<T>>;

fn keep<T>(stash: &Stash<T>, value: T) -> Result<()> {
    stash.set(value).or_else(|_| bail!("an operation with a backward pass ran twice"))
}

fn kept<T>(stash: &Stash<T>) -> Result<&T> {
    match stash.get() {
        Some(value) => Ok(value),
        None => bail!("an operation ran backward before it ran forward"),
    }
}

fn wanted(x: &Tensor) -> Wanted<'static> {
    if x.track_op() { Wanted::Yes } else { Wanted::No }
}

/// One layer, with or without a residual.
struct Single {
    geometry: Geometry,
    relu: bool,
    stash: Stash<Trace>,
}

impl Single {
    fn forward(&self, x: &[f32], params: &[f32], residual: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let (y, trace) = forward(x, params, &self.geometry, residual, self.relu);
        keep(&self.stash, trace)?;
        Ok(blocked(y, self.geometry.y))
    }

    fn backward(&self, x: &Tensor, params: &Tensor, grad: Grad<'_>) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let trace = kept(&self.stash)?;
        let (dx, dparams) = with_slice(x, |xs| {
            with_slice(params, |params| Ok(backward(xs, params, &self.geometry, trace, grad, wanted(x))))
        })?;
        Ok((dx.map(|dx| tensor(dx, x.dims())).transpose()?, Some(tensor(dparams, params.dims())?)))
    }
}

impl CustomOp2 for Single {
    fn name(&self) -> &'static str {
        "conv-bn"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, p: &CpuStorage, lp: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(slice(x, lx)?, slice(p, lp)?, None)
    }

    fn bwd(&self, x: &Tensor, params: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        with_slice(dy, |dy| {
            let grad = if self.relu { Grad::Relu(dy) } else { Grad::Plain(dy) };
            self.backward(x, params, grad)
        })
    }
}

impl CustomOp3 for Single {
    fn name(&self) -> &'static str {
        "conv-bn-residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        p: &CpuStorage,
        lp: &Layout,
        r: &CpuStorage,
        lr: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(slice(x, lx)?, slice(p, lp)?, Some(slice(r, lr)?))
    }

    fn bwd(
        &self,
        x: &Tensor,
        params: &Tensor,
        _: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dresidual = match self.relu {
            true => tensor(with_slice(dy, |dy| with_slice(y, |y| Ok(norm::mask(dy, y))))?, y.dims())?,
            false => dy.contiguous()?,
        };
        let (dx, dparams) = with_slice(&dresidual, |g| self.backward(x, params, Grad::Plain(g)))?;
        Ok((dx, dparams, Some(dresidual)))
    }
}

/// `activation(batch_norm(conv(x)) + residual)` of blocked activations, with the batch's statistics; differentiable.
pub(in super::super) fn conv_bn(
    x: &Tensor,
    layer: Layer<'_>,
    residual: Option<&Tensor>,
    relu: bool,
) -> Result<(Tensor, Moments)> {
    let geometry = layer.geometry(Dims::of(x)?)?;
    check(geometry.y, residual, &[])?;
    let stash = Stash::default();
    let op = Single { geometry, relu, stash: stash.clone() };
    let (x, params) = (x.contiguous()?, Tensor::cat(&layer.params()?, 0)?);
    let y = match residual {
        Some(residual) => x.apply_op3(&params, &residual.contiguous()?, op),
        None => x.apply_op2(&params, op),
    }?;
    Ok((y, moments(kept(&stash)?, &geometry)?))
}

/// `relu(second(relu(first(x))) + shortcut(x))`; parameters are those of first, second and shortcut.
struct Block {
    first: Geometry,
    second: Geometry,
    shortcut: Option<Geometry>,
    stash: Stash<BlockTrace>,
}

struct BlockTrace {
    first: Trace,
    /// The first layer's output.
    hidden: Vec<f32>,
    second: Trace,
    shortcut: Option<Trace>,
}

impl Block {
    fn split<'a>(&self, params: &'a [f32]) -> [&'a [f32]; 3] {
        let (first, rest) = params.split_at(params_len(&self.first));
        let (second, shortcut) = rest.split_at(params_len(&self.second));
        [first, second, shortcut]
    }
}

impl CustomOp2 for Block {
    fn name(&self) -> &'static str {
        "basic-block"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, p: &CpuStorage, lp: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, lx)?;
        let [p1, p2, p3] = self.split(slice(p, lp)?);
        let (hidden, first) = forward(x, p1, &self.first, None, true);
        let (y, second, shortcut) = match &self.shortcut {
            Some(shortcut) => {
                let (residual, trace) = forward(x, p3, shortcut, None, false);
                let (y, second) = forward(&hidden, p2, &self.second, Some(&residual), true);
                (y, second, Some(trace))
            }
            None => {
                let (y, second) = forward(&hidden, p2, &self.second, Some(x), true);
                (y, second, None)
            }
        };
        keep(&self.stash, BlockTrace { first, hidden, second, shortcut })?;
        Ok(blocked(y, self.second.y))
    }

    fn bwd(&self, x: &Tensor, params: &Tensor, y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let BlockTrace { first, hidden, second, shortcut } = kept(&self.stash)?;
        let g = with_slice(dy, |dy| with_slice(y, |y| Ok(norm::mask(dy, y))))?;
        let (dx, dparams) = with_slice(x, |xs| {
            with_slice(params, |params| {
                let [p1, p2, p3] = self.split(params);
                let (dhidden, dp2) = backward(hidden, p2, &self.second, second, Grad::Plain(&g), Wanted::Yes);
                let (around, dp3) = match (&self.shortcut, shortcut) {
                    (Some(geometry), Some(trace)) => backward(xs, p3, geometry, trace, Grad::Plain(&g), wanted(x)),
                    _ => (Some(g), Vec::new()),
                };
                let wanted = match &around {
                    Some(around) if x.track_op() => Wanted::Plus(around),
                    _ => Wanted::No,
                };
                let dhidden = dhidden.unwrap_or_default();
                let (dx, mut dparams) = backward(xs, p1, &self.first, first, Grad::Relu(&dhidden), wanted);
                dparams.extend(dp2);
                dparams.extend(dp3);
                Ok((dx, dparams))
            })
        })?;
        Ok((dx.map(|dx| tensor(dx, x.dims())).transpose()?, Some(tensor(dparams, params.dims())?)))
    }
}

/// `relu(second(relu(first(x))) + shortcut(x))` of a blocked activation, with the batch's statistics; differentiable.
/// Without a shortcut, `x` itself is added.
pub(in super::super) fn basic_block(
    x: &Tensor,
    first: Layer<'_>,
    second: Layer<'_>,
    shortcut: Option<Layer<'_>>,
) -> Result<(Tensor, [Option<Moments>; 3])> {
    let dims = Dims::of(x)?;
    let one = first.geometry(dims)?;
    let two = second.geometry(one.y)?;
    let three = shortcut.map(|s| s.geometry(dims)).transpose()?;
    if three.map_or(dims, |g| g.y) != two.y {
        bail!("the residual of a block does not fit its output of {:?}", two.y.shape());
    }
    let stash = Stash::default();
    let op = Block { first: one, second: two, shortcut: three, stash: stash.clone() };
    let mut params = Vec::new();
    for layer in [Some(first), Some(second), shortcut].into_iter().flatten() {
        params.extend(layer.params()?);
    }
    let y = x.contiguous()?.apply_op2(&Tensor::cat(&params, 0)?, op)?;
    let trace = kept(&stash)?;
    let shortcut = trace.shortcut.as_ref().zip(three.as_ref()).map(|(t, g)| moments(t, g)).transpose()?;
    Ok((y, [Some(moments(&trace.first, &one)?), Some(moments(&trace.second, &two)?), shortcut]))
}
