//! Named parameters: built from a random stream or from a checkpoint, always in the order the model declares them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use candle_core::{DType, Device, Shape, Tensor, Var};
use rand::RngExt;

use crate::error::{Error, Result, WeightsError};
use crate::nearest::nearest;
use crate::rng::Rng;

/// A state dict: PyTorch names to tensors.
pub type StateDict = BTreeMap<String, Tensor>;

/// How a parameter starts when it does not come from a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Uniform in `[-bound, bound]`.
    Uniform {
        /// Half the width of the interval.
        bound: f32,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f32,
    },
}

/// What a named entry is to training.
#[derive(Clone, Debug)]
pub enum Slot {
    /// Trained by an optimizer.
    Parameter(Var),
    /// Saved and loaded, never trained (running statistics).
    Buffer(Var),
    /// An integer that PyTorch keeps (`num_batches_tracked`).
    Counter(Arc<AtomicI64>),
}

/// All named entries of a model, in the order of their declaration.
#[derive(Clone, Debug, Default)]
pub struct Params(Vec<(String, Slot)>);

impl Params {
    /// Variables that somebody else holds, under their names, as those of a `candle_nn::VarMap`. In the order of their names, so
    /// that a map's own order, which is another one in every process, changes nothing.
    ///
    /// What is called `running_mean` or `running_var`, alone or behind a dot, is a buffer, anything else is trained.
    ///
    /// ```
    /// use std::collections::HashMap;
    ///
    /// use candle_core::{DType, Device, Var};
    /// use lmr_nn::Params;
    ///
    /// // In place of `varmap.data().lock()`.
    /// let mut vars = HashMap::new();
    /// for name in ["head.weight", "bn.weight", "bn.running_mean"] {
    ///     vars.insert(name.to_string(), Var::zeros(4, DType::F32, &Device::Cpu)?);
    /// }
    /// let params = Params::from_vars(vars.iter().map(|(name, var)| (name.clone(), var.clone())))?;
    /// let trained: Vec<_> = params.trainable().map(|(name, _)| name).collect();
    /// assert_eq!(trained, ["bn.weight", "head.weight"]);
    /// assert!(params.get("bn.running_mean").is_some());
    /// # Ok::<(), lmr_nn::Error>(())
    /// ```
    pub fn from_vars(vars: impl IntoIterator<Item = (String, Var)>) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for (name, var) in vars {
            let buffer = matches!(name.rsplit('.').next(), Some("running_mean" | "running_var"));
            let slot = if buffer { Slot::Buffer(var) } else { Slot::Parameter(var) };
            if entries.insert(name.clone(), slot).is_some() {
                return Err(Error::DuplicateName { name });
            }
        }
        Ok(Self(entries.into_iter().collect()))
    }

    /// The parameter or buffer of this name.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.iter().find(|(found, _)| *found == name).and_then(|(_, slot)| match slot {
            Slot::Parameter(var) | Slot::Buffer(var) => Some(var),
            Slot::Counter(_) => None,
        })
    }

    /// The parameter or buffer of this name, or an error that says which names come near.
    pub(crate) fn require(&self, name: &str) -> Result<&Var> {
        self.get(name).ok_or_else(|| {
            let near = nearest(name, self.iter().map(|(found, _)| found), name.len() / 2);
            let near = near.into_iter().take(3).map(str::to_string).collect();
            Error::NoParameter { name: name.to_string(), near }
        })
    }

    /// Every entry.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Slot)> {
        self.0.iter().map(|(name, slot)| (name.as_str(), slot))
    }

    /// What an optimizer trains.
    pub fn trainable(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.iter().filter_map(|(name, slot)| match slot {
            Slot::Parameter(var) => Some((name, var)),
            _ => None,
        })
    }

    /// The parameters that are wanted; they stay shared with the model.
    pub fn only(&self, wanted: impl Fn(&Var) -> bool) -> Self {
        let wanted = |slot: &Slot| matches!(slot, Slot::Parameter(var) if wanted(var));
        Self(self.0.iter().filter(|(_, slot)| wanted(slot)).cloned().collect())
    }

    /// A deep copy of every entry under its PyTorch name: the tensors share nothing with the model.
    pub fn state_dict(&self) -> Result<StateDict> {
        let copy = |(name, slot): (&str, &Slot)| {
            let tensor = match slot {
                Slot::Parameter(var) | Slot::Buffer(var) => var.as_tensor().detach().copy()?,
                Slot::Counter(count) => Tensor::new(count.load(Ordering::Relaxed), &Device::Cpu)?,
            };
            Ok((name.to_string(), tensor))
        };
        self.iter().map(copy).collect()
    }

    /// Overwrites every entry in place with the tensors of `state`, which must have the same names and shapes. Where one of
    /// them does not fit, nothing changes, and the error names all of them.
    pub fn load_state_dict(&self, state: &StateDict) -> Result<()> {
        let mut faults = WeightsError::default();
        for (name, slot) in self.iter() {
            match (state.get(name), slot) {
                (None, _) => faults.missing.push(name.to_string()),
                (Some(found), Slot::Parameter(var) | Slot::Buffer(var)) => {
                    faults.mismatched.extend(misfit(name, var.shape(), found));
                }
                (Some(found), Slot::Counter(_)) => faults.mismatched.extend(no_counter(name, found)),
            }
        }
        let known: BTreeSet<&str> = self.iter().map(|(name, _)| name).collect();
        faults.unexpected = state.keys().filter(|name| !known.contains(name.as_str())).cloned().collect();
        faults.into_result()?;
        for (name, slot) in self.iter() {
            let tensor = &state[name];
            match slot {
                Slot::Parameter(var) | Slot::Buffer(var) => {
                    var.set(&tensor.to_dtype(var.dtype())?.to_device(var.device())?)?;
                }
                Slot::Counter(count) => count.store(integer(tensor)?, Ordering::Relaxed),
            }
        }
        Ok(())
    }

    /// Elements in all trainable parameters.
    pub fn count(&self) -> usize {
        self.trainable().map(|(_, var)| var.elem_count()).sum()
    }
}

/// What is wrong about a tensor that is to become `name`: its shape, or a dtype that is no floating-point number.
fn misfit(name: &str, shape: &Shape, found: &Tensor) -> Option<String> {
    let fits = found.shape() == shape && found.dtype().is_float();
    let (expected, dims, dtype) = (shape.dims(), found.dims(), found.dtype().as_str());
    (!fits).then(|| format!("{name}: expected {expected:?} of floats, found {dims:?} of {dtype}"))
}

/// What is wrong about a tensor that is to become a counter.
fn no_counter(name: &str, found: &Tensor) -> Option<String> {
    (found.elem_count() != 1).then(|| format!("{name}: expected one integer, found {:?}", found.dims()))
}

/// The value of a tensor of one element.
fn integer(tensor: &Tensor) -> Result<i64> {
    Ok(tensor.flatten_all()?.get(0)?.to_dtype(DType::I64)?.to_scalar()?)
}

enum Origin {
    Fresh(Rng),
    State(StateDict),
}

struct Store {
    source: Origin,
    device: Device,
    entries: Vec<(String, Slot)>,
    taken: BTreeSet<String>,
    faults: WeightsError,
}

/// Where layers get their parameters while a model is built; knows its place in the tree of names.
///
/// A builder never stops at the first fault: it hands out zeros for what is missing, and [`Builder::finish`] reports
/// everything at once.
#[derive(Clone)]
pub struct Builder {
    store: Rc<RefCell<Store>>,
    prefix: String,
}

impl Builder {
    /// Parameters drawn from `rng`.
    pub fn fresh(rng: Rng, device: &Device) -> Self {
        Self::new(Origin::Fresh(rng), device)
    }

    /// Parameters taken from a checkpoint; floating-point dtypes are converted to f32.
    pub fn from_state(state: StateDict, device: &Device) -> Self {
        Self::new(Origin::State(state), device)
    }

    fn new(source: Origin, device: &Device) -> Self {
        let (entries, taken, faults) = Default::default();
        let store = Store { source, device: device.clone(), entries, taken, faults };
        Self { store: Rc::new(RefCell::new(store)), prefix: String::new() }
    }

    /// The builder one level down: `b.pp("layer1").pp(0)` names things `layer1.0.*`.
    pub fn pp(&self, part: impl std::fmt::Display) -> Self {
        let prefix = if self.prefix.is_empty() { part.to_string() } else { format!("{}.{part}", self.prefix) };
        Self { store: self.store.clone(), prefix }
    }

    /// The full name of this place, without the last part (`layer1.0.conv1`).
    pub fn path(&self) -> &str {
        &self.prefix
    }

    /// The device that everything is built on.
    pub fn device(&self) -> Device {
        self.store.borrow().device.clone()
    }

    /// A trainable parameter called `<path>.<name>`.
    pub fn parameter(&self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Var> {
        let var = self.tensor(name, shape.into(), init)?;
        self.push(name, Slot::Parameter(var.clone()));
        Ok(var)
    }

    /// A buffer called `<path>.<name>`: saved, loaded, never trained.
    pub fn buffer(&self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Var> {
        let var = self.tensor(name, shape.into(), init)?;
        self.push(name, Slot::Buffer(var.clone()));
        Ok(var)
    }

    /// An integer called `<path>.<name>`, 0 where the checkpoint has none.
    pub fn counter(&self, name: &str) -> Result<Arc<AtomicI64>> {
        let full = self.full(name);
        let mut store = self.store.borrow_mut();
        store.taken.insert(full.clone());
        let value = match &store.source {
            Origin::State(state) => match state.get(&full).map(|tensor| (tensor, no_counter(&full, tensor))) {
                Some((tensor, None)) => integer(tensor)?,
                Some((_, Some(fault))) => {
                    store.faults.mismatched.push(fault);
                    0
                }
                None => 0,
            },
            Origin::Fresh(_) => 0,
        };
        drop(store);
        let count = Arc::new(AtomicI64::new(value));
        self.push(name, Slot::Counter(count.clone()));
        Ok(count)
    }

    /// All entries, or everything that did not fit. Call it once, on the root, when the model is built.
    pub fn finish(&self) -> Result<Params> {
        let mut store = self.store.borrow_mut();
        let mut faults = std::mem::take(&mut store.faults);
        if let Origin::State(state) = &store.source {
            faults.unexpected = state.keys().filter(|name| !store.taken.contains(*name)).cloned().collect();
        }
        faults.into_result()?;
        Ok(Params(std::mem::take(&mut store.entries)))
    }

    fn full(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    fn push(&self, name: &str, slot: Slot) {
        let full = self.full(name);
        self.store.borrow_mut().entries.push((full, slot));
    }

    fn tensor(&self, name: &str, shape: Shape, init: Init) -> Result<Var> {
        let full = self.full(name);
        let mut store = self.store.borrow_mut();
        let Store { source, device, taken, faults, .. } = &mut *store;
        taken.insert(full.clone());
        let tensor = match source {
            Origin::Fresh(rng) => init.draw(rng, &shape, device)?,
            Origin::State(state) => match state.get(&full) {
                None => {
                    faults.missing.push(full);
                    Tensor::zeros(shape, DType::F32, device)?
                }
                Some(found) => match misfit(&full, &shape, found) {
                    Some(fault) => {
                        faults.mismatched.push(fault);
                        Tensor::zeros(shape, DType::F32, device)?
                    }
                    None => found.to_dtype(DType::F32)?.to_device(device)?.contiguous()?.copy()?,
                },
            },
        };
        Ok(Var::from_tensor(&tensor)?)
    }
}

impl Init {
    fn draw(self, rng: &mut Rng, shape: &Shape, device: &Device) -> Result<Tensor> {
        let n = shape.elem_count();
        let values: Vec<f32> = match self {
            Self::Zeros => vec![0.0; n],
            Self::Ones => vec![1.0; n],
            Self::Uniform { bound } => (0..n).map(|_| bound * (2.0 * rng.random::<f32>() - 1.0)).collect(),
            Self::Normal { std } => (0..n).map(|_| std * normal(rng)).collect(),
        };
        Ok(Tensor::from_vec(values, shape.clone(), device)?)
    }
}

/// One draw from the standard normal distribution (Box-Muller).
fn normal(rng: &mut Rng) -> f32 {
    let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    #[test]
    fn every_fault_is_reported_at_once() {
        let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
        let state = StateDict::from([("a.w".into(), zeros(&[3])), ("b.extra".into(), zeros(&[1]))]);
        let b = Builder::from_state(state, &Device::Cpu);
        b.pp("a").parameter("w", (2, 2), Init::Zeros).unwrap();
        b.pp("b").parameter("w", 2, Init::Zeros).unwrap();
        let message = b.finish().unwrap_err().to_string();
        for part in ["missing: b.w", "unexpected: b.extra", "a.w: expected [2, 2]"] {
            assert!(message.contains(part), "{message}");
        }
    }

    /// One parameter, one buffer and one counter.
    fn params() -> Params {
        let b = Builder::fresh(rng::stream(0, "test"), &Device::Cpu);
        b.parameter("w", 4, Init::Ones).unwrap();
        b.buffer("running_mean", 2, Init::Zeros).unwrap();
        b.counter("batches").unwrap();
        b.finish().unwrap()
    }

    #[test]
    fn loading_reports_every_fault_at_once_and_changes_nothing() {
        let params = params();
        let mut state = params.state_dict().unwrap();
        state.insert("w".into(), Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap());
        state.insert("running_mean".into(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
        state.insert("batch".into(), state["batches"].clone());
        state.remove("batches");
        let Err(Error::Weights(faults)) = params.load_state_dict(&state) else { panic!("loaded") };
        assert_eq!((faults.missing, faults.unexpected), (vec!["batches".to_string()], vec!["batch".to_string()]));
        assert_eq!(faults.mismatched, ["running_mean: expected [2] of floats, found [3] of f32"]);
        assert_eq!(params.get("w").unwrap().to_vec1::<f32>().unwrap(), [1.0; 4]);
    }

    #[test]
    fn loading_takes_integers_for_counters_alone() {
        let params = params();
        let mut state = params.state_dict().unwrap();
        state.insert("batches".into(), Tensor::new(7i64, &Device::Cpu).unwrap());
        params.load_state_dict(&state).unwrap();
        assert_eq!(params.state_dict().unwrap()["batches"].to_scalar::<i64>().unwrap(), 7);
        state.insert("w".into(), Tensor::zeros(4, DType::U8, &Device::Cpu).unwrap());
        assert!(params.load_state_dict(&state).unwrap_err().to_string().contains("of floats, found [4] of u8"));
    }

    #[test]
    fn variables_come_in_the_order_of_their_names() {
        let var = || Var::zeros(2, DType::F32, &Device::Cpu).unwrap();
        let names = ["b.weight", "a.weight", "b.running_var", "a.not_running_var", "running_mean"];
        let params = Params::from_vars(names.map(|name| (name.to_string(), var()))).unwrap();
        let found: Vec<_> = params.iter().map(|(name, slot)| (name, matches!(slot, Slot::Parameter(_)))).collect();
        let expected = [
            ("a.not_running_var", true),
            ("a.weight", true),
            ("b.running_var", false),
            ("b.weight", true),
            ("running_mean", false),
        ];
        assert_eq!(found, expected);
        let error = Params::from_vars(["a", "a"].map(|name| (name.to_string(), var()))).unwrap_err();
        assert!(matches!(error, Error::DuplicateName { name } if name == "a"));
    }

    #[test]
    fn a_state_dict_shares_nothing_with_the_model() {
        let b = Builder::fresh(rng::stream(0, "test"), &Device::Cpu);
        let var = b.parameter("w", 4, Init::Ones).unwrap();
        let params = b.finish().unwrap();
        let saved = params.state_dict().unwrap();
        var.set(&var.zeros_like().unwrap()).unwrap();
        assert_eq!(saved["w"].to_vec1::<f32>().unwrap(), [1.0; 4]);
        params.load_state_dict(&saved).unwrap();
        assert_eq!(var.to_vec1::<f32>().unwrap(), [1.0; 4]);
    }
}
