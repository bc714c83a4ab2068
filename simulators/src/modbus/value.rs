//! How a signal stands in registers: types, word orders, scale.

use crate::signal::Signal;

/// Type of a point in the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Bool,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
    /// Four decimal digits per register.
    Bcd {
        /// 1 ..= 4.
        registers: u16,
    },
    /// Two characters per register, padded with NUL.
    Text {
        /// 1 ..= 60.
        registers: u16,
    },
    /// Bits of one register, the lowest is bit 0.
    Bits {
        /// 0 ..= 15.
        first: u8,
        /// 1 ..= 16, inside the register.
        count: u8,
    },
}

impl Kind {
    /// Addresses that a value takes.
    pub const fn items(self) -> u16 {
        match self {
            Kind::Bool | Kind::U16 | Kind::I16 | Kind::Bits { .. } => 1,
            Kind::U32 | Kind::I32 | Kind::F32 => 2,
            Kind::U64 | Kind::I64 | Kind::F64 => 4,
            Kind::Bcd { registers } | Kind::Text { registers } => registers,
        }
    }
}

/// Order of the bytes of a value, named after a 32-bit value whose most significant byte is A. For 64 bits the same
/// two choices apply: words reversed or not, bytes inside each word swapped or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Big endian, the usual one.
    #[default]
    Abcd,
    /// Low word first.
    Cdab,
    /// Bytes of each word swapped.
    Badc,
    /// Little endian.
    Dcba,
}

impl Order {
    /// The order of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "abcd" => Order::Abcd,
            "cdab" => Order::Cdab,
            "badc" => Order::Badc,
            "dcba" => Order::Dcba,
            _ => return None,
        })
    }

    /// The name that scenario files use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Order::Abcd => "abcd",
            Order::Cdab => "cdab",
            Order::Badc => "badc",
            Order::Dcba => "dcba",
        }
    }

    /// From big endian to this order; the same call leads back. A single register has no order.
    fn arrange(self, mut words: Vec<u16>) -> Vec<u16> {
        if words.len() < 2 {
            return words;
        }
        if matches!(self, Order::Cdab | Order::Dcba) {
            words.reverse();
        }
        if matches!(self, Order::Badc | Order::Dcba) {
            words.iter_mut().for_each(|word| *word = word.swap_bytes());
        }
        words
    }
}

/// Type, order and scale together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Format {
    /// Type in the device.
    pub kind: Kind,
    /// Byte order.
    pub order: Order,
    /// Engineering value = register value × scale + offset.
    pub scale: f64,
    /// See `scale`.
    pub offset: f64,
}

impl Format {
    /// The registers (or the bit) for `signal`; `before` is what stands there now, for bits of a shared register.
    /// Values beyond the type are clamped, as a device does.
    pub fn encode(&self, signal: &Signal, before: &[u16]) -> Vec<u16> {
        let unscaled = |signal: &Signal| (signal.as_f64().unwrap_or(0.0) - self.offset) / self.scale;
        let words = match self.kind {
            Kind::Bool => return vec![u16::from(signal.as_bool().unwrap_or(false))],
            Kind::Text { registers } => text_words(signal, registers),
            Kind::Bits { first, count } => {
                let mask = bit_mask(first, count);
                let bits = (self.whole(signal, unscaled) as u16) << first & mask;
                return vec![before.first().copied().unwrap_or(0) & !mask | bits];
            }
            Kind::Bcd { registers } => bcd_words(self.whole(signal, unscaled), registers),
            Kind::F32 => words_of(&(unscaled(signal) as f32).to_be_bytes()),
            Kind::F64 => words_of(&unscaled(signal).to_be_bytes()),
            Kind::U16 => words_of(&(self.whole(signal, unscaled).clamp(0, 0xffff) as u16).to_be_bytes()),
            Kind::I16 => words_of(&(self.whole(signal, unscaled).clamp(-0x8000, 0x7fff) as i16).to_be_bytes()),
            Kind::U32 => words_of(&(self.whole(signal, unscaled).clamp(0, i128::from(u32::MAX)) as u32).to_be_bytes()),
            Kind::I32 => {
                let range = (i128::from(i32::MIN), i128::from(i32::MAX));
                words_of(&(self.whole(signal, unscaled).clamp(range.0, range.1) as i32).to_be_bytes())
            }
            Kind::U64 => words_of(&(self.whole(signal, unscaled).clamp(0, i128::from(u64::MAX)) as u64).to_be_bytes()),
            Kind::I64 => {
                let range = (i128::from(i64::MIN), i128::from(i64::MAX));
                words_of(&(self.whole(signal, unscaled).clamp(range.0, range.1) as i64).to_be_bytes())
            }
        };
        self.order.arrange(words)
    }

    /// The signal that `words` stand for; `None` when they are not a value of this type (BCD digits above 9, a float
    /// that is not finite, a wrong length).
    pub fn decode(&self, words: &[u16]) -> Option<Signal> {
        if words.len() != usize::from(self.kind.items()) {
            return None;
        }
        let words = self.order.arrange(words.to_vec());
        let wide = words.iter().fold(0_u64, |wide, word| wide << 16 | u64::from(*word));
        let number = match self.kind {
            Kind::Bool => return Some(Signal::Bool(wide != 0)),
            Kind::Text { .. } => return Some(Signal::Text(text_of(&words))),
            Kind::Bits { first, count } => {
                let bits = wide as u16 & bit_mask(first, count);
                f64::from(bits >> first)
            }
            Kind::Bcd { .. } => bcd_value(&words)?,
            Kind::U16 | Kind::U32 | Kind::U64 if self.is_plain() => return Some(Signal::Count(wide)),
            Kind::U16 | Kind::U32 | Kind::U64 => wide as f64,
            Kind::I16 => f64::from(wide as u16 as i16),
            Kind::I32 => f64::from(wide as u32 as i32),
            Kind::I64 => wide as i64 as f64,
            Kind::F32 => f64::from(f32::from_bits(wide as u32)),
            Kind::F64 => f64::from_bits(wide),
        };
        number.is_finite().then_some(Signal::Number(number * self.scale + self.offset))
    }

    fn is_plain(&self) -> bool {
        self.scale == 1.0 && self.offset == 0.0
    }

    /// The signal as a whole number; counters keep every digit when nothing is scaled.
    fn whole(&self, signal: &Signal, unscaled: impl Fn(&Signal) -> f64) -> i128 {
        match signal {
            Signal::Count(count) if self.is_plain() => i128::from(*count),
            other => unscaled(other).round() as i128,
        }
    }
}

fn words_of(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
}

fn bit_mask(first: u8, count: u8) -> u16 {
    (((1_u32 << count) - 1) << first) as u16
}

fn text_words(signal: &Signal, registers: u16) -> Vec<u16> {
    let text = match signal {
        Signal::Text(text) => text.clone(),
        other => other.as_f64().unwrap_or(0.0).to_string(),
    };
    let mut bytes: Vec<u8> = text.into_bytes();
    bytes.resize(usize::from(registers) * 2, 0);
    words_of(&bytes)
}

fn text_of(words: &[u16]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn bcd_words(value: i128, registers: u16) -> Vec<u16> {
    let mut rest = value.clamp(0, 10_i128.pow(u32::from(registers) * 4) - 1);
    let mut words = vec![0; usize::from(registers)];
    for word in words.iter_mut().rev() {
        for digit in 0..4 {
            *word |= ((rest % 10) as u16) << (4 * digit);
            rest /= 10;
        }
    }
    words
}

fn bcd_value(words: &[u16]) -> Option<f64> {
    words
        .iter()
        .flat_map(|word| [word >> 12, word >> 8 & 15, word >> 4 & 15, word & 15])
        .try_fold(0.0, |value, digit| (digit < 10).then_some(value * 10.0 + f64::from(digit)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(kind: Kind, order: Order) -> Format {
        Format { kind, order, scale: 1.0, offset: 0.0 }
    }

    #[test]
    fn the_four_orders_of_a_counter() {
        let encoded = |order| plain(Kind::U32, order).encode(&Signal::Count(0x1122_3344), &[]);
        assert_eq!(encoded(Order::Abcd), [0x1122, 0x3344]);
        assert_eq!(encoded(Order::Cdab), [0x3344, 0x1122]);
        assert_eq!(encoded(Order::Badc), [0x2211, 0x4433]);
        assert_eq!(encoded(Order::Dcba), [0x4433, 0x2211]);
    }

    #[test]
    fn sixty_four_bits_keep_every_digit() {
        let count = Signal::Count(0x1122_3344_5566_7788);
        let encoded = |order| plain(Kind::U64, order).encode(&count, &[]);
        assert_eq!(encoded(Order::Cdab), [0x7788, 0x5566, 0x3344, 0x1122]);
        assert_eq!(encoded(Order::Badc), [0x2211, 0x4433, 0x6655, 0x8877]);
        for order in [Order::Abcd, Order::Cdab, Order::Badc, Order::Dcba] {
            assert_eq!(plain(Kind::U64, order).decode(&encoded(order)), Some(count.clone()));
        }
    }

    #[test]
    fn bcd_text_bits_and_scale() {
        let bcd = plain(Kind::Bcd { registers: 2 }, Order::Abcd);
        assert_eq!(bcd.encode(&Signal::Count(12_345_678), &[]), [0x1234, 0x5678]);
        assert_eq!(bcd.decode(&[0x1234, 0x5678]), Some(Signal::Number(12_345_678.0)));
        assert_eq!(bcd.decode(&[0x123a, 0]), None);
        let text = plain(Kind::Text { registers: 3 }, Order::Abcd);
        assert_eq!(text.encode(&Signal::Text("LIT-1".into()), &[]), [0x4c49, 0x542d, 0x3100]);
        assert_eq!(text.decode(&[0x4c49, 0x542d, 0x3100]), Some(Signal::Text("LIT-1".into())));
        let bits = plain(Kind::Bits { first: 4, count: 3 }, Order::Abcd);
        assert_eq!(bits.encode(&Signal::Count(5), &[0xffff]), [0xffdf]);
        let tenths = Format { kind: Kind::I16, order: Order::Abcd, scale: 0.1, offset: -40.0 };
        assert_eq!(tenths.encode(&Signal::Number(21.5), &[]), [615]);
        assert_eq!(tenths.encode(&Signal::Number(1e9), &[]), [0x7fff]);
    }

    fn any_kind() -> impl Strategy<Value = Kind> {
        prop_oneof![
            prop::sample::select(vec![
                Kind::Bool,
                Kind::U16,
                Kind::I16,
                Kind::U32,
                Kind::I32,
                Kind::U64,
                Kind::I64,
                Kind::F32,
                Kind::F64,
            ]),
            (1..=4_u16).prop_map(|registers| Kind::Bcd { registers }),
            (1..=10_u16).prop_map(|registers| Kind::Text { registers }),
            (0..16_u8)
                .prop_flat_map(|first| (Just(first), 1..=16 - first))
                .prop_map(|(first, count)| Kind::Bits { first, count }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_decoded_encodes_to_itself(
            kind in any_kind(),
            order in prop::sample::select(vec![Order::Abcd, Order::Cdab, Order::Badc, Order::Dcba]),
            words in prop::collection::vec(any::<u16>(), 10),
        ) {
            let format = plain(kind, if matches!(kind, Kind::Bits { .. }) { Order::Abcd } else { order });
            let mut words = words[..usize::from(kind.items())].to_vec();
            if matches!(kind, Kind::Text { .. }) {
                words.iter_mut().for_each(|word| *word &= 0x7f7f);
            }
            if let Some(signal) = format.decode(&words) {
                let again = format.encode(&signal, &words);
                prop_assert_eq!(again.len(), words.len());
                prop_assert_eq!(format.decode(&again), Some(signal));
            }
        }
    }
}
