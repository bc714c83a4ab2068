"""A plant of pyModbusTCP servers, by default 20 devices of 100 registers. See plant_common.py for values and commands."""

import os
import signal
import socket
import threading

import plant_common as common
from pyModbusTCP.server import DataBank, ModbusServer


class Bank(DataBank):
    """Computes what is read instead of storing it."""

    def __init__(self, plant, index):
        super().__init__(coils_size=0, d_inputs_size=0, h_regs_size=plant.args.registers, i_regs_size=0)
        self.plant = plant
        self.index = index

    def get_holding_registers(self, address, number=1, srv_info=None):
        if self.index in self.plant.muted:
            threading.Event().wait()
        if address + number > self.plant.args.registers:
            return None
        n = self.plant.journal.read(self.index, address, number, self.plant.args.mode)
        return [(n + common.offset(self.index, r)) % 65536 for r in range(address, address + number)]

    def on_holding_registers_change(self, address, from_value, to_value, srv_info):
        self.plant.journal.write(self.index)


class Plant:
    def __init__(self, args):
        self.args = args
        self.journal = common.Journal(args.devices, args.journal)
        self.muted = set()
        self.servers = [None] * args.devices
        self.ports = free_ports(args.devices)

    def act(self, name, index):
        if name == "kill":
            server, self.servers[index] = self.servers[index], None
            if server is None:
                raise ValueError("it is not running")
            server.stop()
        elif name == "revive":
            if self.servers[index] is not None:
                raise ValueError("it is running")
            self.servers[index] = ModbusServer(
                "127.0.0.1", self.ports[index], no_block=True, data_bank=Bank(self, index)
            )
            self.servers[index].start()
        elif name == "mute":
            self.muted.add(index)
        elif name == "unmute":
            self.muted.discard(index)
        else:
            raise ValueError(f"no such command: {name}")


def free_ports(count):
    """Ports that are free now; held together so that none comes twice."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def main():
    args = common.arguments(__doc__)
    plant = Plant(args)
    for index in range(args.devices):
        plant.act("revive", index)
    signal.signal(signal.SIGUSR1, lambda *_: common.say(plant.journal.statistics()))
    common.serve_commands(plant.ports, args, plant.journal, plant.act)
    # Muted requests wait for ever in threads of their own.
    os._exit(0)


main()
