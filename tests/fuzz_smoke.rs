//! Mutations of right inputs for every parser that reads what others wrote (`fuzz/README.md`), with the stable compiler.
//!
//! `FIELDGATE_FUZZ` is the number of inputs per target (an expensive one gets fewer), `FIELDGATE_FUZZ_SEED` chooses others.

#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, clippy::expect_used, reason = "the fuzzer's binaries use the rest")]
mod targets;

use std::fmt::Write;
use std::panic::catch_unwind;

use targets::TARGETS;

/// Inputs per target when nobody says.
const INPUTS: usize = 20_000;
/// Longest input.
const LONGEST: usize = 64 * 1024;

/// xorshift: the same seed gives the same inputs.
struct Noise(u64);

impl Noise {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end.max(1)
    }

    fn octet(&mut self) -> u8 {
        const TELLING: [u8; 12] = [0, 1, 2, 3, 0x7f, 0x80, 0xfe, 0xff, b'"', b'\n', b'[', b'/'];
        if self.below(2) == 0 { TELLING[self.below(TELLING.len())] } else { self.below(256) as u8 }
    }

    /// One to eight changes: an octet, a bit, a piece taken out, doubled, put elsewhere or taken from another input.
    fn bend(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(8) {
            let (at, piece) = (self.below(input.len() + 1), self.below(24));
            let end = (at + piece).min(input.len());
            match self.below(7) {
                0 if at < input.len() => input[at] = self.octet(),
                1 if at < input.len() => input[at] ^= 1 << self.below(8),
                2 => drop(input.drain(at..end)),
                3 => {
                    let copy = input[at..end].to_vec();
                    let to = self.below(input.len() + 1);
                    drop(input.splice(to..to, copy));
                }
                4 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len() + 1);
                    let piece = other[from..(from + piece).min(other.len())].to_vec();
                    drop(input.splice(at..end, piece));
                }
                5 => input.truncate(at),
                _ => input.insert(at, self.octet()),
            }
        }
        input.truncate(LONGEST);
        input
    }
}

fn number(name: &str, default: usize) -> usize {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

fn check(target: &targets::Target, input: &[u8]) {
    if catch_unwind(|| (target.run)(input)).is_ok() {
        return;
    }
    let hex = input.iter().fold(String::new(), |mut hex, octet| {
        let _ = write!(hex, "{octet:02x}");
        hex
    });
    panic!("{}: the input {hex} ({:?})", target.name, String::from_utf8_lossy(input));
}

#[test]
fn no_input_stops_a_parser() {
    let inputs = number("FIELDGATE_FUZZ", INPUTS);
    for target in TARGETS {
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15 ^ number("FIELDGATE_FUZZ_SEED", 0) as u64);
        let seeds = (target.seeds)();
        check(target, &[]);
        seeds.iter().for_each(|seed| check(target, seed));
        let begun = std::time::Instant::now();
        let count = (inputs / target.cost).max(1);
        (0..count).for_each(|_| check(target, &noise.bend(&seeds)));
        eprintln!("{}: {count} inputs in {:.1?}", target.name, begun.elapsed());
    }
}
