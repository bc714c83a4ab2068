//! Read planner: which requests read a set of points, and what a device has taught about its address space.
//!
//! Sans-IO. Promise: every readable point is in exactly one request, a value is never split over two, no request is
//! longer than the device's limits, and no request contains a range that the device has refused before. (A range that
//! contains a refused one is refused too; that is all the planner assumes about a device.)

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::{Config, Table};

/// A point in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Index into `Device::points`.
    pub point: u32,
    /// Items (registers or bits) from the beginning of the request.
    pub offset: u16,
    /// Items of the value.
    pub width: u16,
}

/// One read request.
#[derive(Debug)]
pub struct ReadRequest {
    /// The table.
    pub table: Table,
    /// First item, 0-based.
    pub address: u16,
    /// Items.
    pub count: u16,
    /// The points it serves, by offset.
    pub entries: Vec<Entry>,
    /// The request that this one is a half of.
    half: Option<Arc<Half>>,
}

/// What two halves of a refused request share: when both are answered, the range between them is at fault.
#[derive(Debug)]
struct Half {
    answered: AtomicU8,
    between: Hole,
}

/// Items that the device does not give in one request, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hole {
    /// The table.
    pub table: Table,
    /// First item.
    pub first: u16,
    /// Last item.
    pub last: u16,
}

/// What a device has taught about its address space. Kept as long as its configuration is in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Learned {
    /// Ranges that no request may contain.
    pub holes: BTreeSet<Hole>,
    /// Points that the device refuses even alone.
    pub illegal: BTreeSet<u32>,
}

impl Learned {
    fn contains_hole(&self, table: Table, first: u32, end: u32) -> bool {
        self.holes
            .iter()
            .any(|hole| hole.table == table && u32::from(hole.first) >= first && u32::from(hole.last) < end)
    }
}

impl ReadRequest {
    /// Items read along that no point wants.
    pub fn wasted(&self) -> u16 {
        let mut covered = 0;
        let mut end = 0;
        for entry in &self.entries {
            let last = entry.offset + entry.width;
            covered += last.saturating_sub(end.max(entry.offset));
            end = end.max(last);
        }
        self.count - covered
    }

    /// Two smaller requests for the same points, cut at the widest gap; `None` for one that cannot be cut.
    pub fn split(&self) -> Option<(ReadRequest, ReadRequest)> {
        let cut = self.cut()?;
        let (left, right) = self.entries.split_at(cut);
        let end = left.iter().map(|entry| entry.offset + entry.width).max()?;
        let between = Hole {
            table: self.table,
            first: self.address + (end - 1).min(right[0].offset),
            last: self.address + right[0].offset.max(end - 1),
        };
        let half = Arc::new(Half { answered: AtomicU8::new(0), between });
        Some((self.part(left, &half), self.part(right, &half)))
    }

    /// Where to cut: before the entry with the widest gap in front of it, else in the middle.
    fn cut(&self) -> Option<usize> {
        if self.entries.len() < 2 {
            return None;
        }
        let mut end = 0;
        let mut best = (0, 0);
        for (index, entry) in self.entries.iter().enumerate() {
            let gap = entry.offset.saturating_sub(end);
            if index > 0 && gap > best.0 {
                best = (gap, index);
            }
            end = end.max(entry.offset + entry.width);
        }
        Some(if best.0 > 0 { best.1 } else { self.entries.len() / 2 })
    }

    fn part(&self, entries: &[Entry], half: &Arc<Half>) -> ReadRequest {
        let start = entries.iter().map(|entry| entry.offset).min().unwrap_or(0);
        let end = entries.iter().map(|entry| entry.offset + entry.width).max().unwrap_or(start);
        let entries = entries.iter().map(|entry| Entry { offset: entry.offset - start, ..*entry }).collect();
        let address = self.address + start;
        ReadRequest { table: self.table, address, count: end - start, entries, half: Some(half.clone()) }
    }

    /// The request was answered with data: what this teaches when it is the second half of a refused one.
    pub fn answered(&self) -> Option<Hole> {
        let half = self.half.as_ref()?;
        (half.answered.fetch_add(1, Ordering::Relaxed) == 1).then_some(half.between)
    }

    /// The range of the request, as a hole if the device refuses it.
    pub fn as_hole(&self) -> Hole {
        Hole { table: self.table, first: self.address, last: self.address + (self.count - 1) }
    }
}

/// Plans the requests that read `points` (indices into `config.points`), around everything learned.
pub fn plan(config: &Config, points: &[u32], learned: &Learned) -> Vec<Arc<ReadRequest>> {
    let mut wanted: Vec<u32> = points.iter().copied().filter(|point| !learned.illegal.contains(point)).collect();
    let place = |point: &u32| {
        let address = &config.points[*point as usize];
        (address.table, address.address, address.width(), *point)
    };
    wanted.sort_unstable_by_key(place);
    wanted.dedup();

    let mut requests = Vec::new();
    let mut open: Option<ReadRequest> = None;
    for point in wanted {
        let (table, address, width, _) = place(&point);
        if let Some(request) = &mut open {
            if joins(config, learned, request, table, address, width) {
                let offset = address - request.address;
                request.count = request.count.max(offset + width);
                request.entries.push(Entry { point, offset, width });
                continue;
            }
            requests.extend(open.take().map(Arc::new));
        }
        let entries = vec![Entry { point, offset: 0, width }];
        open = Some(ReadRequest { table, address, count: width, entries, half: None });
    }
    requests.extend(open.map(Arc::new));
    requests
}

fn joins(config: &Config, learned: &Learned, request: &ReadRequest, table: Table, address: u16, width: u16) -> bool {
    if request.table != table {
        return false;
    }
    let (limit, gap_limit) = if table.is_bits() {
        (config.limits.max_bits, u32::from(config.max_gap()) * 16)
    } else {
        (config.limits.max_registers, u32::from(config.max_gap()))
    };
    let first = u32::from(request.address);
    let end = first + u32::from(request.count);
    let new_end = end.max(u32::from(address) + u32::from(width));
    let gap = u32::from(address).saturating_sub(end);
    gap <= gap_limit && new_end - first <= u32::from(limit) && !learned.contains_hole(table, first, new_end)
}

#[cfg(test)]
mod tests;
