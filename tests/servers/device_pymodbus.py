"""One device made of pymodbus: it says who it is, keeps a clock, and remembers every write.

Usage: device_pymodbus.py --serial TEXT [--port N] [--slow-clock SECONDS]

Holding registers: 0 counts reads, 1 to 9 hold what is written (0 at first), 100 and 101 are the clock (seconds since 1970,
high word first), which begins SECONDS behind. Identification (function 43/14): vendor ACME, product P-100, the serial
number in the private object 0x80.

Prints `ready {"ports": [N]}`, takes commands on standard input and answers each with one line of JSON: `writes` gives
every write as [address, [values]], `clock` the device's clock. Ends when standard input closes.
"""

import argparse
import asyncio
import json
import sys
import time

from pymodbus import ModbusDeviceIdentification
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

CLOCK = 100


class Device:
    def __init__(self, slow):
        self.behind = slow
        self.reads = 0
        self.writes = []

    def clock(self):
        return int(time.time() - self.behind)

    async def action(self, _function, start, address, count, registers, values):
        if values is not None:
            self.writes.append([address, list(values)])
            if address == CLOCK and len(values) == 2:
                self.behind = time.time() - (values[0] * 65536 + values[1])
            return
        self.reads += 1
        shown = self.clock()
        for register, value in ((0, self.reads % 1000), (CLOCK, shown >> 16), (CLOCK + 1, shown & 0xFFFF)):
            if address <= register < address + count:
                registers[register - start] = value


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--serial", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--slow-clock", type=float, default=0)
    args = parser.parse_args()
    device = Device(args.slow_clock)
    blocks = [
        SimData(0, count=10, values=0, datatype=DataType.REGISTERS),
        SimData(CLOCK, count=2, values=0, datatype=DataType.REGISTERS),
    ]
    identity = ModbusDeviceIdentification(info={0: "ACME", 1: "P-100", 2: "1.4", 0x80: args.serial})
    server = ModbusTcpServer(
        SimDevice(id=1, simdata=blocks, action=device.action), identity=identity, address=("127.0.0.1", args.port)
    )
    await server.serve_forever(background=True)
    port = server.transport.sockets[0].getsockname()[1]
    print("ready", json.dumps({"ports": [port]}), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        answers = {"writes": lambda: {"writes": device.writes}, "clock": lambda: {"clock": device.clock()}}
        answer = answers.get(line.strip(), lambda: {"error": f"no such command: {line.strip()}"})
        print(json.dumps(answer()), flush=True)


asyncio.run(main())
