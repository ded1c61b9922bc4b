//! Work in pieces that is dealt to several devices, and tensors that go from one to another.

use super::kernels::parallel::{alone, work_alone};
use crate::progress::check_interrupted;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::panic::resume_unwind;
use std::sync::mpsc::sync_channel;

/// `work(worker, i)` for `i` in `0..count`, each given to `take` in order, on this thread. The workers (one a device) take the pieces
/// in turn, on a thread each; a worker begins a piece when the last that it made was taken, so that memory stays flat. One worker alone
/// works on this thread.
///
/// # Errors
/// The first in order, of `work` or `take`, or an interruption; the workers end with the piece that they are at.
pub fn deal<W: Sync, T: Send>(
    workers: &[W],
    count: usize,
    work: impl Fn(&W, usize) -> Result<T> + Sync,
    mut take: impl FnMut(usize, T) -> Result<()>,
) -> Result<()> {
    let workers = &workers[..workers.len().min(count)];
    if let [one] = workers {
        return (0..count).try_for_each(|i| {
            check_interrupted()?;
            take(i, work(one, i)?)
        });
    }
    let (turns, alone, work) = (workers.len(), alone(), &work);
    std::thread::scope(|scope| {
        let (mut threads, mut made) = (Vec::with_capacity(turns), Vec::with_capacity(turns));
        for (first, worker) in workers.iter().enumerate() {
            let (give, from) = sync_channel(0);
            let all = move || {
                work_alone(alone);
                for i in (first..count).step_by(turns) {
                    let piece = check_interrupted().and_then(|()| work(worker, i));
                    let failed = piece.is_err();
                    // whoever takes has gone if another failed
                    if give.send(piece).is_err() || failed {
                        return;
                    }
                }
            };
            let thread = std::thread::Builder::new().name(format!("device {first}")).spawn_scoped(scope, all);
            threads.push(thread.map_err(|e| Error::Numeric(format!("cannot start a thread for a device: {e}")))?);
            made.push(from);
        }
        let taken = (0..count).try_for_each(|i| match made[i % turns].recv() {
            Ok(piece) => take(i, piece?),
            // a thread that ends without a word has panicked, which is passed on below
            Err(_) => Err(Error::Interrupted),
        });
        drop(made);
        threads.into_iter().try_for_each(|thread| thread.join()).unwrap_or_else(|panic| resume_unwind(panic));
        taken
    })
}

/// `x` on `device`, without its graph; itself, if it is there. From one GPU to another it goes through the host's memory: that waits for
/// the one, and no device has to know what another has in its queue (as candle's own way from GPU to GPU would).
///
/// # Errors
/// Those of candle.
pub fn across(x: &Tensor, device: &Device) -> Result<Tensor> {
    let x = x.detach();
    if x.device().same_device(device) {
        return Ok(x);
    }
    Ok(x.to_device(&Device::Cpu)?.to_device(device)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[test]
    fn pieces_come_back_in_order_from_every_worker() {
        for workers in 1..=4 {
            for count in [0, 1, 2, 7, 12] {
                let threads = Mutex::new(BTreeSet::new());
                let mut taken = Vec::new();
                let work = |worker: &usize, i: usize| {
                    std::thread::sleep(Duration::from_millis((i * 7 % 5) as u64)); // they end in another order
                    threads.lock().unwrap().insert(format!("{:?}", std::thread::current().id()));
                    assert_eq!(*worker, if count > 1 { i % workers.min(count) } else { 0 });
                    Ok(i * 10)
                };
                let all: Vec<usize> = (0..workers).collect();
                deal(&all, count, work, |i, made| {
                    taken.push((i, made));
                    Ok(())
                })
                .unwrap();
                assert_eq!(taken, (0..count).map(|i| (i, i * 10)).collect::<Vec<_>>());
                let threads = threads.into_inner().unwrap();
                assert_eq!(threads.len(), workers.min(count));
                let own = format!("{:?}", std::thread::current().id());
                assert_eq!(threads.contains(&own), workers.min(count) == 1, "one worker has no thread of its own");
            }
        }
    }

    #[test]
    fn no_more_is_made_than_is_taken() {
        let (made, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = |_: &(), _: usize| {
            most.fetch_max(made.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            Ok(())
        };
        deal(&[(); 3], 30, work, |_, ()| {
            std::thread::sleep(Duration::from_millis(1));
            made.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        })
        .unwrap();
        assert!((2..=4).contains(&most.into_inner()), "each has one in hand, beside the one that is taken");
    }

    #[test]
    fn the_first_error_in_order_comes_out_and_all_stop() {
        let done = AtomicUsize::new(0);
        let work = |_: &(), i: usize| {
            done.fetch_add(1, Ordering::SeqCst);
            if i == 3 {
                std::thread::sleep(Duration::from_millis(20)); // the one after it fails first
            }
            if i == 3 || i == 4 { Err(Error::usage(format!("piece {i} failed"))) } else { Ok(i) }
        };
        let mut taken = Vec::new();
        let failed = deal(&[(); 3], 1000, work, |i, _| {
            taken.push(i);
            Ok(())
        });
        assert_eq!(failed.unwrap_err().to_string(), "piece 3 failed");
        assert_eq!(taken, [0, 1, 2]);
        assert!(done.load(Ordering::SeqCst) <= 6);
        let refused =
            deal(&[(); 3], 1000, |_, i| Ok(i), |i, _| if i == 5 { Err(Error::usage("full")) } else { Ok(()) });
        assert_eq!(refused.unwrap_err().to_string(), "full");
    }

    #[test]
    fn a_panic_is_passed_on_and_nobody_waits() {
        let work = |_: &(), i: usize| if i == 4 { panic!("piece {i}") } else { Ok(i) };
        let panic = std::panic::catch_unwind(|| deal(&[(); 3], 1000, work, |_, _| Ok(()))).unwrap_err();
        assert_eq!(panic.downcast_ref::<String>().unwrap(), "piece 4");
    }
}
