//! Products one after the other: what the next tiles need is split while others are multiplied, across products too.

use super::shadow::Shadow;
use super::split::{Form, Line, Split, Squares, grown};
use super::tile::{Kernel, SQUARE, Sums, Tiles, steps};
use super::{Onto, SIDE};
use crate::nn::kernels::matmul::View;
use std::cell::RefCell;

/// Lines of an operand that are asked for before its product comes, at most: more would drive out what is used now.
const FETCHED: usize = 1 << 12;

thread_local! {
    /// What this thread's products are split into, kept from product to product.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    /// All of an operand.
    inner: Vec<Line>,
    /// Two groups of the other's rows, and the next two.
    outer: [Vec<Line>; 2],
    /// Of the tiles that are multiplied, and of those before, which are being stored.
    sums: [Sums; 2],
}

/// Where the lines of an operand come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Lines(&'a [Line]),
    /// They are split on the way: rows of this.
    View(View<'a>),
}

/// An operand.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub of: Split,
    pub from: Source<'a>,
}

impl<'a> Operand<'a> {
    /// Groups of sixteen rows.
    fn groups(&self) -> usize {
        self.of.count.div_ceil(SIDE)
    }

    /// Two groups at a time.
    fn pairs(&self) -> usize {
        self.of.count.div_ceil(SQUARE)
    }

    /// Lines of two groups.
    fn pair(&self) -> usize {
        2 * self.of.group()
    }

    /// The `i`th two groups, to be split.
    fn split(&self, i: usize, to: *mut Line) -> Option<Squares<'a>> {
        match self.from {
            Source::Lines(_) => None,
            Source::View(view) => Some(Squares::new(view, self.of, (2 * i, self.groups().min(2 * i + 2)), to)),
        }
    }

    /// Whether it has as many lines, or rows, as it says.
    fn fits(&self) -> bool {
        match self.from {
            Source::Lines(lines) => lines.len() >= self.of.lines(),
            Source::View(view) => view.has(self.of.count, self.of.k),
        }
    }
}

/// `dst = scale left right + onto` over one part of the inner dimension; rows of `dst` are `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub left: Operand<'a>,
    pub right: Operand<'a>,
    pub dst: *mut f32,
    pub stride: usize,
    pub scale: f32,
    pub onto: Onto<'a>,
}

impl<'a> Product<'a> {
    /// Whether the right operand is the one that is gone through once, and the left one that all of its columns meet.
    fn by_columns(&self) -> bool {
        match (self.left.from, self.right.from) {
            (Source::Lines(_), Source::View(_)) => true,
            (Source::View(_), Source::View(_)) => self.right.of.count > self.left.of.count,
            _ => false,
        }
    }

    /// Operands must have as many lines, or rows, as they say, and meet each other.
    fn check(&self) {
        let (left, right) = (self.left.of, self.right.of);
        let meet = left.form == Form::Rows && right.form == Form::Pairs && left.k == right.k;
        assert!(meet && self.left.fits() && self.right.fits(), "the operands do not fit");
        self.onto.check(right.count);
    }

    /// What is gone through once, and what all of it meets.
    fn operands(&self) -> (&Operand<'a>, &Operand<'a>) {
        if self.by_columns() { (&self.right, &self.left) } else { (&self.left, &self.right) }
    }
}

/// The products `product(0)`, `product(1)`, ... `product(count - 1)`, in order.
///
/// # Safety
/// Each `dst` must be valid for as many rows and columns as the operands have, which no other thread touches.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn run<'a>(_: &Tiles, count: usize, product: impl Fn(usize) -> Product<'a>) {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut stream = Stream { scratch, shadow: Shadow::default(), slot: 0, begun: false, blocks: 0 };
        let mut now = (count > 0).then(|| product(0));
        for at in 1..=count {
            let next = (at < count).then(|| product(at));
            // SAFETY: the caller vouches for `dst`.
            now.iter().for_each(|now| unsafe { stream.multiply(now, next.as_ref()) });
            now = next;
        }
        // SAFETY: as above.
        unsafe { stream.shadow.finish_storing() };
    });
}

/// Products, one after the other.
struct Stream<'s, 'a> {
    scratch: &'s mut Scratch,
    shadow: Shadow<'a>,
    /// Which of the outer buffers holds the rows that are multiplied.
    slot: usize,
    /// Whether the first rows of the next product are there.
    begun: bool,
    /// Blocks of tiles up to now.
    blocks: usize,
}

/// A product's operands and how they are gone through.
struct Walk<'p, 'a> {
    product: &'p Product<'a>,
    by_columns: bool,
    /// What is gone through once, two groups of rows after the other, and what each of these meets.
    outer: &'p Operand<'a>,
    inner: &'p Operand<'a>,
    /// Where the inner operand's lines lie.
    lines: *const Line,
    /// Steps of a block of tiles.
    steps: usize,
}

impl<'a> Stream<'_, 'a> {
    /// One product, and the first rows of the next.
    ///
    /// # Safety
    /// As for [`run`].
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn multiply(&mut self, product: &Product<'a>, next: Option<&Product<'a>>) {
        product.check();
        let (outer, inner) = product.operands();
        let next = next.map(|next| next.operands());
        let steps = product.left.of.chunks() * steps(product.left.of.parts, product.right.of.parts);
        // SAFETY: operands have as many rows as they say, and buffers room for them; the caller vouches for `dst`.
        unsafe {
            let lines = match inner.from {
                Source::Lines(lines) => lines.as_ptr(),
                Source::View(_) => {
                    let lines = grown(&mut self.scratch.inner, inner.pairs() * inner.pair()).as_mut_ptr();
                    inner.split(0, lines).into_iter().for_each(|mut split| split.finish());
                    lines.cast_const()
                }
            };
            if !std::mem::take(&mut self.begun) {
                let lines = grown(&mut self.scratch.outer[self.slot], outer.pair()).as_mut_ptr();
                outer.split(0, lines).into_iter().for_each(|mut split| split.finish());
            }
            let blocks = outer.pairs() * inner.pairs();
            if let (Source::Lines(now), Some((_, &Operand { from: Source::Lines(then), .. }))) = (inner.from, next)
                && then.as_ptr() != now.as_ptr()
                && then.len() <= FETCHED
            {
                self.shadow.fetch(then, blocks * steps);
            }
            self.shadow.store_within(steps);
            let walk = Walk { product, by_columns: product.by_columns(), outer, inner, lines, steps };
            for o in 0..outer.pairs() {
                let after = match next {
                    _ if o + 1 < outer.pairs() => Some((outer, o + 1)),
                    next => next.map(|(outer, _)| (outer, 0)),
                };
                for q in 0..inner.pairs() {
                    self.prepare(&walk, (o, q), after);
                    self.block(&walk, (o, q));
                }
                self.shadow.finish_splitting();
                self.begun = after.is_some() && o + 1 == outer.pairs() && inner.pairs() > 0;
                self.slot = 1 - self.slot;
            }
        }
    }

    /// Begins what is to be split while a block of tiles is multiplied: the inner operand's next rows for the first of the outer one's, then
    /// those of the outer operand that come next, or the first of the next product's.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn prepare(&mut self, walk: &Walk<'_, 'a>, (o, q): (usize, usize), after: Option<(&Operand<'a>, usize)>) {
        let &Walk { inner, lines, steps, .. } = walk;
        // what is split line by line has as many parts as the kernel expects
        let parts = if walk.product.left.of.parts == 1 { 1 } else { 3 };
        let splitting = o == 0 && matches!(inner.from, Source::View(_));
        let last = inner.pairs() - 1;
        if splitting && q < last {
            // SAFETY: the buffer has room for all of the operand; what was split there before is done.
            unsafe {
                self.shadow.finish_splitting();
                let lines = lines.cast_mut().add((q + 1) * inner.pair());
                inner.split(q + 1, lines).into_iter().for_each(|split| self.shadow.split(split, steps, parts));
            }
        } else if q == if splitting { last } else { 0 }
            && let Some((outer, i)) = after
        {
            // SAFETY: as above.
            unsafe { self.shadow.finish_splitting() };
            let lines = grown(&mut self.scratch.outer[1 - self.slot], outer.pair()).as_mut_ptr();
            let within = (inner.pairs() - q) * steps;
            outer.split(i, lines).into_iter().for_each(|split| self.shadow.split(split, within, parts));
        }
    }

    /// A block of tiles.
    #[inline(always)]
    unsafe fn block(&mut self, walk: &Walk<'_, 'a>, (o, q): (usize, usize)) {
        let &Walk { product, by_columns, outer, inner, lines, .. } = walk;
        let Product { left, right, stride, .. } = product;
        let outer_lines = match outer.from {
            Source::Lines(lines) => lines[o * outer.pair()..].as_ptr(),
            Source::View(_) => self.scratch.outer[self.slot].as_ptr(),
        };
        let inner_lines = lines.wrapping_add(q * inner.pair());
        let (i, j) = if by_columns { (q, o) } else { (o, q) };
        let (a, c) = if by_columns { (inner_lines, outer_lines) } else { (outer_lines, inner_lines) };
        let size = (SQUARE.min(left.of.count - i * SQUARE), SQUARE.min(right.of.count - j * SQUARE));
        let operands = [a, a.wrapping_add(left.of.group()), c, c.wrapping_add(right.of.group())];
        let kernel = Kernel { operands: operands.map(|lines| lines.cast()), chunks: left.of.chunks() };
        let sums = &raw mut self.scratch.sums[self.blocks % 2];
        self.blocks += 1;
        let dst = product.dst.wrapping_add(i * SQUARE * stride + j * SQUARE);
        // SAFETY: both operands have these groups; the caller vouches for `dst`.
        unsafe {
            let tiles = (size.0.div_ceil(SIDE), size.1.div_ceil(SIDE));
            kernel.run((left.of.parts, right.of.parts), tiles, sums, &mut self.shadow);
            self.shadow.store(sums, size, product.scale, &product.onto.from(j * SQUARE), (dst, *stride));
        }
    }
}
