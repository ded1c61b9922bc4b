//! Layers that leave a GPU while nobody asks for them, and come back by themselves.

use super::params::ParamStore;
use crate::Result;
use candle_core::Device;
use std::sync::{Arc, Mutex, PoisonError};

type Build<L> = dyn Fn(&ParamStore) -> Result<L> + Send + Sync;

/// Frozen layers with a home on some device. In main memory they stay where they are; on a GPU, [`Stay::leave`] gives their memory
/// there back.
pub struct Stay<L> {
    home: Device,
    /// Whether there is anything to gain by leaving.
    leaves: bool,
    build: Box<Build<L>>,
    place: Mutex<Place<L>>,
}

enum Place<L> {
    /// At home, with what they were built from, if they may leave.
    Home(Arc<L>, Option<ParamStore>),
    /// In main memory.
    Away(ParamStore),
}

impl<L> Stay<L> {
    /// Builds the layers where the parameters are.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn new(params: &ParamStore, build: impl Fn(&ParamStore) -> Result<L> + Send + Sync + 'static) -> Result<Self> {
        let home = params.device().clone();
        let leaves = !home.is_cpu();
        let place = Place::Home(Arc::new(build(params)?), leaves.then(|| params.clone()));
        Ok(Self { home, leaves, build: Box::new(build), place: Mutex::new(place) })
    }

    /// The layers, brought home if they had left.
    ///
    /// # Errors
    /// If they cannot come back, such as for want of memory.
    pub fn here(&self) -> Result<Arc<L>> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let away = match &*place {
            Place::Home(layers, _) => return Ok(layers.clone()),
            Place::Away(params) => params,
        };
        let params = away.on(&self.home)?;
        let layers = Arc::new((self.build)(&params)?);
        *place = Place::Home(layers.clone(), self.leaves.then_some(params));
        Ok(layers)
    }

    /// Sends them to main memory until they are asked for again.
    ///
    /// # Errors
    /// If they cannot be copied.
    pub fn leave(&self) -> Result<()> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Place::Home(_, Some(params)) = &*place {
            *place = Place::Away(params.on(&Device::Cpu)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Tensor;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn layers_that_left_come_back_when_they_are_asked_for() {
        static BUILT: AtomicUsize = AtomicUsize::new(0);
        let weight = Tensor::new(&[1f32, 2., 3.], &Device::Cpu).unwrap();
        let params = ParamStore::new([("weight".to_string(), weight)].into());
        let build = |params: &ParamStore| {
            BUILT.fetch_add(1, Ordering::SeqCst);
            Ok(params.get("weight")?.clone())
        };
        let of = |stay: &Stay<Tensor>| (*stay.here().unwrap()).to_vec1::<f32>().unwrap();
        let mut stay = Stay::new(&params, build).unwrap();
        stay.leave().unwrap();
        assert_eq!((of(&stay), BUILT.load(Ordering::SeqCst)), (vec![1., 2., 3.], 1), "in main memory they stay");
        // as on a GPU
        stay.leaves = true;
        stay.place = Mutex::new(Place::Home(stay.here().unwrap(), Some(params)));
        for built in 2..4 {
            stay.leave().unwrap();
            stay.leave().unwrap();
            assert!(matches!(*stay.place.lock().unwrap(), Place::Away(_)));
            assert_eq!((of(&stay), of(&stay)), (vec![1., 2., 3.], vec![1., 2., 3.]));
            assert_eq!(BUILT.load(Ordering::SeqCst), built, "built once for each time away");
        }
    }
}
