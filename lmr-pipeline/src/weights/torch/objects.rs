//! What the calls in a pickle of `torch.save` mean: tensors, state dicts, and whole modules.

use std::collections::{HashMap, HashSet};

use candle_core::Tensor;
use safetensors::Dtype;

use crate::problem::{hint, quoted};
use crate::tensors::{decode, dtype_size};
use crate::weights::pickle::{Node, Pickle, Value};
use crate::weights::{Entry, check_name};

/// How deep a state dict is looked for: `checkpoint["model"]["ema"]["shadow"]` is 3.
const MAX_DEPTH: usize = 4;
/// Wrappers around one tensor: parameter, subclass with attributes.
const MAX_WRAPPERS: usize = 4;
/// Modules inside modules; a ViT nests 6.
const MAX_MODULES: usize = 64;
/// Dimensions of a tensor.
const MAX_RANK: usize = 16;
/// State dicts that are worth listing.
const MAX_FOUND: usize = 32;
/// Bytes of a key on the way to a state dict, and of a storage's.
const MAX_KEY: usize = 100;
/// More than any classifier has.
const MAX_TENSORS: usize = 1 << 16;

/// Storages by key: bytes that the pickle refers to.
pub type Storages<'a> = HashMap<&'a str, &'a [u8]>;

/// A tensor before its numbers are read.
#[derive(Debug, PartialEq)]
struct TensorRef<'a> {
    storage: &'a str,
    /// Elements that the file says the storage has.
    length: u64,
    dtype: Dtype,
    offset: u64,
    shape: Vec<usize>,
    strides: Vec<u64>,
}

/// The state dict of a file.
pub struct Found {
    /// Where in the file: keys joined by dots, empty for the file itself.
    pub key: String,
    /// The tensors in the order of the file.
    pub tensors: Vec<Entry>,
    /// Names of entries that are no tensors.
    pub skipped: Vec<String>,
    /// Plain values at the top of the file, such as `epoch` or `arch`.
    pub notes: Vec<(String, String)>,
}

impl Found {
    /// A file that is one state dict.
    pub fn of(tensors: Vec<Entry>) -> Self {
        Self { key: String::new(), tensors, skipped: Vec::new(), notes: Vec::new() }
    }
}

/// The state dict under `key`, or the only one there is.
pub fn find(pickle: &Pickle, storages: &Storages, key: Option<&str>, file: usize) -> Result<Found, String> {
    let mut search = Search { pickle, visited: HashSet::new(), found: Vec::new() };
    search.visit(pickle.root(), "", 0);
    let names: Vec<&str> = search.found.iter().map(|(key, _)| key.as_str()).collect();
    let (key, value) = match (search.found.as_slice(), key) {
        (found, Some(key)) => found.iter().find(|(name, _)| name == key).ok_or_else(|| match names.as_slice() {
            [""] => format!("has no state dict `{key}`: it is one itself, and needs no `key`"),
            names => format!("has no state dict `{key}`{}", hint(key, names)),
        })?,
        ([one], None) => one,
        ([], None) => return Err("holds no state dict: no names with tensors".into()),
        (_, None) => {
            let names = quoted(&names[..names.len().min(12)]);
            return Err(format!("holds several state dicts ({names}); choose one with `key` in model.weights"));
        }
    };
    let mut found = Found { key: key.clone(), tensors: Vec::new(), skipped: Vec::new(), notes: notes(pickle) };
    let mut walk = Walk { pickle, entries: Vec::new(), budget: MAX_TENSORS };
    if pickle.items(*value).is_some() {
        walk.entries = walk.flat(*value)?;
    } else {
        walk.module(*value, "", 0)?;
    }
    let entries = walk.entries;
    // Tensors may share storages, as tied weights do, but a small file must not become large by it.
    let mut budget = 2 * file as u64;
    for (name, value) in entries {
        match tensor_ref(pickle, value) {
            Some(tensor) => {
                let tensor = tensor.and_then(|tensor| Ok((tensor.dtype, tensor.read(storages, &mut budget)?)));
                let (dtype, tensor) = tensor.map_err(|message| format!("tensor {name:?} {message}"))?;
                found.tensors.push(Entry { name, dtype, tensor });
            }
            None => found.skipped.push(name),
        }
    }
    Ok(found)
}

/// Looks for state dicts under string keys.
struct Search<'a> {
    pickle: &'a Pickle<'a>,
    visited: HashSet<u32>,
    found: Vec<(String, Value)>,
}

impl Search<'_> {
    /// Notes the innermost dicts that hold tensors: a dict that holds such a dict is a container, whatever else it has.
    fn visit(&mut self, value: Value, key: &str, depth: usize) {
        let Value::Node(index) = value else { return };
        if depth > MAX_DEPTH || self.found.len() >= MAX_FOUND || !self.visited.insert(index) {
            return;
        }
        if let Some(items) = self.pickle.items(value) {
            let before = self.found.len();
            for (name, value) in items {
                if let Some(name) = self.pickle.text(*name).filter(|name| is_short(name)) {
                    self.visit(*value, &join(key, name), depth + 1);
                }
            }
            if self.found.len() == before && items.iter().any(|item| self.is_weight(item)) {
                self.found.push((key.to_string(), value));
            }
        } else if members(self.pickle, value, "_modules").is_some() {
            self.found.push((key.to_string(), value));
        }
    }

    /// Whether it is a name with a matrix or more: a dict of scalars is a log or an optimizer's.
    fn is_weight(&self, (name, value): &(Value, Value)) -> bool {
        let tensor = tensor_ref(self.pickle, *value);
        self.pickle.text(*name).is_some()
            && tensor.is_some_and(|tensor| tensor.map_or(true, |tensor| tensor.shape.len() >= 2))
    }
}

/// Whether a text may be shown in a message: a hostile one could be endless, or rewrite the terminal.
fn is_short(text: &str) -> bool {
    text.len() <= MAX_KEY && !text.contains(char::is_control)
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_string() } else { format!("{prefix}.{name}") }
}

/// A dict among the attributes of a pickled module.
fn members(pickle: &Pickle, module: Value, name: &str) -> Option<Value> {
    match pickle.node(module)? {
        Node::Call(call) => pickle.get(call.state, name).filter(|members| pickle.items(*members).is_some()),
        _ => None,
    }
}

/// Collects names and values.
struct Walk<'a> {
    pickle: &'a Pickle<'a>,
    entries: Vec<(String, Value)>,
    /// Names that may still be looked at: modules can refer to each other in circles, and to one in many places.
    budget: usize,
}

impl Walk<'_> {
    /// The items of a dict with string keys. The last value of a name counts, in the place of the first, as in Python.
    fn flat(&mut self, dict: Value) -> Result<Vec<(String, Value)>, String> {
        let items = self.pickle.items(dict).unwrap_or_default();
        let left = self.budget.checked_sub(items.len() + 1);
        self.budget = left.ok_or_else(|| format!("has more than {MAX_TENSORS} names"))?;
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut entries = Vec::new();
        for (name, value) in items {
            let Some(name) = self.pickle.text(*name) else { continue };
            check_name(name)?;
            match places.get(name) {
                Some(place) => {
                    let (_, earlier): &mut (String, Value) = &mut entries[*place];
                    *earlier = *value;
                }
                None => {
                    places.insert(name, entries.len());
                    entries.push((name.to_string(), *value));
                }
            }
        }
        Ok(entries)
    }

    /// What `module.state_dict()` would give, without the module's class: parameters, buffers, then the modules inside.
    fn module(&mut self, value: Value, prefix: &str, depth: usize) -> Result<(), String> {
        if depth > MAX_MODULES {
            return Err(format!("nests more than {MAX_MODULES} modules"));
        }
        let hidden = hidden(self.pickle, value);
        for kind in ["_parameters", "_buffers"] {
            let own = members(self.pickle, value, kind).map_or(Ok(Vec::new()), |members| self.flat(members))?;
            let shown =
                own.into_iter().filter(|(name, value)| *value != Value::None && !hidden.contains(&name.as_str()));
            self.entries.extend(shown.map(|(name, value)| (join(prefix, &name), value)));
        }
        let inner = members(self.pickle, value, "_modules").map_or(Ok(Vec::new()), |members| self.flat(members))?;
        for (name, value) in inner {
            self.module(value, &join(prefix, &name), depth + 1)?;
        }
        Ok(())
    }
}

/// Names of the buffers that `state_dict` leaves out.
fn hidden<'a>(pickle: &'a Pickle, module: Value) -> HashSet<&'a str> {
    let hidden = match pickle.node(module) {
        Some(Node::Call(call)) => pickle.get(call.state, "_non_persistent_buffers_set"),
        _ => None,
    };
    // Protocol 2 pickles a set as a call of `set` with one list.
    let hidden = hidden.and_then(|set| match pickle.call(set) {
        Some((_, _, "set", [list])) => pickle.sequence(*list),
        _ => pickle.sequence(set),
    });
    hidden.unwrap_or_default().iter().filter_map(|name| pickle.text(*name)).collect()
}

/// Plain values at the top of the file.
fn notes(pickle: &Pickle) -> Vec<(String, String)> {
    let items = pickle.items(pickle.root()).unwrap_or_default();
    let note = |(name, value): &(Value, Value)| {
        let text = match value {
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            Value::Text(_) => pickle.text(*value)?.to_string(),
            _ => return None,
        };
        let name = pickle.text(*name)?;
        let plain = |text: &str| text.len() <= 200 && !text.contains(char::is_control);
        (plain(name) && plain(&text)).then(|| (name.to_string(), text))
    };
    items.iter().filter_map(note).take(32).collect()
}

/// A tensor, if the value is one; an error if it is one that cannot be.
fn tensor_ref<'a>(pickle: &'a Pickle, mut value: Value) -> Option<Result<TensorRef<'a>, String>> {
    for _ in 0..MAX_WRAPPERS {
        let (_, module, name, arguments) = pickle.call(value)?;
        match (module, name, arguments) {
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state", [inner, ..]) => value = *inner,
            ("torch._tensor", "_rebuild_from_type_v2", [function, _class, inner, ..]) => {
                let (Some("_rebuild_tensor_v2"), Some(arguments)) =
                    (pickle.global(*function).map(|(_, name)| name), pickle.sequence(*inner))
                else {
                    return None;
                };
                return Some(rebuilt(pickle, arguments, None));
            }
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2", arguments) => {
                return Some(rebuilt(pickle, arguments, None));
            }
            ("torch._utils", "_rebuild_tensor_v3", arguments @ [_, _, _, _, _, _, dtype, ..]) => {
                return Some(rebuilt(pickle, arguments, Some(*dtype)));
            }
            _ => return None,
        }
    }
    None
}

/// A tensor from the arguments (storage, offset, shape, strides, ...).
fn rebuilt<'a>(pickle: &'a Pickle, arguments: &[Value], dtype: Option<Value>) -> Result<TensorRef<'a>, String> {
    let [storage, offset, shape, strides, ..] = arguments else {
        return Err("lacks a storage, an offset, a shape or strides".into());
    };
    let (storage, class, length, start) =
        storage_ref(pickle, *storage).ok_or("has a storage that is described in an unknown way")?;
    let dtype = match dtype {
        Some(dtype) => pickle.global(dtype).and_then(|(_, name)| dtype_of(name)),
        None => dtype_of(class),
    };
    let dtype = dtype.ok_or_else(|| format!("has a storage of type {class:?}, which cannot be read"))?;
    let dimensions = |value: &Value| -> Option<Vec<u64>> {
        // `torch.Size` is a call around a tuple.
        let elements = match pickle.call(*value) {
            Some((_, "torch", "Size", [tuple])) => pickle.sequence(*tuple),
            _ => pickle.sequence(*value),
        };
        elements.filter(|all| all.len() <= MAX_RANK)?.iter().map(|value| unsigned(*value)).collect()
    };
    let shape = dimensions(shape).ok_or("has a shape with a negative dimension, or none, or too many")?;
    let strides = dimensions(strides).ok_or("has strides with a negative one, or none, or too many")?;
    let offset = unsigned(*offset).ok_or("has a negative offset")?;
    if shape.len() != strides.len() {
        return Err(format!("has {} dimensions and {} strides", shape.len(), strides.len()));
    }
    let offset = offset.checked_add(start).ok_or("begins outside of its storage")?;
    let shape = shape.iter().map(|dimension| usize::try_from(*dimension)).collect::<Result<_, _>>();
    let shape = shape.map_err(|_| "has a dimension that is too large")?;
    Ok(TensorRef { storage, length, dtype, offset, shape, strides })
}

/// Key, class name, number of elements and first element of a storage.
fn storage_ref<'a>(pickle: &'a Pickle, value: Value) -> Option<(&'a str, &'a str, u64, u64)> {
    let Node::Persistent(id) = pickle.node(value)? else { return None };
    let (kind, class, key, length, view) = match pickle.sequence(*id)? {
        [kind, class, key, _device, length] => (kind, class, key, length, Value::None),
        [kind, class, key, _device, length, view] => (kind, class, key, length, *view),
        _ => return None,
    };
    // Before PyTorch 0.4 a storage could be a part of another: (key, first element, elements).
    let start = match pickle.sequence(view) {
        Some([_, start, _]) => unsigned(*start)?,
        _ => 0,
    };
    let (_, class) = pickle.global(*class).filter(|_| pickle.text(*kind) == Some("storage"))?;
    let key = pickle.text(*key).filter(|key| is_short(key) && is_short(class))?;
    Some((key, class, unsigned(*length)?, start))
}

fn unsigned(value: Value) -> Option<u64> {
    match value {
        Value::Int(value) => u64::try_from(value).ok(),
        _ => None,
    }
}

/// The dtype of a storage class or of a name in `torch`.
fn dtype_of(name: &str) -> Option<Dtype> {
    Some(match name {
        "FloatStorage" | "float32" => Dtype::F32,
        "HalfStorage" | "float16" => Dtype::F16,
        "BFloat16Storage" | "bfloat16" => Dtype::BF16,
        "DoubleStorage" | "float64" => Dtype::F64,
        "LongStorage" | "int64" => Dtype::I64,
        "IntStorage" | "int32" => Dtype::I32,
        "ShortStorage" | "int16" => Dtype::I16,
        "CharStorage" | "int8" => Dtype::I8,
        "ByteStorage" | "UntypedStorage" | "uint8" => Dtype::U8,
        "BoolStorage" | "bool" => Dtype::BOOL,
        "uint32" => Dtype::U32,
        _ => return None,
    })
}

impl TensorRef<'_> {
    /// Copies the numbers into row-major order. Takes what they need from `budget`, in bytes.
    fn read(&self, storages: &Storages, budget: &mut u64) -> Result<Tensor, String> {
        let storage = storages.get(self.storage).copied();
        let storage = storage.ok_or_else(|| format!("has its numbers in {:?}, which is missing", self.storage))?;
        let size = dtype_size(self.dtype).ok_or("has an unknown dtype")?;
        let held = (storage.len() / size) as u64;
        let elements = self.shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim as u64));
        let elements = elements
            .filter(|elements| *elements <= held)
            .ok_or_else(|| format!("should have the shape {:?}, but its storage has {held} elements", self.shape))?;
        if elements > 0 {
            let last =
                self.shape.iter().zip(&self.strides).try_fold(self.offset, |last, (dim, stride)| {
                    last.checked_add((*dim as u64 - 1).checked_mul(*stride)?)
                });
            last.filter(|last| *last < held).ok_or_else(|| {
                format!("reaches outside of its storage, which has {held} elements (the file says {})", self.length)
            })?;
        }
        let bytes = elements * size as u64;
        *budget =
            budget.checked_sub(bytes).ok_or("and others share storages so often that they would not fit the memory")?;
        decode(self.dtype, &self.shape, &self.gather(storage, size, elements as usize))
    }

    /// Elements in row-major order; everything was checked to be inside.
    fn gather(&self, storage: &[u8], size: usize, elements: usize) -> Vec<u8> {
        let start = if elements == 0 { 0 } else { self.offset as usize * size };
        let mut dense = 1;
        let contiguous = self.shape.iter().zip(&self.strides).rev().all(|(dim, stride)| {
            let fits = *dim == 1 || *stride == dense;
            dense *= *dim as u64;
            fits
        });
        if contiguous || elements == 0 {
            return storage[start..start + elements * size].to_vec();
        }
        let mut bytes = Vec::with_capacity(elements * size);
        let mut index = vec![0; self.shape.len()];
        let mut at = self.offset as usize;
        for _ in 0..elements {
            bytes.extend_from_slice(&storage[at * size..][..size]);
            for ((index, dim), stride) in index.iter_mut().zip(&self.shape).zip(&self.strides).rev() {
                let stride = *stride as usize;
                *index += 1;
                at += stride;
                if *index < *dim {
                    break;
                }
                at -= stride * *index;
                *index = 0;
            }
        }
        bytes
    }
}

/// Bytes of an element, for every storage that a pickle refers to.
pub fn storage_sizes<'a>(pickle: &'a Pickle) -> HashMap<&'a str, usize> {
    let size_of = |index| {
        let (key, class, ..) = storage_ref(pickle, Value::Node(index))?;
        Some((key, dtype_size(dtype_of(class)?)?))
    };
    (0..pickle.node_count()).filter_map(size_of).collect()
}
