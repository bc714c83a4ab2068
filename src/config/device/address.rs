//! Addresses of registers and bits in the three ways that manuals write them.

use super::modbus::Addressing;
use crate::config::tree::{Item, Node};
use crate::southbound::modbus::Table;

/// The table that the address itself names (Modicon only) and the address counted from 0.
pub(super) fn read(item: &Item, addressing: Addressing) -> Result<(Option<Table>, u16), String> {
    let text = match &item.node {
        Node::Integer(n) => n.to_string(),
        Node::Text(text) | Node::Cell(text) => text.trim().to_owned(),
        other => return Err(format!("is {}; it must be an integer", other.what())),
    };
    match addressing {
        Addressing::ZeroBased => Ok((None, counted(&text, 0)?)),
        Addressing::OneBased => Ok((None, counted(&text, 1)?)),
        Addressing::Modicon => modicon(&text).map(|(table, address)| (Some(table), address)),
    }
}

fn counted(text: &str, first: i64) -> Result<u16, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => i64::from_str_radix(hex, 16),
        None => text.parse::<i64>(),
    };
    let value = parsed.map_err(|_| format!("\"{text}\" is no address; write an integer"))?;
    let hint = match (value > 65_535, first) {
        (true, _) => "; for numbers like 400001 set addressing = \"modicon\"",
        (false, 1) => "; for addresses that begin with 0 set addressing = \"zero-based\"",
        (false, _) => "",
    };
    u16::try_from(value - first).map_err(|_| format!("is {value}; it must be from {first} to {}{hint}", 65_535 + first))
}

/// 5 digits (40001) or 6 (400001); leading zeros of coils may be missing when the number has fewer than 5 digits.
fn modicon(text: &str) -> Result<(Table, u16), String> {
    let refuse = || {
        format!(
            "\"{text}\" is no Modicon address; write 00001-09999 or 000001-065536 (coils), 1xxxx (discrete), 3xxxx (input) or 4xxxx (holding), with 5 or 6 digits"
        )
    };
    if text.is_empty() || text.len() > 6 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(refuse());
    }
    let padded = if text.len() < 5 { format!("{text:0>5}") } else { text.to_owned() };
    let (kind, number) = padded.split_at(1);
    let table = match kind {
        "0" => Table::Coil,
        "1" => Table::Discrete,
        "3" => Table::Input,
        "4" => Table::Holding,
        _ => return Err(refuse()),
    };
    let number: u32 = number.parse().map_err(|_| refuse())?;
    match number.checked_sub(1).map(u16::try_from) {
        Some(Ok(address)) => Ok((table, address)),
        _ => Err(refuse()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::problem::Place;

    fn at(node: Node, addressing: Addressing) -> Result<(Option<Table>, u16), String> {
        read(&Item { place: Place::file("f".as_ref()), node }, addressing)
    }

    #[test]
    fn the_three_ways_name_the_same_register() {
        assert_eq!(at(Node::Integer(107), Addressing::ZeroBased), Ok((None, 107)));
        assert_eq!(at(Node::Integer(108), Addressing::OneBased), Ok((None, 107)));
        assert_eq!(at(Node::Integer(40108), Addressing::Modicon), Ok((Some(Table::Holding), 107)));
        assert_eq!(at(Node::Integer(400108), Addressing::Modicon), Ok((Some(Table::Holding), 107)));
        assert_eq!(at(Node::Cell("0x6B".into()), Addressing::ZeroBased), Ok((None, 107)));
    }

    #[test]
    fn modicon_tables_and_ends() {
        for (text, table, address) in [
            ("1", Table::Coil, 0),
            ("00001", Table::Coil, 0),
            ("000001", Table::Coil, 0),
            ("065536", Table::Coil, 65_535),
            ("10001", Table::Discrete, 0),
            ("165536", Table::Discrete, 65_535),
            ("39999", Table::Input, 9_998),
            ("465536", Table::Holding, 65_535),
        ] {
            assert_eq!(modicon(text), Ok((table, address)), "{text}");
        }
        for bad in ["", "0", "00000", "40000", "400000", "465537", "20001", "50001", "4000001", "-1", "4x001"] {
            assert!(modicon(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ends_of_the_range_are_kept() {
        assert_eq!(at(Node::Integer(65_535), Addressing::ZeroBased), Ok((None, 65_535)));
        assert_eq!(at(Node::Integer(65_536), Addressing::OneBased), Ok((None, 65_535)));
        assert!(at(Node::Integer(0), Addressing::OneBased).unwrap_err().contains("from 1 to 65536"));
        assert!(at(Node::Integer(400_001), Addressing::ZeroBased).unwrap_err().contains("modicon"));
        assert!(at(Node::Integer(-1), Addressing::ZeroBased).is_err());
    }
}
