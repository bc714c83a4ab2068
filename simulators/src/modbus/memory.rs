//! The addresses that a device has, and what stands in them. Everything else is an illegal address.

use std::collections::BTreeMap;

use super::{Exception, Table};

/// One cell: a bit (0 or 1) or a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// Content.
    pub value: u16,
    /// Whether clients may write it.
    pub writable: bool,
}

/// Sparse memory of one device.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    cells: BTreeMap<(Table, u16), Cell>,
}

impl Memory {
    /// Makes `address` exist, with 0 in it. A cell that exists stays writable if it was.
    pub fn add(&mut self, table: Table, address: u16, writable: bool) {
        let cell = self.cells.entry((table, address)).or_insert(Cell { value: 0, writable });
        cell.writable |= writable;
    }

    /// Whether `address` exists.
    pub fn contains(&self, table: Table, address: u16) -> bool {
        self.cells.contains_key(&(table, address))
    }

    /// Number of addresses in all tables.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether the device has no address at all.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// `count` values from `address` on, or the exception when one of them does not exist.
    pub fn read(&self, table: Table, address: u16, count: u16) -> Result<Vec<u16>, Exception> {
        let last = address.checked_add(count.saturating_sub(1)).ok_or(Exception::IllegalAddress)?;
        let values: Vec<u16> = self.cells.range((table, address)..=(table, last)).map(|(_, cell)| cell.value).collect();
        if values.len() == usize::from(count) { Ok(values) } else { Err(Exception::IllegalAddress) }
    }

    /// Writes as a client: all or nothing, writable cells only.
    pub fn write(&mut self, table: Table, address: u16, values: &[u16]) -> Result<(), Exception> {
        for offset in 0..values.len() {
            let at = address.checked_add(offset as u16).ok_or(Exception::IllegalAddress)?;
            if !self.cells.get(&(table, at)).is_some_and(|cell| cell.writable) {
                return Err(Exception::IllegalAddress);
            }
        }
        self.store(table, address, values);
        Ok(())
    }

    /// Writes as the device itself; addresses that do not exist are skipped.
    pub fn store(&mut self, table: Table, address: u16, values: &[u16]) {
        for (offset, value) in values.iter().enumerate() {
            if let Some(cell) = self.cells.get_mut(&(table, address.wrapping_add(offset as u16))) {
                cell.value = *value;
            }
        }
    }

    /// Addresses of one table, in order.
    pub fn addresses(&self, table: Table) -> impl Iterator<Item = u16> + '_ {
        self.cells.range((table, 0)..=(table, u16::MAX)).map(|((_, address), _)| *address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Memory {
        let mut memory = Memory::default();
        memory.add(Table::Holding, 10, true);
        memory.add(Table::Holding, 11, false);
        memory.add(Table::Holding, u16::MAX, true);
        memory.add(Table::Input, 10, false);
        memory
    }

    #[test]
    fn holes_and_tables_are_kept_apart() {
        let memory = memory();
        assert_eq!(memory.read(Table::Holding, 10, 2), Ok(vec![0, 0]));
        assert_eq!(memory.read(Table::Holding, 10, 3), Err(Exception::IllegalAddress));
        assert_eq!(memory.read(Table::Input, 10, 2), Err(Exception::IllegalAddress));
        assert_eq!(memory.read(Table::Holding, u16::MAX, 1), Ok(vec![0]));
        assert_eq!(memory.read(Table::Holding, u16::MAX, 2), Err(Exception::IllegalAddress));
    }

    #[test]
    fn a_refused_write_changes_nothing() {
        let mut memory = memory();
        assert_eq!(memory.write(Table::Holding, 10, &[1, 2]), Err(Exception::IllegalAddress));
        assert_eq!(memory.read(Table::Holding, 10, 1), Ok(vec![0]));
        assert_eq!(memory.write(Table::Holding, 10, &[1]), Ok(()));
        assert_eq!(memory.read(Table::Holding, 10, 1), Ok(vec![1]));
    }
}
