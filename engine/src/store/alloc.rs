//! Which units of the data file are taken: one bit each, and a cursor so that large writes lie in a row.

pub(super) struct Units {
    /// Bit set: taken.
    words: Vec<u64>,
    total: u32,
    free: u32,
    cursor: u32,
}

impl Units {
    pub fn new(total: u32) -> Units {
        Units { words: vec![0; total.div_ceil(64) as usize], total, free: total, cursor: 0 }
    }

    pub fn total(&self) -> u32 {
        self.total
    }

    pub fn free(&self) -> u32 {
        self.free
    }

    fn is_taken(&self, unit: u32) -> bool {
        self.words[unit as usize / 64] & (1 << (unit % 64)) != 0
    }

    /// Takes the next free unit behind the last one taken.
    pub fn take(&mut self) -> Option<u32> {
        if self.free == 0 {
            return None;
        }
        let mut unit = self.cursor;
        loop {
            if unit >= self.total {
                unit = 0;
            }
            if unit % 64 == 0 && self.words[unit as usize / 64] == u64::MAX {
                unit += 64;
                continue;
            }
            if !self.is_taken(unit) {
                break;
            }
            unit += 1;
        }
        self.mark(unit);
        self.cursor = unit + 1;
        Some(unit)
    }

    /// Marks a unit as taken (while opening); false if it was already, or lies outside.
    pub fn mark(&mut self, unit: u32) -> bool {
        if unit >= self.total || self.is_taken(unit) {
            return false;
        }
        self.words[unit as usize / 64] |= 1 << (unit % 64);
        self.free -= 1;
        true
    }

    pub fn release(&mut self, unit: u32) {
        assert!(self.is_taken(unit), "unit {unit} freed twice");
        self.words[unit as usize / 64] &= !(1 << (unit % 64));
        self.free += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_given_once_until_all_are_taken() {
        let mut units = Units::new(130);
        let mut taken: Vec<u32> = std::iter::from_fn(|| units.take()).collect();
        assert_eq!(taken, (0..130).collect::<Vec<_>>());
        assert_eq!(units.free(), 0);
        for unit in [129, 3, 64] {
            units.release(unit);
        }
        taken = std::iter::from_fn(|| units.take()).collect();
        assert_eq!(taken, [3, 64, 129]);
        assert!(!units.mark(5) && !units.mark(500));
    }
}
