"""Modbus server made of pymodbus 3.16.1, independent of the gateway.

Usage: modbus_pymodbus.py tcp|rtu-tcp|rtu UNITS [--path PTY] [--late MS] [--servers N]

Prints `READY <port> …` when it listens, one port for each of N servers (port 0 for rtu). Content, for unit u:
    holding a: (3a + u) mod 65536, 0 to 299 and 310 to 1999; 300 to 309 do not exist
    input   a: a xor 0x5555, 0 to 1999
    coil    a: a divisible by 3; discrete a: a divisible by 5; 0 to 1999
A read of holding register 900 is answered MS milliseconds late.
"""

import argparse
import asyncio
import sys

from pymodbus import ModbusDeviceIdentification
from pymodbus.framer import FramerType
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

LATE_REGISTER = 900


def device(unit, late):
    async def action(function, _start, address, _count, _registers, values):
        if late and function == 3 and address == LATE_REGISTER and values is None:
            await asyncio.sleep(late / 1000)

    holding = lambda first, end: [(3 * a + unit) % 65536 for a in range(first, end)]
    registers = DataType.REGISTERS
    return SimDevice(
        id=unit,
        simdata=(
            [SimData(0, values=[a % 3 == 0 for a in range(2000)], datatype=DataType.BITS)],
            [SimData(0, values=[a % 5 == 0 for a in range(2000)], datatype=DataType.BITS)],
            [
                SimData(0, values=holding(0, 300), datatype=registers),
                SimData(310, values=holding(310, 2000), datatype=registers),
            ],
            [SimData(0, values=[a ^ 0x5555 for a in range(2000)], datatype=registers)],
        ),
        action=action,
    )


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["tcp", "rtu-tcp", "rtu"])
    parser.add_argument("units")
    parser.add_argument("--path", default="")
    parser.add_argument("--late", type=int, default=0)
    parser.add_argument("--servers", type=int, default=1)
    args = parser.parse_args()
    units = [device(int(unit), args.late) for unit in args.units.split(",")]
    identity = ModbusDeviceIdentification(
        info_name={"VendorName": "ACME", "ProductCode": "PM-5", "MajorMinorRevision": "1.2", "ModelName": "Meter"}
    )
    if args.mode == "rtu":
        server = ModbusSerialServer(units, identity=identity, port=args.path, baudrate=115200, parity="N")
        await server.serve_forever(background=True)
        ports = [0]
    else:
        framer = FramerType.RTU if args.mode == "rtu-tcp" else FramerType.SOCKET
        ports = []
        for _ in range(args.servers):
            server = ModbusTcpServer(units, identity=identity, framer=framer, address=("127.0.0.1", 0))
            await server.serve_forever(background=True)
            ports.append(server.transport.sockets[0].getsockname()[1])
    print("READY", *ports, flush=True)
    # The test closes our input when it ends, however it ends.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
