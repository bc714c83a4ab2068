//! Requests and replies from the specification's own examples where it has them.

use proptest::prelude::*;

use super::super::Memory;
use super::*;

struct Plain(Memory);

impl Plain {
    fn new() -> Self {
        let mut memory = Memory::default();
        for address in 0..200 {
            for table in [Table::Coil, Table::Discrete, Table::Input, Table::Holding] {
                memory.add(table, address, table.is_writable());
            }
        }
        Self(memory)
    }
}

impl Registers for Plain {
    fn read(&mut self, table: Table, address: u16, count: u16) -> Result<Vec<u16>, Exception> {
        self.0.read(table, address, count)
    }
    fn write(&mut self, table: Table, address: u16, values: &[u16]) -> Result<(), Exception> {
        self.0.write(table, address, values)
    }
    fn identification(&self) -> Vec<(u8, String)> {
        vec![(0, "Vendor".into()), (1, "Product".into()), (2, "1.0".into()), (5, "x".repeat(240))]
    }
    fn server_id(&self) -> Option<String> {
        Some("S-1".into())
    }
}

#[test]
fn coils_are_packed_from_the_lowest_bit() {
    let mut plain = Plain::new();
    // V1.1b3, 6.11: ten coils from 20 on, CD 01.
    assert_eq!(answer(&[15, 0, 19, 0, 10, 2, 0xcd, 0x01], &mut plain), [15, 0, 19, 0, 10]);
    assert_eq!(answer(&[1, 0, 19, 0, 10], &mut plain), [1, 2, 0xcd, 0x01]);
    assert_eq!(answer(&[5, 0, 19, 0, 0], &mut plain), [5, 0, 19, 0, 0]);
    assert_eq!(answer(&[1, 0, 19, 0, 8], &mut plain), [1, 1, 0xcc]);
}

#[test]
fn registers_are_written_masked_and_read() {
    let mut plain = Plain::new();
    assert_eq!(answer(&[16, 0, 1, 0, 2, 4, 0, 10, 1, 2], &mut plain), [16, 0, 1, 0, 2]);
    assert_eq!(answer(&[3, 0, 1, 0, 2], &mut plain), [3, 4, 0, 10, 1, 2]);
    // V1.1b3, 6.16: 0x12 masked with AND 0xF2 and OR 0x25 gives 0x17.
    answer(&[6, 0, 4, 0, 0x12], &mut plain);
    answer(&[22, 0, 4, 0, 0xf2, 0, 0x25], &mut plain);
    assert_eq!(answer(&[3, 0, 4, 0, 1], &mut plain), [3, 2, 0, 0x17]);
    assert_eq!(answer(&[8, 0, 0, 0xa5, 0x37], &mut plain), [8, 0, 0, 0xa5, 0x37]);
    assert_eq!(answer(&[8, 0, 1, 0, 0], &mut plain), [0x88, 1]);
    let both = [23, 0, 1, 0, 2, 0, 2, 0, 1, 2, 0xab, 0xcd];
    assert_eq!(answer(&both, &mut plain), [23, 4, 0, 10, 0xab, 0xcd]);
}

#[test]
fn wrong_requests_get_the_exception_that_fits() {
    let mut plain = Plain::new();
    let cases: [(&[u8], Exception); 10] = [
        (&[3, 0, 0, 0, 126], Exception::IllegalValue),
        (&[1, 0, 0, 0x07, 0xd1], Exception::IllegalValue),
        (&[3, 0, 0, 0, 0], Exception::IllegalValue),
        (&[3, 0, 199, 0, 2], Exception::IllegalAddress),
        (&[3, 0, 0], Exception::IllegalValue),
        (&[5, 0, 0, 0x12, 0], Exception::IllegalValue),
        (&[16, 0, 0, 0, 2, 3, 0, 0, 0], Exception::IllegalValue),
        (&[99], Exception::IllegalFunction),
        (&[43, 13, 0, 0], Exception::IllegalFunction),
        (&[43, 14, 4, 9], Exception::IllegalAddress),
    ];
    for (request, code) in cases {
        assert_eq!(answer(request, &mut plain), [request[0] | 0x80, code as u8], "{request:?}");
    }
}

#[test]
fn identification_comes_in_parts_when_it_is_long() {
    let mut plain = Plain::new();
    let first = answer(&[43, 14, 2, 0], &mut plain);
    assert_eq!(first[..7], [43, 14, 2, 0x82, 0xff, 5, 3]);
    assert_eq!(&first[7..15], [&[0, 6], &b"Vendor"[..]].concat());
    let second = answer(&[43, 14, 2, 5], &mut plain);
    assert_eq!(second[..9], [43, 14, 2, 0x82, 0, 0, 1, 5, 240]);
    assert_eq!(answer(&[17], &mut plain), [&[17, 5, 1, 0xff], &b"S-1"[..]].concat());
}

proptest! {
    #[test]
    fn any_request_gets_one_reply_that_fits(request in prop::collection::vec(any::<u8>(), 1..254)) {
        let reply = answer(&request, &mut Plain::new());
        prop_assert!(reply.len() <= super::super::frame::MAX_PDU);
        prop_assert_eq!(reply[0] & 0x7f, request[0] & 0x7f);
        if let 1..=4 = reply[0] {
            prop_assert_eq!(usize::from(reply[1]) + 2, reply.len());
        }
    }
}
