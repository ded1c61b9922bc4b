//! The kernels of `flash.cu` and `flash_grad.cu` (products of `bf16`) and of `flash_f32.cu` (in TF32, or split so that they are as good as of `f32`): nothing
//! of the scores is in memory.

use super::super::*;
use super::Way;
use candle_core::cuda_backend::gemm_reduced_precision_f32;

/// A kernel's blocks: rows of each, and its threads.
type Block = (usize, usize);

/// The kernels for heads of up to so many features.
struct Kernels {
    width: usize,
    forward: (Name, Block),
    /// The gradients of keys and values.
    keys: (Name, Block),
    /// The gradients of queries.
    queries: (Name, Block),
}

const fn kernels(width: usize, names: [Name; 3], forward: Block, backward: Block) -> Kernels {
    let [of_out, of_keys, of_queries] = names;
    Kernels { width, forward: (of_out, forward), keys: (of_keys, backward), queries: (of_queries, backward) }
}

const fn whole(width: usize, names: [Name; 3], rows: usize) -> Kernels {
    let [of_out, of_keys, of_queries] = names;
    Kernels { width, forward: (of_out, (rows, 128)), keys: (of_keys, (rows / 2, 64)), queries: (of_queries, (64, 128)) }
}

/// As the macro at the end of `flash_f32.cu` says.
const F32: [Kernels; 3] = [
    whole(40, [Name::FlashF3240, Name::FlashF32Keys40, Name::FlashF32Queries40], 128),
    whole(64, [Name::FlashF3264, Name::FlashF32Keys64, Name::FlashF32Queries64], 64),
    whole(80, [Name::FlashF3280, Name::FlashF32Keys80, Name::FlashF32Queries80], 64),
];
const TF32: [Kernels; 3] = [
    whole(40, [Name::FlashTf3240, Name::FlashTf32Keys40, Name::FlashTf32Queries40], 128),
    whole(64, [Name::FlashTf3264, Name::FlashTf32Keys64, Name::FlashTf32Queries64], 64),
    whole(80, [Name::FlashTf3280, Name::FlashTf32Keys80, Name::FlashTf32Queries80], 64),
];

/// As the macros at the ends of the two files say: `(16 M WARPS, 32 WARPS)`.
const BF16: [Kernels; 7] = [
    kernels(16, [Name::Flash16, Name::FlashKeys16, Name::FlashQueries16], (128, 128), (128, 128)),
    kernels(32, [Name::Flash32, Name::FlashKeys32, Name::FlashQueries32], (128, 128), (128, 128)),
    kernels(40, [Name::Flash40, Name::FlashKeys40, Name::FlashQueries40], (128, 128), (128, 128)),
    kernels(64, [Name::Flash64, Name::FlashKeys64, Name::FlashQueries64], (128, 128), (64, 64)),
    kernels(80, [Name::Flash80, Name::FlashKeys80, Name::FlashQueries80], (64, 128), (64, 128)),
    kernels(128, [Name::Flash128, Name::FlashKeys128, Name::FlashQueries128], (64, 128), (32, 64)),
    kernels(160, [Name::Flash160, Name::FlashKeys160, Name::FlashQueries160], (64, 128), (32, 64)),
];

/// The kernels for heads of so many features, if there are any: they read 16 bytes at a time.
fn of(way: &Way) -> Option<&'static Kernels> {
    let all: &[Kernels] = match (way.half, gemm_reduced_precision_f32()) {
        (true, _) => &BF16,
        (false, true) => &TF32,
        (false, false) => &F32,
    };
    all.iter().find(|kernels| way.d.is_multiple_of(8) && way.d <= kernels.width)
}

/// The operands in the type that is multiplied; `None` if they lie so that the kernels cannot read them.
fn rooms<const N: usize>(gpu: &Gpu, operands: [Operand; N], half: bool) -> Result<Option<[Room; N]>> {
    let mut rooms = Vec::with_capacity(N);
    for x in operands {
        let room = gpu.as_type(x, half)?;
        if !room.operand.at.is_multiple_of(16) {
            return Ok(None);
        }
        rooms.push(room);
    }
    Ok(rooms.try_into().ok())
}

fn grid(rows: usize, (of_block, threads): Block, heads: usize) -> Grid {
    ((rows.div_ceil(of_block) as u32, heads as u32, 1), (threads as u32, 1, 1))
}

/// The result, in the type of `q`, and the log-sum-exp `(batch, heads, s)`; `None` where no kernel fits.
pub fn forward(gpu: &Gpu, way: &Way, operands: [Operand; 3]) -> Result<Option<(Room, Floats)>> {
    let Some(kernels) = of(way) else { return Ok(None) };
    let Some(rooms) = rooms(gpu, operands, way.half)? else { return Ok(None) };
    let [q, k, v] = [0, 1, 2].map(|i| rooms[i].operand);
    let all = way.batch * way.heads;
    // what was computed of `bf16` is rounded to it only where the result is to be: the backward pass takes a difference of it
    let half = way.half && operands[0].half;
    let (out, lse) = (gpu.room(q.len, half)?, gpu.floats(all * way.s)?);
    let (to_out, to_lse) = (out.operand.at, gpu.address(&lse));
    let [heads, s, t, d] = [way.heads, way.s, way.t, way.d].map(|n| n as i32);
    let (causal, scale) = (i32::from(way.causal), way.scale());
    let (name, block) = kernels.forward;
    let grid = grid(way.s, block, all);
    match way.half {
        true => {
            let whole = i32::from(!half);
            launch!(gpu, name, grid, q.at, k.at, v.at, to_out, whole, to_lse, heads, s, t, d, causal, scale)?;
        }
        false => launch!(gpu, name, grid, q.at, k.at, v.at, to_out, to_lse, heads, s, t, d, causal, scale)?,
    }
    Ok(Some((gpu.given_as(out, operands[0].half)?, lse)))
}

/// Queries that a block of the gradient of keys and values takes: all, or where keys are so few that the GPU would idle, a part.
fn chunk(way: &Way, blocks: usize) -> usize {
    /// So many blocks keep any GPU busy.
    const BLOCKS: usize = 512;
    /// Fewer queries than this are not worth a block.
    const LEAST: usize = 128;
    let chunks = (BLOCKS / blocks.max(1)).clamp(1, way.s.div_ceil(LEAST));
    way.s.div_ceil(chunks).next_multiple_of(LEAST)
}

/// The gradients of queries, keys and values, each where tracked; `None` where no kernel fits.
pub fn backward(gpu: &Gpu, way: &Way, tensors: [&Tensor; 5], lse: &Floats) -> Result<Option<[Option<Tensor>; 3]>> {
    let Some(kernels) = of(way) else { return Ok(None) };
    let held = tensors.map(Tensor::storage_and_layout);
    let [q, k, v, out, dout] = [0, 1, 2, 3, 4].map(|i| input(&held[i].0, held[i].1));
    let (out, given) = (out?, dout?);
    let Some(rooms) = rooms(gpu, [q?, k?, v?, given], way.half)? else { return Ok(None) };
    let [q, k, v, dout] = [0, 1, 2, 3].map(|i| rooms[i].operand);
    let all = way.batch * way.heads;
    let delta = gpu.floats(all * way.s)?;
    let (rows, to_delta) = (all * way.s, gpu.address(&delta));
    // of the result as it was given, and of its gradient as it is multiplied
    let slopes = gpu.as_type(given, out.half)?;
    let (name, slopes) = (Name::AttentionDelta.of(out.half), slopes.operand.at);
    launch!(gpu, name, warps(rows), out.at, slopes, to_delta, rows, way.d, i32::from(way.half))?;
    let lse = gpu.address(lse);
    let [heads, s, t, d] = [way.heads, way.s, way.t, way.d].map(|n| n as i32);
    let (causal, scale) = (i32::from(way.causal), way.scale());
    let [want_q, want_k, want_v] = [0, 1, 2].map(|i| tensors[i].track_op());
    let (mut dq, mut dk, mut dv) = (None, None, None);
    if want_k || want_v {
        let (name, block) = kernels.keys;
        let (columns, heads_all, _) = grid(way.t, block, all).0;
        let chunk = chunk(way, (columns * heads_all) as usize);
        let parts = way.s.div_ceil(chunk);
        let half = way.half && parts == 1 && is_half(tensors[1]) && is_half(tensors[2]);
        let (to_keys, to_values) = (gpu.room(parts * k.len, half)?, gpu.room(parts * v.len, half)?);
        let (to_k, to_v, chunk) = (to_keys.operand.at, to_values.operand.at, chunk as i32);
        let grid = ((columns, heads_all, parts as u32), (block.1 as u32, 1, 1));
        match way.half {
            true => {
                let whole = i32::from(!half);
                launch!(
                    gpu, name, grid, q.at, k.at, v.at, dout.at, lse, to_delta, to_k, to_v, whole, chunk, heads, s, t,
                    d, causal, scale,
                )?;
            }
            false => launch!(
                gpu, name, grid, q.at, k.at, v.at, dout.at, lse, to_delta, to_k, to_v, chunk, heads, s, t, d, causal,
                scale,
            )?,
        }
        let finish = |gradient: Room, of: &Tensor| -> Result<Tensor> {
            if parts == 1 {
                return tensor(gpu, gpu.given_as(gradient, is_half(of))?, of.shape());
            }
            let sum = gpu.room(gradient.operand.len / parts, is_half(of))?;
            let (n, name) = (sum.operand.len, Name::SumOfParts.of(sum.operand.half));
            each!(gpu, name, n, gradient.operand.at, sum.operand.at, n, parts as i32)?;
            tensor(gpu, sum, of.shape())
        };
        dk = want_k.then(|| finish(to_keys, tensors[1])).transpose()?;
        dv = want_v.then(|| finish(to_values, tensors[2])).transpose()?;
    }
    if want_q {
        let half = way.half && is_half(tensors[0]);
        let to_queries = gpu.room(q.len, half)?;
        let to_q = to_queries.operand.at;
        let (name, block) = kernels.queries;
        let grid = grid(way.s, block, all);
        match way.half {
            true => {
                let whole = i32::from(!half);
                launch!(
                    gpu, name, grid, q.at, k.at, v.at, dout.at, lse, to_delta, to_q, whole, heads, s, t, d, causal,
                    scale,
                )?;
            }
            false => {
                launch!(
                    gpu, name, grid, q.at, k.at, v.at, dout.at, lse, to_delta, to_q, heads, s, t, d, causal, scale
                )?;
            }
        }
        dq = Some(tensor(gpu, gpu.given_as(to_queries, is_half(tensors[0]))?, tensors[0].shape())?);
    }
    Ok(Some([dq, dk, dv]))
}
