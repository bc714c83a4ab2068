//! **How a device misbehaves**: how long it takes to reply, when it is out, and how it lies.
//!
//! Outages follow the plant's time, so they come at the same moment in every run. Delays and lies are drawn from the
//! device's own generator, a fixed number of draws per request.

use std::time::Duration;

use crate::modbus::frame::{self, Framing};
use crate::modbus::{Exception, pdu};
use crate::rng::Rng;

/// Time from request to reply: `min`, plus an exponential part that makes the mean `typical`, cut at `max`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Delay {
    /// Shortest.
    pub min: Duration,
    /// Mean.
    pub typical: Duration,
    /// Longest.
    pub max: Duration,
}

impl Delay {
    /// Always the same.
    pub const fn fixed(delay: Duration) -> Self {
        Self { min: delay, typical: delay, max: delay }
    }

    fn draw(&self, rng: &mut Rng) -> Duration {
        let mean = self.typical.saturating_sub(self.min).as_secs_f64();
        (self.min + Duration::from_secs_f64(rng.exponential(mean))).min(self.max.max(self.min))
    }
}

/// How a device is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutageKind {
    /// Takes requests and never replies.
    Silent,
    /// Closes connections, and every new one at once. On a shared line: as `Silent`.
    Disconnected,
    /// Replies with this exception to everything.
    Exception(Exception),
}

/// A planned outage in plant time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outage {
    /// How.
    pub kind: OutageKind,
    /// First time, since the start.
    pub after: Duration,
    /// How long each lasts.
    pub lasts: Duration,
    /// Time between beginnings; `None`: once.
    pub every: Option<Duration>,
}

impl Outage {
    /// Whether it is on at `elapsed` since the start.
    pub fn is_on(&self, elapsed: Duration) -> bool {
        let Some(since) = elapsed.checked_sub(self.after) else { return false };
        let into = match self.every {
            Some(every) => Duration::from_nanos((since.as_nanos() % every.as_nanos().max(1)) as u64),
            None => since,
        };
        into < self.lasts
    }
}

/// A reply that is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LieKind {
    /// One register (or eight bits) fewer than asked for, in a consistent frame.
    ShortData,
    /// One register more than asked for, in a consistent frame.
    LongData,
    /// The length in the frame does not fit its bytes.
    WrongLength,
    /// Another unit's address.
    WrongUnit,
    /// The transaction id of the request before (RTU: the reply before).
    StaleTransaction,
    /// The reply data of the request before, under the right header.
    StaleData,
    /// Another function code.
    WrongFunction,
    /// CRC that does not fit (TCP: a protocol id that is not Modbus).
    BadCheck,
    /// Bytes without meaning.
    Garbage,
    /// Half a reply, then nothing.
    Truncated,
    /// The right reply, twice.
    Twice,
    /// No reply this once.
    Silence,
    /// Closes the connection instead of replying.
    Disconnect,
    /// This exception, although the request was fine.
    Exception(Exception),
}

/// A lie and how often it is told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lie {
    /// Which.
    pub kind: LieKind,
    /// Probability per request, 0 ..= 1.
    pub chance: f64,
}

/// Everything that is wrong with one device. The default is a healthy, instant device.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Faults {
    /// Time to reply.
    pub delay: Delay,
    /// Planned outages.
    pub outages: Vec<Outage>,
    /// Wrong replies; the first that is drawn is told.
    pub lies: Vec<Lie>,
}

/// What the device does with one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Turn {
    /// Time before anything is sent.
    pub delay: Duration,
    /// Set when it is out.
    pub outage: Option<OutageKind>,
    /// Set when it lies.
    pub lie: Option<LieKind>,
}

impl Faults {
    /// Decides about the next request, at `elapsed` plant time.
    pub fn turn(&self, elapsed: Duration, rng: &mut Rng) -> Turn {
        let delay = self.delay.draw(rng);
        let mut lie = None;
        for candidate in &self.lies {
            if rng.chance(candidate.chance) && lie.is_none() {
                lie = Some(candidate.kind);
            }
        }
        Turn { delay, outage: self.outage(elapsed), lie }
    }

    /// The planned outage at `elapsed`, if any.
    pub fn outage(&self, elapsed: Duration) -> Option<OutageKind> {
        self.outages.iter().find(|outage| outage.is_on(elapsed)).map(|outage| outage.kind)
    }
}

/// What goes over the wire for one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wire {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Nothing.
    Nothing,
    /// The connection is closed.
    Close,
}

/// The honest reply that a lie starts from.
#[derive(Debug)]
pub struct Honest<'a> {
    /// Framing of the link.
    pub framing: Framing,
    /// Transaction id of the request.
    pub transaction: u16,
    /// Unit that was asked.
    pub unit: u8,
    /// Reply PDU.
    pub pdu: &'a [u8],
    /// Transaction id and reply PDU of the request before, if there was one.
    pub before: Option<(u16, &'a [u8])>,
}

impl Honest<'_> {
    /// The frame without any lie.
    pub fn frame(&self) -> Vec<u8> {
        frame::encode(self.framing, self.transaction, self.unit, self.pdu)
    }

    /// The frame as `lie` spoils it.
    pub fn spoil(&self, lie: LieKind, rng: &mut Rng) -> Wire {
        let with_pdu = |pdu: &[u8]| frame::encode(self.framing, self.transaction, self.unit, pdu);
        let function = self.pdu.first().copied().unwrap_or(0);
        let mut honest = self.frame();
        Wire::Bytes(match lie {
            LieKind::Silence => return Wire::Nothing,
            LieKind::Disconnect => return Wire::Close,
            LieKind::ShortData => with_pdu(&resize_data(self.pdu, false)),
            LieKind::LongData => with_pdu(&resize_data(self.pdu, true)),
            LieKind::WrongLength => match self.framing {
                Framing::Tcp => {
                    honest[5] = honest[5].wrapping_add(1 + (rng.next_u64() % 9) as u8);
                    honest
                }
                Framing::Rtu => with_pdu(&miscount(self.pdu)),
            },
            LieKind::WrongUnit => frame::encode(self.framing, self.transaction, self.unit.wrapping_add(1), self.pdu),
            LieKind::StaleTransaction => match (self.framing, self.before) {
                (Framing::Rtu, Some((_, before))) => with_pdu(before),
                (_, before) => {
                    let id = before.map_or(self.transaction.wrapping_sub(1), |(id, _)| id);
                    frame::encode(self.framing, id, self.unit, self.pdu)
                }
            },
            LieKind::StaleData => with_pdu(self.before.map_or(self.pdu, |(_, before)| before)),
            LieKind::WrongFunction => with_pdu(&[&[function ^ 1], self.pdu.get(1..).unwrap_or(&[])].concat()),
            LieKind::BadCheck => {
                match self.framing {
                    Framing::Tcp => honest[2] ^= 0x5a,
                    Framing::Rtu => honest.last_mut().into_iter().for_each(|byte| *byte ^= 0x5a),
                }
                honest
            }
            LieKind::Garbage => (0..1 + rng.next_u64() % 64).map(|_| rng.next_u64() as u8).collect(),
            LieKind::Truncated => honest[..honest.len() / 2].to_vec(),
            LieKind::Twice => honest.repeat(2),
            LieKind::Exception(code) => with_pdu(&pdu::exception(function & 0x7f, code)),
        })
    }
}

/// A read reply with one item fewer or more, its byte count in step. Other replies lose or gain a byte.
fn resize_data(pdu: &[u8], longer: bool) -> Vec<u8> {
    let mut changed = pdu.to_vec();
    let by = if matches!(pdu.first(), Some(1 | 2)) { 1 } else { 2 };
    match (pdu, longer) {
        ([1..=4 | 23, bytes, ..], true) if usize::from(*bytes) + by <= 250 => {
            changed[1] += by as u8;
            changed.extend(std::iter::repeat_n(0xab, by));
        }
        ([1..=4 | 23, bytes, ..], false) if usize::from(*bytes) >= by => {
            changed[1] -= by as u8;
            changed.truncate(changed.len() - by);
        }
        (_, true) => changed.push(0),
        (_, false) => changed.truncate(changed.len().saturating_sub(1)),
    }
    changed
}

/// A read reply whose byte count does not fit its data.
fn miscount(pdu: &[u8]) -> Vec<u8> {
    let mut changed = pdu.to_vec();
    if let Some(count) = changed.get_mut(1) {
        *count = count.wrapping_add(1);
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_dying_device_comes_back_and_dies_again() {
        let outage =
            Outage { kind: OutageKind::Silent, after: 10 * SECOND, lasts: 5 * SECOND, every: Some(30 * SECOND) };
        let on = |second: u32| outage.is_on(second * SECOND);
        assert_eq!([9, 10, 14, 15, 39, 40, 44, 45].map(on), [false, true, true, false, false, true, true, false]);
        let once = Outage { every: None, ..outage };
        assert!(once.is_on(12 * SECOND) && !once.is_on(40 * SECOND));
    }

    #[test]
    fn delays_keep_their_range_and_mean() {
        let ms = Duration::from_millis;
        let delay = Delay { min: ms(20), typical: ms(120), max: ms(900) };
        let mut rng = Rng::new(5);
        let draws: Vec<f64> = (0..5_000).map(|_| delay.draw(&mut rng).as_secs_f64()).collect();
        assert!(draws.iter().all(|delay| (0.02..=0.9).contains(delay)));
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        assert!((0.11..0.13).contains(&mean), "{mean}");
        assert!(draws.iter().any(|delay| *delay > 0.4), "no tail");
        assert_eq!(Delay::fixed(ms(800)).draw(&mut rng), ms(800));
    }

    #[test]
    fn the_same_seed_tells_the_same_lies() {
        let lies = vec![Lie { kind: LieKind::Silence, chance: 0.3 }, Lie { kind: LieKind::WrongUnit, chance: 0.3 }];
        let faults = Faults { lies, ..Faults::default() };
        let play = || {
            let mut rng = Rng::new(9);
            (0..50).map(|_| faults.turn(SECOND, &mut rng).lie).collect::<Vec<_>>()
        };
        assert_eq!(play(), play());
        assert!(play().contains(&Some(LieKind::Silence)) && play().contains(&None));
    }

    #[test]
    fn each_lie_is_the_lie_it_says() {
        let mut rng = Rng::new(1);
        let mut spoil = |framing, lie| {
            let honest =
                Honest { framing, transaction: 7, unit: 3, pdu: &[3, 4, 0, 1, 0, 2], before: Some((6, &[3, 2, 9, 9])) };
            match honest.spoil(lie, &mut rng) {
                Wire::Bytes(bytes) => bytes,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(spoil(Framing::Tcp, LieKind::ShortData), [0, 7, 0, 0, 0, 5, 3, 3, 2, 0, 1]);
        assert_eq!(spoil(Framing::Tcp, LieKind::StaleTransaction)[..2], [0, 6]);
        assert_eq!(spoil(Framing::Tcp, LieKind::StaleData)[7..], [3, 2, 9, 9]);
        assert_eq!(spoil(Framing::Tcp, LieKind::WrongUnit)[6], 4);
        assert_ne!(spoil(Framing::Tcp, LieKind::WrongLength)[5], 7);
        assert_eq!(spoil(Framing::Tcp, LieKind::Exception(Exception::Busy))[7..], [0x83, 6]);
        assert_ne!(frame::crc(&spoil(Framing::Rtu, LieKind::BadCheck)), 0);
        assert_eq!(frame::crc(&spoil(Framing::Rtu, LieKind::WrongUnit)), 0);
        assert_eq!(spoil(Framing::Rtu, LieKind::StaleTransaction)[1..5], [3, 2, 9, 9]);
        assert_eq!(spoil(Framing::Rtu, LieKind::Twice).len(), 18);
    }
}
