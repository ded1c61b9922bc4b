//! The kernels of `flash.cu` and `flash_grad.cu`: products of `bf16`, nothing of the scores in memory.

use super::super::*;
use super::Way;

/// Queries of a block of the forward pass.
const QUERIES: usize = 64;

/// Kernels for heads of up to so many features: forward, and the gradients of keys and values, and of queries.
const KERNELS: [(usize, [Name; 3]); 7] = [
    (16, [Name::Flash16, Name::FlashKeys16, Name::FlashQueries16]),
    (32, [Name::Flash32, Name::FlashKeys32, Name::FlashQueries32]),
    (48, [Name::Flash48, Name::FlashKeys48, Name::FlashQueries48]),
    (64, [Name::Flash64, Name::FlashKeys64, Name::FlashQueries64]),
    (80, [Name::Flash80, Name::FlashKeys80, Name::FlashQueries80]),
    (128, [Name::Flash128, Name::FlashKeys128, Name::FlashQueries128]),
    (160, [Name::Flash160, Name::FlashKeys160, Name::FlashQueries160]),
];

/// The kernels for heads of `d` features, if there are any, and how many rows a block of the backward pass has.
fn kernels(d: usize) -> Option<([Name; 3], usize)> {
    let (width, names) = KERNELS.into_iter().find(|(width, _)| d.is_multiple_of(4) && d <= *width)?;
    Some((names, if width < 128 { 64 } else { 32 }))
}

/// The kernels read four numbers at a time.
fn aligned(operands: &[Operand]) -> bool {
    operands.iter().all(|x| !x.half && x.at.is_multiple_of(16))
}

/// A warp for 16 of the block's rows.
fn grid(rows: usize, of_block: usize, heads: usize) -> Grid {
    ((rows.div_ceil(of_block) as u32, heads as u32, 1), (2 * of_block as u32, 1, 1))
}

/// The result and the log-sum-exp `(batch, heads, s)`; `None` where no kernel fits.
pub fn forward(gpu: &Gpu, way: &Way, [q, k, v]: [Operand; 3]) -> Result<Option<(Floats, Floats)>> {
    let Some(([name, ..], _)) = kernels(way.d).filter(|_| aligned(&[q, k, v])) else { return Ok(None) };
    let all = way.batch * way.heads;
    let (out, lse) = (gpu.floats(q.len)?, gpu.floats(all * way.s)?);
    let (to_out, to_lse) = (gpu.address(&out), gpu.address(&lse));
    let [heads, s, t, d] = [way.heads, way.s, way.t, way.d].map(|n| n as i32);
    let (causal, scale) = (i32::from(way.causal), way.scale());
    let grid = grid(way.s, QUERIES, all);
    launch!(gpu, name, grid, q.at, k.at, v.at, to_out, to_lse, heads, s, t, d, causal, scale)?;
    Ok(Some((out, lse)))
}

/// The gradients of queries, keys and values, each where tracked; `None` where no kernel fits.
pub fn backward(gpu: &Gpu, way: &Way, tensors: [&Tensor; 5], lse: &Floats) -> Result<Option<[Option<Tensor>; 3]>> {
    let held = tensors.map(Tensor::storage_and_layout);
    let [q, k, v, out, dout] = [0, 1, 2, 3, 4].map(|i| input(&held[i].0, held[i].1));
    let (q, k, v, out, dout) = (q?, k?, v?, out?, dout?);
    let fits = aligned(&[q, k, v, out, dout]);
    let Some(([_, of_keys, of_queries], of_block)) = kernels(way.d).filter(|_| fits) else { return Ok(None) };
    let all = way.batch * way.heads;
    let delta = gpu.floats(all * way.s)?;
    let (rows, to_delta) = (all * way.s, gpu.address(&delta));
    launch!(gpu, Name::AttentionDelta, warps(rows), out.at, dout.at, to_delta, rows, way.d)?;
    let lse = gpu.address(lse);
    let [heads, s, t, d] = [way.heads, way.s, way.t, way.d].map(|n| n as i32);
    let (causal, scale) = (i32::from(way.causal), way.scale());
    let [want_q, want_k, want_v] = [0, 1, 2].map(|i| tensors[i].track_op());
    let (mut dq, mut dk, mut dv) = (None, None, None);
    if want_k || want_v {
        let (to_keys, to_values) = (gpu.floats(k.len)?, gpu.floats(v.len)?);
        let (to_k, to_v) = (gpu.address(&to_keys), gpu.address(&to_values));
        let grid = grid(way.t, of_block, all);
        launch!(
            gpu, of_keys, grid, q.at, k.at, v.at, dout.at, lse, to_delta, to_k, to_v, heads, s, t, d, causal, scale,
        )?;
        dk = want_k.then(|| tensor(gpu, to_keys, tensors[1].shape()));
        dv = want_v.then(|| tensor(gpu, to_values, tensors[2].shape()));
    }
    if want_q {
        let to_queries = gpu.floats(q.len)?;
        let to_q = gpu.address(&to_queries);
        let grid = grid(way.s, of_block, all);
        launch!(gpu, of_queries, grid, q.at, k.at, v.at, dout.at, lse, to_delta, to_q, heads, s, t, d, causal, scale)?;
        dq = Some(tensor(gpu, to_queries, tensors[0].shape()));
    }
    Ok(Some([dq, dk, dv]))
}
