//! Numbers, one after another, that never move while more come: a list that grows by copying would for a moment take thrice its size.

const TOGETHER: usize = 1 << 12;

/// A list of numbers.
#[derive(Default)]
pub(super) struct Cells {
    blocks: Vec<Vec<u32>>,
}

impl Cells {
    pub fn len(&self) -> usize {
        self.blocks.last().map_or(0, |last| (self.blocks.len() - 1) * TOGETHER + last.len())
    }

    pub fn push(&mut self, value: u32) {
        match self.blocks.last_mut().filter(|block| block.len() < TOGETHER) {
            Some(block) => block.push(value),
            None => {
                // few pickles have more than one block
                let mut block = if self.blocks.is_empty() { Vec::new() } else { Vec::with_capacity(TOGETHER) };
                block.push(value);
                self.blocks.push(block);
            }
        }
    }

    pub fn get(&self, place: usize) -> Option<u32> {
        self.blocks.get(place / TOGETHER)?.get(place % TOGETHER).copied()
    }

    /// Changes a number that is there.
    pub fn set(&mut self, place: usize, value: u32) {
        let block = self.blocks.get_mut(place / TOGETHER);
        if let Some(number) = block.and_then(|block| block.get_mut(place % TOGETHER)) {
            *number = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_where_they_are() {
        let mut cells = Cells::default();
        let count = 2 * TOGETHER as u32 + 7;
        for i in 0..count {
            assert_eq!(cells.len(), i as usize);
            cells.push(i);
        }
        cells.set(TOGETHER, 5);
        cells.set(count as usize, 5);
        for i in 0..count {
            assert_eq!(cells.get(i as usize), Some(if i as usize == TOGETHER { 5 } else { i }));
        }
        assert_eq!(cells.get(count as usize), None);
    }
}
