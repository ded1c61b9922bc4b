//! Free blocks of memory that are kept for the next tensor: how many, and which one is taken.

/// Memory that is whole pages: an address and a length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    pub start: usize,
    pub len: usize,
}

impl Block {
    fn end(self) -> usize {
        self.start + self.len
    }
}

/// Lengths are multiples of this, which is one of any system's page.
pub const PAGE: usize = 1 << 16;

/// How many free blocks are kept at most. Neighbours are one block, so that there are few.
const BLOCKS: usize = 1 << 10;

/// Bytes that may be kept beyond the most that was ever in use.
const SLACK: usize = 4 << 20;

/// Blocks that are free, by address, and how much is in use. The sum of both stays at what was in use at the most, and a little: what
/// is kept never makes the process larger than it has been for good reasons.
///
/// It allocates nothing, as an allocator rests on it.
pub struct FreeList {
    /// The first `count` are valid.
    blocks: [Block; BLOCKS],
    /// When each was freed last.
    freed: [u64; BLOCKS],
    count: usize,
    clock: u64,
    kept: usize,
    in_use: usize,
    most: usize,
}

impl FreeList {
    pub const fn new() -> Self {
        Self {
            blocks: [Block { start: 0, len: 0 }; BLOCKS],
            freed: [0; BLOCKS],
            count: 0,
            clock: 0,
            kept: 0,
            in_use: 0,
            most: 0,
        }
    }

    /// The start of a block of `len` bytes, cut from the smallest that is large enough. If there is none, whoever asks gets the memory
    /// elsewhere, after [`FreeList::surplus`]. It counts as in use in either case.
    pub fn take(&mut self, len: usize) -> Option<usize> {
        self.in_use += len;
        self.most = self.most.max(self.in_use);
        let fitting = (0..self.count).filter(|&i| self.blocks[i].len >= len);
        let i = fitting.min_by_key(|&i| self.blocks[i].len)?;
        Some(self.cut(i, len).start)
    }

    /// Takes `len` bytes or all of block `i` from its start.
    fn cut(&mut self, i: usize, len: usize) -> Block {
        let block = self.blocks[i];
        let len = len.min(block.len);
        self.kept -= len;
        if len == block.len {
            self.remove(i);
        } else {
            self.blocks[i] = Block { start: block.start + len, len: block.len - len };
        }
        Block { start: block.start, len }
    }

    fn remove(&mut self, i: usize) {
        self.blocks.copy_within(i + 1..self.count, i);
        self.freed.copy_within(i + 1..self.count, i);
        self.count -= 1;
    }

    /// What was asked for could not be had: it is not in use.
    pub fn forgo(&mut self, len: usize) {
        self.in_use -= len;
    }

    /// Keeps a block that was in use. `false` if there is no room in the list: whoever asks gives it back to the system.
    pub fn give(&mut self, block: Block) -> bool {
        self.in_use -= block.len;
        self.clock += 1;
        let i = self.blocks[..self.count].partition_point(|other| other.start < block.start);
        let joins_last = i > 0 && self.blocks[i - 1].end() == block.start;
        let joins_next = i < self.count && block.end() == self.blocks[i].start;
        let place = match (joins_last, joins_next) {
            (true, true) => {
                self.blocks[i - 1].len += block.len + self.blocks[i].len;
                self.remove(i);
                i - 1
            }
            (true, false) => {
                self.blocks[i - 1].len += block.len;
                i - 1
            }
            (false, true) => {
                self.blocks[i] = Block { start: block.start, len: block.len + self.blocks[i].len };
                i
            }
            (false, false) if self.count == BLOCKS => return false,
            (false, false) => {
                self.blocks.copy_within(i..self.count, i + 1);
                self.freed.copy_within(i..self.count, i + 1);
                self.blocks[i] = block;
                self.count += 1;
                i
            }
        };
        self.freed[place] = self.clock;
        self.kept += block.len;
        true
    }

    /// What is to go back to the system, the longest free first: a block or a part of one. `None` if little enough is kept.
    pub fn surplus(&mut self) -> Option<Block> {
        let allowed = self.most + SLACK;
        let excess = (self.in_use + self.kept).saturating_sub(allowed);
        if excess == 0 {
            return None;
        }
        let oldest = (0..self.count).min_by_key(|&i| self.freed[i])?;
        Some(self.cut(oldest, excess))
    }

    /// As [`FreeList::surplus`], until nothing is left; from then on what is in use now counts as the most.
    pub fn anything(&mut self) -> Option<Block> {
        self.most = self.in_use;
        let last = self.count.checked_sub(1)?;
        Some(self.cut(last, usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn block(start: usize, len: usize) -> Block {
        Block { start: start * MIB, len: len * MIB }
    }

    /// A list of these blocks, of which `in_use` more MiB are in use.
    fn list(blocks: &[(usize, usize)], in_use: usize) -> FreeList {
        let mut list = FreeList::new();
        list.in_use = in_use * MIB + blocks.iter().map(|(_, len)| len * MIB).sum::<usize>();
        list.most = list.in_use;
        for &(start, len) in blocks {
            assert!(list.give(block(start, len)));
        }
        list
    }

    #[test]
    fn the_smallest_block_that_is_large_enough_is_cut() {
        let mut list = list(&[(10, 9), (30, 4), (50, 6)], 0);
        assert_eq!(list.take(5 * MIB), Some(50 * MIB));
        assert_eq!(list.take(MIB), Some(55 * MIB), "the rest of it");
        assert_eq!(list.take(10 * MIB), None);
        assert_eq!(list.take(4 * MIB), Some(30 * MIB));
        assert_eq!((list.kept, list.in_use, list.count), (9 * MIB, 20 * MIB, 1));
    }

    #[test]
    fn neighbours_become_one() {
        for order in [[0, 1, 2], [0, 2, 1], [2, 1, 0], [1, 0, 2]] {
            let parts = order.map(|part| (10 + 3 * part, 3));
            let mut list = list(&parts, 0);
            assert_eq!((list.count, list.kept), (1, 9 * MIB), "{order:?}");
            assert_eq!(list.take(9 * MIB), Some(10 * MIB));
        }
        assert_eq!(list(&[(10, 3), (14, 3)], 0).count, 2);
    }

    #[test]
    fn what_is_kept_and_in_use_stays_at_what_was_in_use_at_the_most() {
        let mut list = list(&[(1000, 100), (2000, 60), (3000, 200)], 640);
        assert_eq!(list.surplus(), None);
        assert_eq!(list.take(300 * MIB), None, "there is none of this size");
        // the longest free go first, and no more than needed
        assert_eq!(list.surplus(), Some(block(1000, 100)));
        assert_eq!(list.surplus(), Some(block(2000, 60)));
        assert_eq!(list.surplus(), Some(Block { start: 3000 * MIB, len: 140 * MIB - SLACK }));
        assert_eq!(list.surplus(), None);
        assert_eq!(list.in_use + list.kept, 1000 * MIB + SLACK);
    }

    #[test]
    fn all_of_it_goes_when_it_is_asked_for() {
        let mut list = list(&[(1, 1), (5, 2)], 7);
        assert_eq!([list.anything(), list.anything(), list.anything()], [Some(block(5, 2)), Some(block(1, 1)), None]);
        assert_eq!((list.kept, list.most), (0, 7 * MIB));
    }

    #[test]
    fn a_full_list_refuses() {
        let blocks: Vec<(usize, usize)> = (0..BLOCKS).map(|i| (2 * i + 2, 1)).collect();
        let mut list = list(&blocks, 3);
        assert!(!list.give(block(9 * BLOCKS, 1)));
        assert!(list.give(block(3, 1)), "what joins others takes no room");
        assert_eq!((list.count, list.in_use), (BLOCKS - 1, MIB));
    }
}
