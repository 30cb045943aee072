//! The convolutional part of a network as one Candle operation with a hand-written gradient.
//!
//! One operation rather than one per layer, because Candle adds up the gradient of every operation's output in a fresh
//! tensor, and because what passes between the layers can then live in reused buffers.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::links::Parameters;
use crate::cpu::access::{blocked, slice, tensor, with_slice};
use crate::cpu::activation::{Bounds, activate_in_place, fused, slope_in_place};
use crate::cpu::conv::finish::Finish;
use crate::cpu::conv::geometry::Geometry;
use crate::cpu::conv::kernels::{convolve, input_gradient, weight_gradient};
use crate::cpu::conv::ops::check;
use crate::cpu::layout::Dims;
use crate::cpu::norm::statistics;
use crate::cpu::norm::{Norm, channel_sums};
use crate::cpu::pool::MaxPool;
use crate::cpu::scratch::Scratch;
use crate::cpu::stash::{Stash, keep, kept};
use crate::layers::{Activation, ConvConfig, Moments};
use crate::padding::Padding;

/// A layer with its parameters; see [`Layer`](crate::Layer).
#[derive(Clone, Copy)]
pub(crate) enum Kind<'a> {
    /// Weight, gamma, beta.
    ConvBn(&'a Tensor, &'a Tensor, &'a Tensor, &'a ConvConfig),
    /// Weight and bias.
    Conv(&'a Tensor, Option<&'a Tensor>, &'a ConvConfig),
    /// Gamma and beta.
    BatchNorm(&'a Tensor, &'a Tensor),
    /// Output size, kernel, stride, padding.
    MaxPool((usize, usize), usize, usize, Padding),
}

/// A layer and what it reads; see [`Node`](crate::Node).
#[derive(Clone, Copy)]
pub(crate) struct Step<'a> {
    pub kind: Kind<'a>,
    pub input: usize,
    pub residual: Option<usize>,
    pub activation: Activation,
}

/// What a step does once its shapes are known.
#[derive(Clone, Copy)]
enum Work {
    ConvBn(Geometry),
    Conv(Geometry, bool),
    BatchNorm,
    MaxPool(MaxPool),
}

#[derive(Clone, Copy)]
struct Plan {
    work: Work,
    input: usize,
    residual: Option<usize>,
    activation: Activation,
    /// Dimensions of the output.
    y: Dims,
    /// The first of its parameters, and how many there are.
    parameters: (usize, usize),
}

/// What a step leaves for its backward pass.
enum Trace {
    Normed { z: Option<Scratch>, norm: Norm },
    Plain,
    Winners(Vec<u8>),
}

/// Everything that the forward pass leaves: traces, and the values after the input, the last being the operation's output.
struct Kept {
    traces: Vec<Trace>,
    values: Vec<Option<Scratch>>,
}

struct Graph {
    plans: Vec<Plan>,
    parameters: Parameters,
    stash: Stash<Kept>,
}

impl Plan {
    /// Fills `y` from the value it reads and, if any, the residual.
    fn forward(&self, x: &[f32], residual: Option<&[f32]>, parameters: &[&[f32]], y: &mut [f32]) -> Trace {
        let (bounds, rest) = fused(self.activation);
        let trace = match (&self.work, parameters) {
            (Work::ConvBn(geometry), [weight, gamma, beta]) => {
                let mut z = Scratch::take(y.len());
                let sums = convolve(x, weight, geometry, Finish::Statistics, &mut z);
                let norm = Norm::new(&sums, self.y, gamma, beta);
                norm.apply(&z, self.y, residual, bounds, y);
                Trace::Normed { z: Some(z), norm }
            }
            (Work::BatchNorm, [gamma, beta]) => {
                let norm = Norm::new(&statistics::sums(x, self.y), self.y, gamma, beta);
                norm.apply(x, self.y, None, bounds, y);
                Trace::Normed { z: None, norm }
            }
            (Work::Conv(geometry, _), [weight, bias @ ..]) => {
                convolve(x, weight, geometry, Finish::Activate { bias: bias.first().copied(), residual, bounds }, y);
                Trace::Plain
            }
            (Work::MaxPool(pool), _) => {
                let mut winners = vec![0; y.len()];
                pool.forward(x, y, &mut winners);
                Trace::Winners(winners)
            }
            // `plan` pairs work with its parameters.
            _ => Trace::Plain,
        };
        activate_in_place(y, rest);
        trace
    }
}

/// Gradients of the values while backward runs.
struct Gradients(Vec<Option<Scratch>>);

impl Gradients {
    /// Adds `more` to the gradient of a value.
    fn add(&mut self, value: usize, more: Scratch) {
        match &mut self.0[value] {
            Some(sum) => add(sum, &more),
            none => *none = Some(more),
        }
    }

    /// Adds what `fill(already there, out)` writes.
    fn fill(&mut self, value: usize, len: usize, fill: impl FnOnce(Option<&[f32]>, &mut [f32])) {
        let before = self.0[value].take();
        let mut sum = Scratch::take(len);
        fill(before.as_deref(), &mut sum);
        self.0[value] = Some(sum);
    }
}

fn add(sum: &mut [f32], more: &[f32]) {
    use rayon::prelude::*;
    const CHUNK: usize = 1 << 14;
    sum.par_chunks_mut(CHUNK).zip(more.par_chunks(CHUNK)).for_each(|(sum, more)| {
        sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    });
}

fn copy(x: &[f32]) -> Scratch {
    let mut copy = Scratch::take(x.len());
    copy.copy_from_slice(x);
    copy
}

impl Plan {
    /// From the gradient `g` of the output: adds to those of the values it read, if anything depends on them, and returns
    /// those of the parameters.
    fn backward(
        &self,
        (x, y): (&[f32], &[f32]),
        parameters: &[&[f32]],
        trace: &Trace,
        mut g: Scratch,
        gradients: &mut Gradients,
        wanted: bool,
    ) -> Vec<Vec<f32>> {
        // Batch norm works out again what its own activation cut off; everything else reads it off the output.
        let bounds = match (Bounds::of(self.activation), trace) {
            (Some(bounds), Trace::Normed { .. }) if self.residual.is_none() => bounds,
            _ => {
                slope_in_place(&mut g, y, self.activation);
                Bounds::NONE
            }
        };
        match (&self.work, trace, parameters) {
            (Work::ConvBn(geometry), Trace::Normed { z: Some(z), norm }, [weight, ..]) => {
                let [dgamma, dbeta] = match self.residual {
                    Some(residual) => {
                        let mut dz = Scratch::take(g.len());
                        let of_norm = norm.backward(z, self.y, &g, &mut dz);
                        gradients.add(residual, std::mem::replace(&mut g, dz));
                        of_norm
                    }
                    None => norm.backward_in_place(z, self.y, &mut g, bounds),
                };
                if wanted {
                    gradients.fill(self.input, x.len(), |more, dx| input_gradient(&g, weight, geometry, more, dx));
                }
                vec![weight_gradient(x, &g, geometry), dgamma, dbeta]
            }
            (Work::BatchNorm, Trace::Normed { norm, .. }, _) => {
                let sums = norm.backward_in_place(x, self.y, &mut g, bounds);
                if wanted {
                    gradients.add(self.input, g);
                }
                sums.into()
            }
            (Work::Conv(geometry, bias), _, [weight, ..]) => {
                if let Some(residual) = self.residual {
                    gradients.add(residual, copy(&g));
                }
                if wanted {
                    gradients.fill(self.input, x.len(), |more, dx| input_gradient(&g, weight, geometry, more, dx));
                }
                let mut all = vec![weight_gradient(x, &g, geometry)];
                if *bias {
                    all.push(channel_sums(&g, self.y));
                }
                all
            }
            (Work::MaxPool(pool), Trace::Winners(winners), _) => {
                if wanted {
                    let mut dx = Scratch::take(x.len());
                    pool.backward(&g, winners, &mut dx);
                    gradients.add(self.input, dx);
                }
                Vec::new()
            }
            // `forward` leaves the trace that belongs to the work.
            _ => Vec::new(),
        }
    }
}

impl CustomOp2 for Graph {
    fn name(&self) -> &'static str {
        "trunk"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, lx)?;
        let Some(last) = self.plans.last().map(|plan| plan.y) else { bail!("a trunk is empty") };
        let mut out = vec![0.0; last.len()];
        let mut kept = Kept { traces: Vec::new(), values: Vec::new() };
        self.parameters.with(|parameters| {
            for (i, plan) in self.plans.iter().enumerate() {
                let (first, count) = plan.parameters;
                let own = &parameters[first..first + count];
                let is_last = i + 1 == self.plans.len();
                let mut y = (!is_last).then(|| Scratch::take(plan.y.len()));
                let value = |v: usize| if v == 0 { Some(x) } else { kept.values[v - 1].as_deref() };
                let Some(input) = value(plan.input) else { bail!("a trunk's output is read inside of it") };
                let residual = plan.residual.and_then(value);
                let trace = plan.forward(input, residual, own, y.as_deref_mut().unwrap_or(&mut out));
                kept.traces.push(trace);
                kept.values.push(y);
            }
            Ok(())
        })?;
        keep(&self.stash, kept)?;
        Ok(blocked(out, last))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let kept = kept(&self.stash)?;
        let mut gradients = Gradients((0..=self.plans.len()).map(|_| None).collect());
        gradients.0[self.plans.len()] = Some(with_slice(dy, |dy| Ok(copy(dy)))?);
        let (mut of_parameters, tracked) = (Vec::new(), x.track_op());
        with_slice(x, |x| {
            with_slice(y, |y| {
                self.parameters.with(|parameters| {
                    let value = |v: usize| if v == 0 { x } else { kept.values[v - 1].as_deref().unwrap_or(y) };
                    for (i, plan) in self.plans.iter().enumerate().rev() {
                        let (first, count) = plan.parameters;
                        let own = &parameters[first..first + count];
                        let Some(g) = gradients.0[i + 1].take() else { bail!("nothing reads node {i} of a trunk") };
                        let wanted = plan.input > 0 || tracked;
                        let values = (value(plan.input), value(i + 1));
                        of_parameters.push(plan.backward(values, own, &kept.traces[i], g, &mut gradients, wanted));
                    }
                    Ok(())
                })
            })
        })?;
        let links = self.parameters.resolve(of_parameters.into_iter().rev().flatten().collect())?;
        let dx = gradients.0[0].take().filter(|_| tracked);
        Ok((dx.map(|dx| tensor(dx.to_vec(), x.dims())).transpose()?, Some(links)))
    }
}

/// Runs the steps on a blocked activation, with the batch's statistics; differentiable. Also what every batch norm saw, in
/// order.
pub(crate) fn trunk(x: &Tensor, steps: &[Step<'_>]) -> Result<(Tensor, Vec<Moments>)> {
    let (plans, tensors) = plan(Dims::of(x)?, steps)?;
    let stash = Stash::default();
    let (parameters, links) = Parameters::new(&tensors)?;
    let op = Graph { plans: plans.clone(), parameters, stash: stash.clone() };
    let y = x.contiguous()?.apply_op2(&links, op)?;
    let mut seen = Vec::new();
    for (plan, trace) in plans.iter().zip(&kept(&stash)?.traces) {
        if let Trace::Normed { norm, .. } = trace {
            let of = |values: &[f32]| tensor(values.to_vec(), &[plan.y.c]);
            seen.push(Moments { mean: of(&norm.mean)?, var: of(&norm.var)?, count: plan.y.count() });
        }
    }
    Ok((y, seen))
}

/// Works out all shapes; also lists the parameters in the order of the steps.
fn plan<'a>(x: Dims, steps: &[Step<'a>]) -> Result<(Vec<Plan>, Vec<&'a Tensor>)> {
    let (mut plans, mut tensors, mut dims) = (Vec::new(), Vec::new(), vec![x]);
    for step in steps {
        let of = |value: usize| match dims.get(value) {
            Some(dims) => Ok(*dims),
            None => bail!("a node of a trunk reads value {value}, which comes later"),
        };
        let input = of(step.input)?;
        let first = tensors.len();
        let (work, y) = match step.kind {
            Kind::ConvBn(weight, gamma, beta, config) => {
                let geometry = Geometry::new(input, weight.dims4()?.into(), *config)?;
                check(geometry.y, None, &[gamma, beta])?;
                tensors.extend([weight, gamma, beta]);
                (Work::ConvBn(geometry), geometry.y)
            }
            Kind::Conv(weight, bias, config) => {
                let geometry = Geometry::new(input, weight.dims4()?.into(), *config)?;
                check(geometry.y, None, bias.as_slice())?;
                tensors.push(weight);
                tensors.extend(bias);
                (Work::Conv(geometry, bias.is_some()), geometry.y)
            }
            Kind::BatchNorm(gamma, beta) => {
                check(input, None, &[gamma, beta])?;
                tensors.extend([gamma, beta]);
                (Work::BatchNorm, input)
            }
            Kind::MaxPool(size, kernel, stride, padding) => {
                let pool = MaxPool::new(input, size, kernel, stride, padding);
                (Work::MaxPool(pool), pool.y())
            }
        };
        if let Some(residual) = step.residual
            && of(residual)? != y
        {
            bail!("the residual of a node of a trunk does not fit its output of {:?}", y.shape());
        }
        let parameters = (first, tensors.len() - first);
        let Step { input, residual, activation, .. } = *step;
        plans.push(Plan { work, input, residual, activation, y, parameters });
        dims.push(y);
    }
    Ok((plans, tensors))
}
