"""Modbus TCP server made of pyModbusTCP 0.3.1: the same content as modbus_pymodbus.py for unit 1, without its hole.

Prints `READY <port>` when it listens.
"""

import socket
import sys

from pyModbusTCP.server import DataBank, DeviceIdentification, ModbusServer

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]

bank = DataBank()
bank.set_holding_registers(0, [(3 * a + 1) % 65536 for a in range(2000)])
bank.set_input_registers(0, [a ^ 0x5555 for a in range(2000)])
bank.set_coils(0, [a % 3 == 0 for a in range(2000)])
bank.set_discrete_inputs(0, [a % 5 == 0 for a in range(2000)])
identity = DeviceIdentification(vendor_name=b"Beta", product_code=b"B-1", major_minor_revision=b"7")
server = ModbusServer("127.0.0.1", port, no_block=True, data_bank=bank, device_id=identity)
server.start()
print("READY", port, flush=True)
sys.stdin.read()
server.stop()
