//! The work of all blocks: an item is a head and a tile that a block owns.
//!
//! A block takes every so-manieth item. Heads come in sections whose keys and values fit the second cache together; inside a section the
//! tiles with most visits come first, so that blocks end at about the same time.

use super::visits::{ROW, Visits};
use crate::mlir::{Element, Function, INT, Space, Value};

/// Bytes of keys and values of a section.
const SECTION_BYTES: u64 = 16 << 20;

/// All items.
pub(super) struct Items {
    heads: u64,
    section: u64,
    tiles: u64,
    table: Value,
}

/// One of them.
#[derive(Clone, Copy)]
pub(super) struct Item {
    /// Batch · heads + head.
    pub head: Value,
    /// The tile it owns.
    pub tile: Value,
    /// Where its visits begin in the table.
    first: Value,
    /// Visits that need the mask's predicate; they come first.
    pub partial: Value,
    /// All visits.
    pub visits: Value,
}

impl Items {
    /// For heads of all batches, `bytes` each; `symbol` is the table's.
    pub fn new(f: &mut Function, symbol: &str, visits: &Visits, heads: u64, bytes: u64) -> Self {
        let fits = (SECTION_BYTES / bytes).clamp(1, heads);
        let section = (1..=fits).rev().find(|s| heads.is_multiple_of(*s)).unwrap_or(1);
        Items { heads, section, tiles: visits.owners, table: f.address_in(Space::Global, symbol) }
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.heads * self.tiles
    }

    /// Runs the body for each item of this block, carrying values.
    pub fn each(
        &self,
        f: &mut Function,
        carried: &[Value],
        body: impl FnOnce(&mut Function, Item, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let (block, blocks, end) = (f.special("ctaid.x"), f.special("nctaid.x"), f.int32(self.count()));
        f.fold((block, end, blocks), carried, |f, number, carried| {
            let item = self.item(f, number);
            body(f, item, carried)
        })
    }

    fn item(&self, f: &mut Function, number: Value) -> Item {
        let (of_section, section) = (f.int32(self.section * self.tiles), f.int32(self.section));
        let (part, rest) = (f.divu(number, of_section), f.remu(number, of_section));
        let (rank, inside) = (f.divu(rest, section), f.remu(rest, section));
        let head = f.times(part, self.section);
        let head = f.addi(head, inside);
        let row = f.times(rank, ROW);
        // Of one row all numbers would be constants.
        let row = if self.tiles == 1 { f.unknown(row) } else { row };
        let [tile, first, partial, visits] = [0, 1, 2, 3].map(|i| {
            let at = f.plus(row, i);
            self.number(f, at)
        });
        Item { head, tile, first, partial, visits }
    }

    /// The tile of an item's visit.
    pub fn visited(&self, f: &mut Function, item: Item, visit: Value) -> Value {
        let at = f.addi(item.first, visit);
        self.number(f, at)
    }

    fn number(&self, f: &mut Function, at: Value) -> Value {
        let at = f.offset(self.table, at, Element::I32);
        f.load(at, INT, 4)
    }
}
