use proptest::prelude::*;

use super::*;
use crate::southbound::modbus::{Table, TextOptions};

fn point(data_type: DataType, order: WordOrder) -> PointAddress {
    PointAddress { order, ..PointAddress::new(Table::Holding, 0, data_type) }
}

fn encoded(point: &PointAddress, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    encode(point, value, &mut out).unwrap_or_else(|reason| panic!("{value:?}: {reason}"));
    out
}

#[test]
fn the_four_orders_of_32_and_64_bits_are_those_of_the_manuals() {
    let octets = |order| encoded(&point(DataType::U32, order), &Value::Uint(0x0A0B_0C0D));
    assert_eq!(octets(WordOrder::ABCD), [0x0A, 0x0B, 0x0C, 0x0D]);
    assert_eq!(octets(WordOrder::CDAB), [0x0C, 0x0D, 0x0A, 0x0B]);
    assert_eq!(octets(WordOrder::BADC), [0x0B, 0x0A, 0x0D, 0x0C]);
    assert_eq!(octets(WordOrder::DCBA), [0x0D, 0x0C, 0x0B, 0x0A]);
    let octets = |order| encoded(&point(DataType::U64, order), &Value::Uint(0x0102_0304_0506_0708));
    assert_eq!(octets(WordOrder::ABCD), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(octets(WordOrder::CDAB), [7, 8, 5, 6, 3, 4, 1, 2]);
    assert_eq!(octets(WordOrder::BADC), [2, 1, 4, 3, 6, 5, 8, 7]);
    assert_eq!(octets(WordOrder::DCBA), [8, 7, 6, 5, 4, 3, 2, 1]);
}

#[test]
fn bits_and_small_types_are_parts_of_a_register() {
    let data = [0xA5, 0xC3];
    let bits = |first, last, data_type| PointAddress { bit: Some((first, last)), ..point(data_type, WordOrder::ABCD) };
    assert_eq!(decode(&bits(0, 0, DataType::Bool), &data), Ok(Value::Bool(true)));
    assert_eq!(decode(&bits(2, 2, DataType::Bool), &data), Ok(Value::Bool(false)));
    assert_eq!(decode(&bits(4, 7, DataType::U16), &data), Ok(Value::Uint(0xC)));
    assert_eq!(decode(&bits(4, 7, DataType::I16), &data), Ok(Value::Int(-4)));
    assert_eq!(decode(&point(DataType::U8, WordOrder::ABCD), &data), Ok(Value::Uint(0xC3)));
    assert_eq!(decode(&point(DataType::I8, WordOrder::BADC), &data), Ok(Value::Int(i64::from(0xA5u8 as i8))));
    assert_eq!(mask(&bits(4, 7, DataType::U16)), Some(vec![0, 0xF0]));
    assert_eq!(mask(&point(DataType::U8, WordOrder::BADC)), Some(vec![0xFF, 0]));
    assert_eq!(mask(&point(DataType::U16, WordOrder::ABCD)), None);
}

#[test]
fn what_is_no_value_is_said_to_be_none() {
    let nan = f32::NAN.to_be_bytes();
    assert_eq!(decode(&point(DataType::F32, WordOrder::ABCD), &nan), Err(Reason::NotANumber));
    assert_eq!(decode(&point(DataType::F64, WordOrder::ABCD), &f64::INFINITY.to_be_bytes()), Err(Reason::NotANumber));
    assert_eq!(decode(&point(DataType::Bcd, WordOrder::ABCD), &[0x12, 0x3A]), Err(Reason::DecodeError));
    assert_eq!(decode(&point(DataType::Bcd, WordOrder::ABCD), &[0x12, 0x34]), Ok(Value::Uint(1234)));
    let text = PointAddress { length: 4, ..point(DataType::Text, WordOrder::ABCD) };
    assert_eq!(decode(&text, &[b'a', 0xFF, 0, 0]), Err(Reason::DecodeError));
    assert_eq!(decode(&text, b"ab \0"), Ok(Value::Text("ab".into())));
    assert_eq!(decode(&text, b"ab"), Err(Reason::ProtocolError));
    let swapped = TextOptions { swap_octets: true, ..TextOptions::default() };
    assert_eq!(decode(&PointAddress { text: swapped, ..text }, b"bacd"), Ok(Value::Text("abdc".into())));
}

#[test]
fn values_that_do_not_fit_are_refused_and_the_error_says_what_would() {
    let refuse =
        |data_type, value: Value| encode(&point(data_type, WordOrder::ABCD), &value, &mut Vec::new()).unwrap_err();
    assert_eq!(refuse(DataType::U16, Value::Uint(65536)), "0 to 65535 fits");
    assert_eq!(refuse(DataType::U16, Value::Int(-1)), "0 to 65535 fits");
    assert_eq!(refuse(DataType::I8, Value::Int(128)), "-128 to 127 fits");
    assert_eq!(refuse(DataType::I32, Value::Double(0.5)), "a whole number is wanted");
    assert_eq!(refuse(DataType::U64, Value::Double(1.9e19)), "0 to 18446744073709551615 fits");
    assert!(refuse(DataType::F32, Value::Double(1e39)).contains("32-bit float"));
    assert!(refuse(DataType::F64, Value::Double(f64::NAN)).contains("finite"));
    assert_eq!(refuse(DataType::Bcd, Value::Uint(10_000)), "a bcd value of 4 digits is 0 to 9999");
    assert_eq!(refuse(DataType::Bool, Value::Uint(2)), "true or false is wanted");
    assert!(refuse(DataType::Text, Value::Text("abc".into())).contains("2 octets"));
}

fn number() -> impl Strategy<Value = (DataType, Value)> {
    use DataType::*;
    prop_oneof![
        any::<bool>().prop_map(|v| (Bool, Value::Bool(v))),
        any::<u8>().prop_map(|v| (U8, Value::Uint(v.into()))),
        any::<i8>().prop_map(|v| (I8, Value::Int(v.into()))),
        any::<u16>().prop_map(|v| (U16, Value::Uint(v.into()))),
        any::<i16>().prop_map(|v| (I16, Value::Int(v.into()))),
        any::<u32>().prop_map(|v| (U32, Value::Uint(v.into()))),
        any::<i32>().prop_map(|v| (I32, Value::Int(v.into()))),
        any::<u64>().prop_map(|v| (U64, Value::Uint(v))),
        any::<i64>().prop_map(|v| (I64, Value::Int(v))),
        prop::num::f32::NORMAL.prop_map(|v| (F32, Value::Float(v))),
        prop::num::f64::NORMAL.prop_map(|v| (F64, Value::Double(v))),
    ]
}

proptest! {
    #[test]
    fn every_number_comes_back_in_every_order((data_type, value) in number(), order in prop::sample::select(&WordOrder::ALL[..])) {
        let point = point(data_type, order);
        let data = encoded(&point, &value);
        prop_assert_eq!(data.len(), usize::from(point.width()) * 2);
        prop_assert_eq!(decode(&point, &data), Ok(value));
    }

    #[test]
    fn bcd_comes_back(registers in 1u16..=4, number: u64, order in prop::sample::select(&WordOrder::ALL[..])) {
        let point = PointAddress { length: registers, ..point(DataType::Bcd, order) };
        let value = Value::Uint(number % 10u64.pow(u32::from(registers) * 4));
        prop_assert_eq!(decode(&point, &encoded(&point, &value)), Ok(value));
    }

    #[test]
    fn texts_and_bytes_come_back(text in "[a-zA-Zäöü€ .]{0,12}[a-zé]", spare in 0u16..5, swap: bool, nul: bool) {
        let options = TextOptions { swap_octets: swap, trim_nul: nul, ..TextOptions::default() };
        let length = text.len() as u16 + spare;
        let place = PointAddress { length, text: options, ..point(DataType::Text, WordOrder::ABCD) };
        let value = Value::Text(text.as_str().into());
        prop_assert_eq!(decode(&place, &encoded(&place, &value)), Ok(value));
        let place = PointAddress { length: text.len() as u16, data_type: DataType::Bytes, ..place };
        let value = Value::Bytes(text.as_bytes().into());
        prop_assert_eq!(decode(&place, &encoded(&place, &value)), Ok(value));
    }

    #[test]
    fn a_bit_range_comes_back_and_touches_no_other_bit(
        low in 0u8..16, width in 1u8..=16, raw: u16, before: u16, order in prop::sample::select(&WordOrder::ALL[..]),
    ) {
        let high = (low + width - 1).min(15);
        let point = PointAddress { bit: Some((low, high)), ..point(DataType::U16, order) };
        let value = Value::Uint(u64::from(raw) & ones(high - low + 1));
        let (data, mask) = (encoded(&point, &value), mask(&point).unwrap());
        let merged: Vec<u8> = before.to_be_bytes().iter().zip(data.iter().zip(&mask)).map(|(b, (d, m))| b & !m | d & m).collect();
        prop_assert_eq!(decode(&point, &merged), Ok(value));
        prop_assert!(data.iter().zip(&mask).all(|(d, m)| d & !m == 0));
        let owned: u32 = mask.iter().map(|octet| octet.count_ones()).sum();
        prop_assert_eq!(owned, u32::from(high - low + 1));
    }

    #[test]
    fn any_registers_decode_or_say_why(data in prop::collection::vec(any::<u8>(), 0..20), length in 1u16..10) {
        use DataType::*;
        for data_type in [Bool, I8, I16, I32, I64, U8, U16, U32, U64, F32, F64, Bcd, Text, Bytes] {
            for order in WordOrder::ALL {
                let point = PointAddress { length: if data_type == Bcd { length.min(4) } else { length }, ..point(data_type, order) };
                let outcome = decode(&point, &data);
                prop_assert!(outcome != Ok(Value::Float(f32::NAN)));
                prop_assert_eq!(outcome == Err(Reason::ProtocolError), data.len() != usize::from(point.width()) * 2);
            }
        }
    }
}
