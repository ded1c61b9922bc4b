//! The trained network on every device that has work: the first is where it lives, the others follow it.

use super::gradient::Trained;
use super::memory::Thrift;
use crate::Result;
use crate::nn::{ParamStore, across};
use crate::sd::{Unet, UnetConfig};
use candle_core::Device;

/// The network on one device.
struct Place {
    params: ParamStore,
    unet: Unet,
}

/// The same network, with the same trainable parameters, on each of some devices.
pub struct Places {
    places: Vec<Place>,
    thrift: Thrift,
}

impl Places {
    /// Of the network `params`, which lives on the first device. `bases` are the base's parameters on each device; of these, the
    /// network has the `changed` ones with other values.
    ///
    /// # Errors
    /// Those of candle, such as too little memory.
    pub fn new<'n>(
        config: &UnetConfig,
        params: &ParamStore,
        bases: &[&ParamStore],
        changed: impl Iterator<Item = &'n String> + Clone,
        thrift: Thrift,
    ) -> Result<Self> {
        let mut all = vec![params.clone()];
        for base in bases.iter().skip(1) {
            let mut tensors = base.tensors().clone();
            for name in changed.clone() {
                tensors.insert(name.clone(), across(params.get(name)?, base.device())?);
            }
            let mut there = ParamStore::new(tensors);
            there.make_trainable(params.vars().keys())?;
            all.push(there);
        }
        let place = |params: ParamStore| Ok(Place { unet: Unet::new(config, &params)?, params });
        Ok(Self { places: all.into_iter().map(place).collect::<Result<_>>()?, thrift })
    }

    /// The network on each device, the first first.
    pub fn trained(&self) -> Vec<Trained<'_>> {
        let Self { places, thrift } = self;
        places.iter().map(|Place { params, unet }| Trained { unet, params, thrift: *thrift }).collect()
    }

    /// The network on each device as it is, without a graph.
    ///
    /// # Errors
    /// As [`Unet::new`].
    pub fn detached(&self, config: &UnetConfig) -> Result<Vec<Unet>> {
        self.places.iter().map(|place| Unet::new(config, &place.params.detached())).collect()
    }

    /// The others take on the trainable parameters' values, after a step of the first.
    ///
    /// # Errors
    /// Those of candle.
    pub fn follow(&self) -> Result<()> {
        let Some((first, others)) = self.places.split_first().filter(|(_, others)| !others.is_empty()) else {
            return Ok(());
        };
        for (name, var) in first.params.vars() {
            let value = across(var.as_tensor(), &Device::Cpu)?; // read once for all
            for follower in others.iter().filter_map(|other| other.params.vars().get(name)) {
                follower.set(&across(&value, follower.device())?)?;
            }
        }
        Ok(())
    }
}
