//! Values by ids that were given in order. A copy of the whole table costs next to nothing: copies share all pages, and
//! a page is copied when one of them changes it.
//!
//! Cost: 1.5 bytes for an id beside the value while most ids of a page are there; a copy, one counter for each 16,384 ids.

use std::marker::PhantomData;
use std::sync::Arc;

/// Ids of a page: one bit each in `present`.
const PAGE_IDS: u64 = 64;
/// Pages of a shelf. With more, the first change behind a copy takes longer; with fewer, the copy.
const SHELF_PAGES: usize = 256;
const SHELF_IDS: u64 = PAGE_IDS * SHELF_PAGES as u64;

/// A number that is given in order and never again.
pub trait Id: Copy {
    fn number(self) -> u64;
    fn of(number: u64) -> Self;
}

impl Id for wire::ChunkId {
    fn number(self) -> u64 {
        self.0
    }
    fn of(number: u64) -> Self {
        wire::ChunkId(number)
    }
}

impl Id for wire::FileId {
    fn number(self) -> u64 {
        self.0
    }
    fn of(number: u64) -> Self {
        wire::FileId(number)
    }
}

#[derive(Clone)]
pub struct Table<K, V> {
    shelves: Vec<Option<Arc<Shelf<V>>>>,
    len: u64,
    key: PhantomData<K>,
}

#[derive(Clone)]
struct Shelf<V> {
    /// Always [`SHELF_PAGES`].
    pages: Vec<Option<Arc<Page<V>>>>,
    used_pages: usize,
}

#[derive(Clone)]
struct Page<V> {
    present: u64,
    /// Those present, in order.
    values: Vec<V>,
}

/// Where an id stands: shelf, page on it, bit of the page.
fn place(number: u64) -> (usize, usize, u32) {
    let shelf = (number / SHELF_IDS) as usize;
    (shelf, (number % SHELF_IDS / PAGE_IDS) as usize, (number % PAGE_IDS) as u32)
}

impl<V> Page<V> {
    /// Where the value of a bit stands, or would stand, among the values.
    fn at(&self, bit: u32) -> Result<usize, usize> {
        let before = (self.present & ((1 << bit) - 1)).count_ones() as usize;
        if self.present & (1 << bit) != 0 { Ok(before) } else { Err(before) }
    }
}

impl<V> Shelf<V> {
    fn empty() -> Shelf<V> {
        Shelf { pages: (0..SHELF_PAGES).map(|_| None).collect(), used_pages: 0 }
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Table { shelves: Vec::new(), len: 0, key: PhantomData }
    }
}

impl<K: Id, V: Clone> Table<K, V> {
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn get(&self, id: K) -> Option<&V> {
        let (shelf, page, bit) = place(id.number());
        let page = self.shelves.get(shelf)?.as_ref()?.pages[page].as_ref()?;
        page.at(bit).ok().map(|at| &page.values[at])
    }

    pub fn contains(&self, id: K) -> bool {
        self.get(id).is_some()
    }

    pub fn get_mut(&mut self, id: K) -> Option<&mut V> {
        // Nothing is copied for an id that is not there.
        self.get(id)?;
        let (shelf, page, bit) = place(id.number());
        let shelf = Arc::make_mut(self.shelves[shelf].as_mut()?);
        let page = Arc::make_mut(shelf.pages[page].as_mut()?);
        page.at(bit).ok().map(|at| &mut page.values[at])
    }

    pub fn insert(&mut self, id: K, value: V) -> Option<V> {
        let (shelf, page, bit) = place(id.number());
        if shelf >= self.shelves.len() {
            self.shelves.resize_with(shelf + 1, || None);
        }
        let shelf = Arc::make_mut(self.shelves[shelf].get_or_insert_with(|| Arc::new(Shelf::empty())));
        let page = &mut shelf.pages[page];
        shelf.used_pages += usize::from(page.is_none());
        let page = page.get_or_insert_with(|| Arc::new(Page { present: 0, values: Vec::new() }));
        let page = Arc::make_mut(page);
        match page.at(bit) {
            Ok(at) => Some(std::mem::replace(&mut page.values[at], value)),
            Err(at) => {
                page.values.insert(at, value);
                page.present |= 1 << bit;
                self.len += 1;
                None
            }
        }
    }

    pub fn remove(&mut self, id: K) -> Option<V> {
        self.get(id)?;
        let (shelf_at, page_at, bit) = place(id.number());
        let shelf = Arc::make_mut(self.shelves[shelf_at].as_mut()?);
        let page = Arc::make_mut(shelf.pages[page_at].as_mut()?);
        let value = page.values.remove(page.at(bit).ok()?);
        page.present &= !(1 << bit);
        self.len -= 1;
        if page.values.is_empty() {
            shelf.pages[page_at] = None;
            shelf.used_pages -= 1;
        } else if page.values.len() * 2 < page.values.capacity() {
            page.values.shrink_to_fit();
        }
        if shelf.used_pages == 0 {
            self.shelves[shelf_at] = None;
        }
        Some(value)
    }

    /// Lets go of what stands in front of `id`, as far as that is whole shelves: the table is not used for that any more. To let
    /// go of all at once takes a tenth of a second for 100 million ids, if another copy has changed everywhere.
    pub fn forget_before(&mut self, id: K) {
        let (shelf, ..) = place(id.number());
        self.shelves.iter_mut().take(shelf).for_each(|shelf| *shelf = None);
    }

    /// Ids from `from` on with their values, in order.
    pub fn range(&self, from: K) -> impl Iterator<Item = (K, &V)> + '_ {
        let from = from.number();
        let (first_shelf, first_page, _) = place(from);
        let shelves = self.shelves.iter().enumerate().skip(first_shelf);
        let pages =
            shelves.filter_map(|(at, shelf)| Some((at, shelf.as_ref()?))).flat_map(move |(at, shelf)| {
                let skipped = if at == first_shelf { first_page } else { 0 };
                let pages = shelf.pages.iter().enumerate().skip(skipped);
                pages.filter_map(move |(page, held)| {
                    Some((at as u64 * SHELF_IDS + page as u64 * PAGE_IDS, held.as_ref()?))
                })
            });
        pages.flat_map(move |(start, page)| {
            let before = from.saturating_sub(start).min(PAGE_IDS);
            let kept = if before == PAGE_IDS { 0 } else { page.present & (u64::MAX << before) };
            let skipped = (page.present.count_ones() - kept.count_ones()) as usize;
            Bits(kept).map(move |bit| K::of(start + bit)).zip(&page.values[skipped..])
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = (K, &V)> + '_ {
        self.range(K::of(0))
    }
}

/// The numbers of the bits that are set.
struct Bits(u64);

impl Iterator for Bits {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let bit = self.0.trailing_zeros();
        (self.0 != 0).then(|| {
            self.0 &= self.0 - 1;
            u64::from(bit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use wire::ChunkId;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u32),
        Remove(u64),
        Change(u64, u32),
        Copy,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Near the borders of pages and shelves, and far away.
        let id = prop_oneof![0..200u64, SHELF_IDS - 70..SHELF_IDS + 70, Just(5 * SHELF_IDS + 3)];
        let step = prop_oneof![
            4 => (id.clone(), any::<u32>()).prop_map(|(id, value)| Step::Insert(id, value)),
            2 => id.clone().prop_map(Step::Remove),
            2 => (id, any::<u32>()).prop_map(|(id, value)| Step::Change(id, value)),
            1 => Just(Step::Copy),
        ];
        proptest::collection::vec(step, 1..300)
    }

    fn same(table: &Table<ChunkId, u32>, model: &BTreeMap<u64, u32>) {
        assert_eq!(table.len(), model.len() as u64);
        assert!(
            table.iter().map(|(id, value)| (id.0, *value)).eq(model.iter().map(|(id, value)| (*id, *value)))
        );
        for from in [0, 1, 63, 64, 100, SHELF_IDS - 1, SHELF_IDS, SHELF_IDS + 65, 6 * SHELF_IDS, u64::MAX] {
            let found = table.range(ChunkId(from)).map(|(id, value)| (id.0, *value));
            assert!(found.eq(model.range(from..).map(|(id, value)| (*id, *value))), "from {from}");
        }
    }

    proptest! {
        #[test]
        fn a_table_is_a_map_and_its_copies_stay_as_they_were(steps in steps()) {
            let (mut table, mut model) = (Table::default(), BTreeMap::new());
            let mut copies = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(id, value) => {
                        prop_assert_eq!(table.insert(ChunkId(id), value), model.insert(id, value));
                    }
                    Step::Remove(id) => prop_assert_eq!(table.remove(ChunkId(id)), model.remove(&id)),
                    Step::Change(id, value) => {
                        let (found, known) = (table.get_mut(ChunkId(id)), model.get_mut(&id));
                        prop_assert_eq!(&found, &known);
                        if let (Some(found), Some(known)) = (found, known) {
                            (*found, *known) = (value, value);
                        }
                    }
                    Step::Copy => copies.push((table.clone(), model.clone())),
                }
            }
            same(&table, &model);
            copies.iter().for_each(|(table, model)| same(table, model));
        }
    }
}
