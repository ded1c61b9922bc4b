//! The kernels of `flash.cu` and `flash_grad.cu`: products of `bf16`, nothing of the scores in memory.

use super::super::*;
use super::Way;

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

/// As the macros at the ends of the two files say: `(16 M WARPS, 32 WARPS)`.
const KERNELS: [Kernels; 7] = [
    kernels(16, [Name::Flash16, Name::FlashKeys16, Name::FlashQueries16], (128, 128), (128, 128)),
    kernels(32, [Name::Flash32, Name::FlashKeys32, Name::FlashQueries32], (128, 128), (128, 128)),
    kernels(40, [Name::Flash40, Name::FlashKeys40, Name::FlashQueries40], (128, 128), (128, 128)),
    kernels(64, [Name::Flash64, Name::FlashKeys64, Name::FlashQueries64], (128, 128), (64, 64)),
    kernels(80, [Name::Flash80, Name::FlashKeys80, Name::FlashQueries80], (64, 128), (64, 128)),
    kernels(128, [Name::Flash128, Name::FlashKeys128, Name::FlashQueries128], (64, 128), (32, 64)),
    kernels(160, [Name::Flash160, Name::FlashKeys160, Name::FlashQueries160], (64, 128), (32, 64)),
];

/// The kernels for heads of `d` features, if there are any: they read 16 bytes at a time.
fn of_width(d: usize) -> Option<&'static Kernels> {
    KERNELS.iter().find(|kernels| d.is_multiple_of(8) && d <= kernels.width)
}

/// The operands as `bf16`; `None` if they lie so that the kernels cannot read them.
fn halves<const N: usize>(gpu: &Gpu, operands: [Operand; N]) -> Result<Option<[Room; N]>> {
    let mut rooms = Vec::with_capacity(N);
    for x in operands {
        let room = gpu.as_type(x, true)?;
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
    let Some(kernels) = of_width(way.d) else { return Ok(None) };
    let Some(rooms) = halves(gpu, operands)? else { return Ok(None) };
    let [q, k, v] = [0, 1, 2].map(|i| rooms[i].operand);
    let all = way.batch * way.heads;
    let (out, lse) = (gpu.room(q.len, true)?, gpu.floats(all * way.s)?);
    let (to_out, to_lse) = (out.operand.at, gpu.address(&lse));
    let [heads, s, t, d] = [way.heads, way.s, way.t, way.d].map(|n| n as i32);
    let (causal, scale) = (i32::from(way.causal), way.scale());
    let (name, block) = kernels.forward;
    let grid = grid(way.s, block, all);
    launch!(gpu, name, grid, q.at, k.at, v.at, to_out, to_lse, heads, s, t, d, causal, scale)?;
    Ok(Some((gpu.given_as(out, operands[0].half)?, lse)))
}

/// The gradients of queries, keys and values, each where tracked; `None` where no kernel fits.
pub fn backward(gpu: &Gpu, way: &Way, tensors: [&Tensor; 5], lse: &Floats) -> Result<Option<[Option<Tensor>; 3]>> {
    let Some(kernels) = of_width(way.d) else { return Ok(None) };
    let held = tensors.map(Tensor::storage_and_layout);
    let [q, k, v, out, dout] = [0, 1, 2, 3, 4].map(|i| input(&held[i].0, held[i].1));
    let Some(rooms) = halves(gpu, [q?, k?, v?, out?, dout?])? else { return Ok(None) };
    let [q, k, v, out, dout] = [0, 1, 2, 3, 4].map(|i| rooms[i].operand);
    let all = way.batch * way.heads;
    let delta = gpu.floats(all * way.s)?;
    let (rows, to_delta) = (all * way.s, gpu.address(&delta));
    let of_half = Name::AttentionDelta.of(true);
    launch!(gpu, of_half, warps(rows), out.at, dout.at, to_delta, rows, way.d, 1i32)?;
    let lse = gpu.address(lse);
    let [heads, s, t, d] = [way.heads, way.s, way.t, way.d].map(|n| n as i32);
    let (causal, scale) = (i32::from(way.causal), way.scale());
    let finish = |gradient: Room, of: &Tensor| tensor(gpu, gpu.given_as(gradient, is_half(of))?, of.shape());
    let [want_q, want_k, want_v] = [0, 1, 2].map(|i| tensors[i].track_op());
    let (mut dq, mut dk, mut dv) = (None, None, None);
    if want_k || want_v {
        let (to_keys, to_values) = (gpu.room(k.len, true)?, gpu.room(v.len, true)?);
        let (to_k, to_v) = (to_keys.operand.at, to_values.operand.at);
        let (name, block) = kernels.keys;
        let grid = grid(way.t, block, all);
        launch!(gpu, name, grid, q.at, k.at, v.at, dout.at, lse, to_delta, to_k, to_v, heads, s, t, d, causal, scale)?;
        dk = want_k.then(|| finish(to_keys, tensors[1])).transpose()?;
        dv = want_v.then(|| finish(to_values, tensors[2])).transpose()?;
    }
    if want_q {
        let to_queries = gpu.room(q.len, true)?;
        let to_q = to_queries.operand.at;
        let (name, block) = kernels.queries;
        let grid = grid(way.s, block, all);
        launch!(gpu, name, grid, q.at, k.at, v.at, dout.at, lse, to_delta, to_q, heads, s, t, d, causal, scale)?;
        dq = Some(finish(to_queries, tensors[0])?);
    }
    Ok(Some([dq, dk, dv]))
}
