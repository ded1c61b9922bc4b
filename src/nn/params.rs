//! Parameters by checkpoint name: which are frozen, which are trainable, and whether a load was clean.

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor, Var};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// The parameters of one network, by their name in the checkpoint.
///
/// A frozen parameter is a plain tensor; a trainable one is a [`Var`], whose tensor the layers hold. Networks built from
/// [`ParamStore::detached`] share the storage of both and never record a graph: they see every update.
#[derive(Clone, Default)]
pub struct ParamStore {
    tensors: BTreeMap<String, Tensor>,
    vars: BTreeMap<String, Var>,
    /// Names whose value may change while a network exists; layers must not keep a packed form of these.
    mutable: BTreeSet<String>,
    /// Of a [`ParamStore::recorder`]: what was asked for.
    shapes: Option<Arc<Mutex<Shapes>>>,
}

/// Where a store without parameters is.
static CPU: Device = Device::Cpu;

/// Names and shapes of parameters.
pub type Shapes = BTreeMap<String, Vec<usize>>;

impl ParamStore {
    /// A store in which every parameter is frozen. Tensors are expected in `f32`; matrices and convolutions may be
    /// `bf16` or `f16`.
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self { tensors, ..Self::default() }
    }

    /// A store without weights that takes down what a network asks for: building any network from it tells its parameters,
    /// at any size, without memory for them. Such a network cannot be run.
    pub fn recorder() -> Self {
        Self { shapes: Some(Arc::default()), ..Self::default() }
    }

    /// What was asked of a [`ParamStore::recorder`] so far; empty for any other store.
    pub fn recorded(&self) -> Shapes {
        self.shapes
            .as_ref()
            .map(|shapes| shapes.lock().unwrap_or_else(PoisonError::into_inner).clone())
            .unwrap_or_default()
    }

    /// Makes the named parameters trainable (copies each into a [`Var`]); networks must be built after this.
    ///
    /// # Errors
    /// If a name is not in the store, or its parameter is not kept in `f32`.
    pub fn make_trainable<S: AsRef<str>>(&mut self, names: impl IntoIterator<Item = S>) -> Result<()> {
        for name in names {
            let name = name.as_ref();
            let tensor = self.get(name)?;
            if tensor.dtype() != DType::F32 {
                let what = format!("{name} is kept in {}, and cannot be trained", tensor.dtype().as_str());
                return Err(Error::Weights(what));
            }
            let var = Var::from_tensor(tensor)?;
            self.tensors.insert(name.to_string(), var.as_tensor().clone());
            self.vars.insert(name.to_string(), var);
            self.mutable.insert(name.to_string());
        }
        Ok(())
    }

    /// The same storage, with nothing trainable: what sampling and teachers use.
    pub fn detached(&self) -> Self {
        let tensors = self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.detach())).collect();
        Self { tensors, mutable: self.mutable.clone(), shapes: self.shapes.clone(), ..Self::default() }
    }

    /// A store with copies of the trainable parameters as they are now, everything else shared; nothing is trainable.
    pub fn frozen_copy(&self) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, tensor) in &self.tensors {
            let tensor = tensor.detach();
            tensors.insert(name.clone(), if self.mutable.contains(name) { tensor.copy()? } else { tensor });
        }
        Ok(Self::new(tensors))
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| Error::Weights(format!("no parameter is named {name}")))
    }

    /// Every parameter, in order of name.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// Those whose names are liked; of a [`ParamStore::recorder`], the same recorder.
    pub fn filtered(&self, liked: impl Fn(&str) -> bool) -> Self {
        let mut part = self.clone();
        part.tensors.retain(|name, _| liked(name));
        part.vars.retain(|name, _| liked(name));
        part
    }

    /// The parameters as they are now, frozen, on this device.
    ///
    /// # Errors
    /// If they do not fit there.
    pub fn on(&self, device: &Device) -> Result<Self> {
        let there = |(name, x): (&String, &Tensor)| Ok((name.clone(), x.detach().to_device(device)?));
        Ok(Self::new(self.tensors.iter().map(there).collect::<Result<_>>()?))
    }

    /// Where the parameters are.
    pub fn device(&self) -> &Device {
        self.tensors.values().next().map_or(&CPU, Tensor::device)
    }

    /// Bytes of all parameters together.
    pub fn bytes(&self) -> usize {
        self.tensors.values().map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum()
    }

    /// The trainable parameters, in order of name.
    pub fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    /// Starts building a network from these parameters.
    pub fn loader(&self) -> Loader<'_> {
        Loader { store: self, used: RefCell::default(), problems: RefCell::default(), ignored: Vec::new() }
    }
}

/// Tensors that may be missing or misshapen before a load gives up.
const MAX_PROBLEMS: usize = 1000;

fn does_not_fit(report: &impl std::fmt::Display) -> Error {
    Error::Weights(format!("the weights do not fit the config: {report}. Check that both come from the same model."))
}

/// Hands parameters to layers and remembers what was asked for.
pub struct Loader<'a> {
    store: &'a ParamStore,
    used: RefCell<BTreeSet<String>>,
    problems: RefCell<LoadReport>,
    ignored: Vec<&'static str>,
}

/// What a load found. Only a clean one may be used.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct LoadReport {
    /// How many tensors a layer took.
    pub applied: usize,
    /// Names that the network needs and the file lacks.
    pub missing: Vec<String>,
    /// Names in the file that no layer asked for.
    pub unused: Vec<String>,
    /// Names whose shape is not what the config implies, with both shapes.
    pub mismatched: Vec<String>,
}

impl LoadReport {
    /// Whether every tensor found its place.
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.unused.is_empty() && self.mismatched.is_empty()
    }
}

impl std::fmt::Display for LoadReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tensors applied", self.applied)?;
        for (what, names) in [("missing", &self.missing), ("unused", &self.unused), ("mismatched", &self.mismatched)] {
            if !names.is_empty() {
                let more = if names.len() > 8 { format!(", and {} more", names.len() - 8) } else { String::new() };
                let shown: Vec<_> = names.iter().take(8).map(String::as_str).collect();
                write!(f, "; {} {what}: {}{more}", names.len(), shown.join(", "))?;
            }
        }
        Ok(())
    }
}

impl<'a> Loader<'a> {
    /// Names with this ending may stand in the file unused (buffers such as `position_ids`).
    pub fn ignoring(mut self, ending: &'static str) -> Self {
        self.ignored.push(ending);
        self
    }

    /// The path from which a network's own names start.
    pub fn root(&'a self) -> ParamPath<'a> {
        ParamPath { loader: self, prefix: String::new() }
    }

    /// What was found so far.
    pub fn report(&self) -> LoadReport {
        let used = self.used.borrow();
        let mut report = self.problems.borrow().clone();
        report.applied = used.len();
        let ignored = |name: &str| self.ignored.iter().any(|ending| name.ends_with(ending));
        let unused = self.store.tensors.keys().filter(|name| !used.contains(*name) && !ignored(name));
        report.unused = unused.cloned().collect();
        report
    }

    /// Ends the load.
    ///
    /// # Errors
    /// Unless the load is clean; `what` (a file, a component) begins the message, which names the tensors.
    pub fn finish(&self, what: impl std::fmt::Display) -> Result<LoadReport> {
        let report = self.report();
        if report.is_clean() {
            return Ok(report);
        }
        Err(Error::Weights(format!("{what}: {}", does_not_fit(&report))))
    }
}

/// A place in the checkpoint's tree of names; mirrors PyTorch's module path.
#[derive(Clone)]
pub struct ParamPath<'a> {
    loader: &'a Loader<'a>,
    prefix: String,
}

impl ParamPath<'_> {
    /// The path one level (or several, with dots) further down.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self { loader: self.loader, prefix: self.name(name) }
    }

    /// The full name of a tensor here.
    pub fn name(&self, name: impl std::fmt::Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    /// Whether the checkpoint has this tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.loader.store.tensors.contains_key(&self.name(name))
    }

    /// How many dimensions the checkpoint's tensor has.
    pub fn rank(&self, name: &str) -> Option<usize> {
        self.loader.store.tensors.get(&self.name(name)).map(Tensor::rank)
    }

    /// Whether this tensor keeps its value for the life of the network, so that a packed form of it may be kept.
    pub fn is_constant(&self, name: &str) -> bool {
        !self.loader.store.mutable.contains(&self.name(name))
    }

    /// The tensor of this name; what is missing or misshapen is remembered for [`Loader::finish`] and replaced by zeros.
    pub fn get(&self, shape: &[usize], name: &str) -> Result<Tensor> {
        let name = self.name(name);
        if let Some(shapes) = &self.loader.store.shapes {
            shapes.lock().unwrap_or_else(PoisonError::into_inner).insert(name, shape.to_vec());
            return self.stand_in(shape);
        }
        let Some(tensor) = self.loader.store.tensors.get(&name) else {
            self.loader.problems.borrow_mut().missing.push(name);
            return self.stand_in(shape);
        };
        self.loader.used.borrow_mut().insert(name.clone());
        if tensor.dims() != shape {
            let found = format!("{name} is {:?} where the config implies {shape:?}", tensor.dims());
            self.loader.problems.borrow_mut().mismatched.push(found);
            return self.stand_in(shape);
        }
        Ok(tensor.clone())
    }

    /// Zeros of any shape, without memory: a config may ask for more than there is.
    ///
    /// # Errors
    /// When so much is wrong that going on would tell nothing more (and, for a config with a billion layers, never end).
    fn stand_in(&self, shape: &[usize]) -> Result<Tensor> {
        let report = self.loader.problems.borrow();
        if report.missing.len() + report.mismatched.len() > MAX_PROBLEMS {
            return Err(does_not_fit(&format!("{}, and so on", *report)));
        }
        let elements = shape.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim));
        if elements.is_none_or(|n| n > isize::MAX as usize / 4) {
            return Err(does_not_fit(&report));
        }
        Ok(Tensor::zeros((), DType::F32, self.loader.store.device())?.broadcast_as(shape)?)
    }
}
