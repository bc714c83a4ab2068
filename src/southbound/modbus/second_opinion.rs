//! Our octets against those of tokio-modbus, which nobody here wrote.

use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, duplex};
use tokio_modbus::client::{Context, Reader, Writer};
use tokio_modbus::slave::Slave;

use super::frame::{self, Framing};
use super::pdu::Request;
use super::{Table, frame::MAX_FRAME};

/// The octets that tokio-modbus sends for a request; it gets no answer.
async fn theirs(framing: Framing, unit: u8, request: &Request<'_>) -> Vec<u8> {
    let (near, mut far) = duplex(2 * MAX_FRAME);
    let mut context = match framing {
        Framing::Tcp => tokio_modbus::client::tcp::attach_slave(near, Slave(unit)),
        Framing::Rtu => tokio_modbus::client::rtu::attach_slave(near, Slave(unit)),
    };
    let _ = tokio::time::timeout(Duration::from_millis(1), call(&mut context, request)).await;
    drop(context);
    let mut octets = Vec::new();
    far.read_to_end(&mut octets).await.unwrap();
    octets
}

async fn call(context: &mut Context, request: &Request<'_>) {
    let words =
        |data: &[u8]| data.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect::<Vec<_>>();
    let _ = match *request {
        Request::Read { table: Table::Coil, address, count } => context.read_coils(address, count).await.map(drop),
        Request::Read { table: Table::Discrete, address, count } => {
            context.read_discrete_inputs(address, count).await.map(drop)
        }
        Request::Read { table: Table::Input, address, count } => {
            context.read_input_registers(address, count).await.map(drop)
        }
        Request::Read { table: Table::Holding, address, count } => {
            context.read_holding_registers(address, count).await.map(drop)
        }
        Request::WriteCoil { address, on } => context.write_single_coil(address, on).await.map(drop),
        Request::WriteRegister { address, word } => context.write_single_register(address, word).await.map(drop),
        Request::WriteCoils { address, on } => context.write_multiple_coils(address, &[on]).await.map(drop),
        Request::WriteRegisters { address, data } => {
            context.write_multiple_registers(address, &words(data)).await.map(drop)
        }
        Request::MaskRegister { address, and, or } => context.masked_write_register(address, and, or).await.map(drop),
        Request::WriteAndRead { address, data } => {
            let words = words(data);
            context.read_write_multiple_registers(address, words.len() as u16, address, &words).await.map(drop)
        }
        Request::DeviceId { object, .. } => {
            context.read_device_identification(tokio_modbus::prelude::ReadCode::Basic, object).await.map(drop)
        }
        Request::ServerId | Request::Echo { .. } | Request::WriteFile { .. } => unreachable!("not compared"),
    };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn both_codecs_send_the_same_octets(unit: u8, address: u16, count in 1u16..=125, word: u16, on: bool, data in prop::collection::vec(any::<[u8; 2]>(), 1..=121)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let data = data.concat();
        let requests = [
            Request::Read { table: Table::Coil, address, count },
            Request::Read { table: Table::Discrete, address, count },
            Request::Read { table: Table::Input, address, count },
            Request::Read { table: Table::Holding, address, count },
            Request::WriteCoil { address, on },
            Request::WriteRegister { address, word },
            Request::WriteCoils { address, on },
            Request::WriteRegisters { address, data: &data },
            Request::MaskRegister { address, and: word, or: count },
            Request::WriteAndRead { address, data: &data },
            Request::DeviceId { code: 1, object: 0 },
        ];
        for request in requests {
            for framing in [Framing::Tcp, Framing::Rtu] {
                let theirs = runtime.block_on(theirs(framing, unit, &request));
                let transaction = u16::from_be_bytes([theirs[0], theirs[1]]);
                let mut ours = Vec::new();
                frame::encode(framing, transaction, unit, &mut ours, |out| request.encode(out));
                prop_assert_eq!(&ours, &theirs, "{:?} {:?}", framing, request);
            }
        }
    }
}
